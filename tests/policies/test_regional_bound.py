"""Bounds over regions: never broken by any state, tight, and no better than what they say."""

import math

import numpy as np
import pytest
from flexpipe.policies.certificate.contraction import log_norm, shift_seminorm, spectral_norm
from flexpipe.policies.certificate.regional_bound import AngleRegion, MatrixFamily, box_vertices, regional_bound
from hypothesis import given, settings
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)
MEASURES = [log_norm, spectral_norm]


def random_family(random, nodes, vertices=2, size=3):
    pairs = nodes * (nodes - 1) // 2
    return MatrixFamily(
        random.normal(size=(vertices, size, size)),
        random.normal(size=(vertices, pairs, size, size)),
        random.normal(size=(vertices, pairs, size, size)),
    )


def random_values(family, region, measure, random, count):
    """The measure at random states of the region, the affine numbers being anywhere in their box."""
    angles = random.uniform(-region.angle_max, region.angle_max, size=(count, region.nodes))
    angles[:, 0] = 0
    angles = angles[np.ptp(angles, axis=1) <= region.angle_max]
    first, second = np.array(region.pairs).T
    at_vertices = family.at(angles[:, first] - angles[:, second])
    shares = random.dirichlet(np.ones(len(family.constant)), size=len(angles))
    return measure(np.einsum("pv,pvkl->pkl", shares, at_vertices))


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 4), st.floats(0.05, 2.0), st.integers(1, 5), st.sampled_from(MEASURES))
def test_no_state_of_the_region_breaks_the_bound(seed, nodes, angle_max, steps, measure):
    random = np.random.default_rng(seed)
    family, region = random_family(random, nodes), AngleRegion(nodes, angle_max, steps)
    found = regional_bound(family, region, measure)
    values = random_values(family, region, measure, random, 400)
    assert values.max(initial=-np.inf) <= found.bound


def test_a_coarse_grid_alone_would_have_been_broken():
    """So the part for what lies between grid points is needed, and enough."""
    random = np.random.default_rng(3)
    family, region = random_family(random, 3), AngleRegion(3, 2.0, 1)
    found = regional_bound(family, region, log_norm)
    values = random_values(family, region, log_norm, random, 4000)
    assert found.attained < values.max() <= found.bound


@pytest.mark.parametrize("measure", MEASURES)
def test_what_the_proof_gives_away_falls_with_the_square_of_the_step(measure):
    family = random_family(np.random.default_rng(4), 3)
    coarse, fine = (regional_bound(family, AngleRegion(3, 1.0, steps), measure) for steps in (10, 40))
    assert coarse.slack / fine.slack == pytest.approx(16, rel=1e-3)
    assert fine.attained >= coarse.attained


def test_the_bound_grows_with_the_region():
    family = random_family(np.random.default_rng(5), 3)
    bounds = [
        regional_bound(family, AngleRegion(3, degrees * math.pi / 180, degrees), log_norm).bound
        for degrees in (10, 20, 40)
    ]
    assert bounds == sorted(bounds)


def test_without_curvature_the_vertices_are_the_answer():
    random = np.random.default_rng(6)
    constant = random.normal(size=(4, 3, 3))
    family = MatrixFamily(constant, np.zeros((4, 1, 3, 3)), np.zeros((4, 1, 3, 3)))
    found = regional_bound(family, AngleRegion(2, 0.5, 1), log_norm)
    assert found.bound == pytest.approx(log_norm(constant).max(), abs=1e-7)


def test_the_grid_holds_every_point_of_the_region_once():
    steps = 7
    differences = np.concatenate(list(AngleRegion(3, 0.7, steps).differences()))
    assert len(differences) == 3 * steps**2 + 3 * steps + 1  # a hexagon of the triangular lattice
    assert len(np.unique(np.round(differences / 0.1), axis=0)) == len(differences)
    assert np.abs(differences).max() == pytest.approx(0.7)


def test_a_family_is_seen_through_a_seminorm_as_its_matrices_are():
    random = np.random.default_rng(8)
    family, seminorm = random_family(random, 3), shift_seminorm([1.0, 2.0, 3.0])
    differences = random.normal(size=(5, 3))
    assert family.seen_by(seminorm).at(differences) == pytest.approx(seminorm.reduced(family.at(differences)))


def test_a_box_has_its_corners():
    corners = box_vertices(np.array([0.0, 5.0]), np.array([1.0, 6.0]))
    assert {tuple(corner) for corner in corners} == {(0, 5), (0, 6), (1, 5), (1, 6)}
