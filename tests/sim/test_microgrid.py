"""The 9-bus microgrid: the model against what is known of it, what is proved against what is simulated."""

import math

import numpy as np
import pytest
from flexpipe.policies.certificate.contraction import shift_seminorm
from flexpipe.sim.microgrid import SOURCES, Droop, PowerFlowError, microgrid9, trajectory
from flexpipe.sim.microgrid_study import ANGLES_DEG, CERTIFICATE, OPERATING_REGION, VOLTAGES, MicrogridStudy


@pytest.fixture(scope="module")
def study():
    return MicrogridStudy()


@pytest.fixture(scope="module")
def flat(study):
    return study.flat_start()


@pytest.fixture(scope="module")
def regions(study):
    return study.regions(samples=200)


def random_states(count, seed, spread=0.5):
    random = np.random.default_rng(seed)
    return np.concatenate(
        [random.uniform(-spread, spread, (count, 3)), 1 + random.uniform(-0.2, 0.2, (count, 3))], axis=1
    )


# --- the model --------------------------------------------------------------------------------------------------------


def test_the_power_flow_is_the_published_one():
    """Anderson and Fouad's WSCC system: P1 = .716, Q = (.270, .067, -.109), angles 9.3 and 4.7 degrees."""
    grid, operating = microgrid9()
    assert grid.active_set == pytest.approx([0.716, 1.63, 0.85], abs=1e-3)
    assert grid.reactive_set == pytest.approx([0.270, 0.067, -0.109], abs=1e-3)
    assert np.degrees(operating[:3]) == pytest.approx([0, 9.28, 4.665], abs=1e-2)


def test_the_operating_point_stands_still():
    grid, operating = microgrid9()
    assert np.abs(grid.field(operating)).max() < 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_the_jacobian_is_the_fields_derivative(seed):
    grid, _ = microgrid9()
    (state,) = random_states(1, seed)
    h = 1e-6
    slopes = [(grid.field(state + h * unit) - grid.field(state - h * unit)) / (2 * h) for unit in np.eye(6)]
    assert grid.jacobian(state) == pytest.approx(np.array(slopes).T, abs=1e-6)


def test_a_shift_of_all_angles_changes_nothing(study):
    for state in random_states(5, 7):
        shifted = state + np.array([0.8] * 3 + [0.0] * 3)
        assert study.grid.field(shifted) == pytest.approx(study.grid.field(state))
        jacobian = study.grid.jacobian(state)
        assert jacobian[:, :3].sum(axis=1) == pytest.approx(np.zeros(6), abs=1e-12)
        assert study.seminorm.kernel_defect(jacobian) < 1e-10


def test_the_family_is_the_jacobian_everywhere(study):
    for state in random_states(5, 11):
        family = study.grid.jacobian_family(state[np.newaxis, 3:])
        differences = np.array([[state[0] - state[1], state[0] - state[2], state[1] - state[2]]])
        assert family.at(differences)[0, 0] == pytest.approx(study.grid.jacobian(state))


def test_the_family_is_affine_in_each_voltage(study):
    """Which is why the corners of a box of voltages are enough."""
    differences = np.array([[0.3, -0.2, -0.5]])
    for source in range(SOURCES):
        rows = np.tile(study.grid.voltage_set, (3, 1))
        rows[:, source] += [-0.2, 0.0, 0.2]
        low, middle, high = study.grid.jacobian_family(rows).at(differences)[0]
        assert (low + high) / 2 == pytest.approx(middle)


def test_an_equilibrium_is_found_from_nearby_and_refused_where_there_is_none(study):
    found = study.grid.equilibrium(study.flat)
    assert found - found[0] * np.array([1] * 3 + [0] * 3) == pytest.approx(study.operating, abs=1e-9)
    with pytest.raises(PowerFlowError, match="no synchronous state"):
        study.grid.with_active_set(study.grid.active_set + np.array([0.0, 60.0, 0.0])).equilibrium(study.operating)


def test_the_integrator_is_of_order_four():
    ends = [trajectory(lambda _t, x: -x, np.ones(1), np.linspace(0, 1, steps + 1))[-1, 0] for steps in (10, 20)]
    errors = [abs(end - math.exp(-1)) for end in ends]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)


# --- what is proved ---------------------------------------------------------------------------------------------------


def test_at_the_operating_point_the_blocks_are_as_computed_before(study):
    assert study.local.rate == pytest.approx(19.5, abs=0.05)
    assert study.local.weight == pytest.approx(1.37, abs=0.005)


def test_no_random_state_breaks_a_proved_rate(regions):
    assert len(regions) == len(ANGLES_DEG) * len(VOLTAGES)
    assert all(row.sampled_worst_rate >= row.proved_rate > 0 for row in regions)


@pytest.mark.parametrize(("angle_deg", "voltage"), [(20, 0.05), CERTIFICATE, (60, 0.15)])
def test_a_search_for_the_worst_state_comes_near_the_proved_rate_and_not_below(study, angle_deg, voltage):
    """The corners of the region, where the worst lies here: so the proof gives away less than a hundredth."""
    bound = math.radians(angle_deg)
    worst = math.inf
    for first, second in ((1, 0), (1, 1), (0, 1), (-1, 0), (-1, -1), (0, -1)):
        for signs in np.ndindex(2, 2, 2):
            voltages = study.grid.voltage_set + voltage * (2 * np.array(signs) - 1)
            state = np.concatenate([[0, first * bound, second * bound], voltages])
            worst = min(worst, -float(study.seminorm.log_norm(study.grid.jacobian(state))))
    proved = study.rate(angle_deg, voltage)
    assert proved <= worst <= proved + 0.01


def test_rates_fall_as_regions_grow(regions):
    for voltage in VOLTAGES:
        rates = [row.proved_rate for row in regions if row.voltage == voltage]
        assert rates == sorted(rates, reverse=True)
    for angle in ANGLES_DEG:
        rates = [row.proved_rate for row in regions if row.angle_deg == angle]
        assert rates == sorted(rates, reverse=True)


def test_the_blocks_alone_prove_less_than_the_whole(study, flat):
    assert 0 < flat.blockwise.rate < study.rate(*CERTIFICATE)


def test_the_flat_start_is_certified_without_an_equilibrium(study, flat):
    """45 degrees and .15 p.u.; the radius and residual of the worked example."""
    assert flat.ball.holds
    assert flat.ball.radius == pytest.approx(0.206, abs=1e-3)
    assert flat.ball.residual == pytest.approx(2.15, abs=0.01)
    assert flat.ball.disturbance_budget > 0.28
    assert flat.equilibrium_distance <= flat.ball.equilibrium_distance


@pytest.mark.parametrize(("angle_deg", "voltage"), [(45, 0.10), (60, 0.15)])
def test_where_the_certificate_fails_it_says_so(study, angle_deg, voltage):
    ball = study.ball(study.flat, angle_deg, voltage)
    assert not ball.holds
    assert ball.disturbance_budget < 0


def test_every_state_of_a_ball_lies_in_its_region(study, flat):
    for start in flat.rim[:, 0]:
        assert np.ptp(start[:3]) <= math.radians(CERTIFICATE[0]) + 1e-12
        assert np.abs(start[3:] - study.grid.voltage_set).max() <= CERTIFICATE[1] + 1e-12


def test_no_trajectory_leaves_the_certified_ball_and_all_reach_its_equilibrium(study, flat):
    assert flat.rim_distance_max <= 1 + 1e-12
    for path in flat.rim:
        assert study.seminorm.of(path[-1] - study.operating) < 1e-3


def test_two_trajectories_contract_at_least_as_fast_as_proved_while_their_mean_angles_differ(study):
    pair = study.pair()
    assert pair.slowest_rate >= pair.certified_rate
    assert pair.above_bound_max <= 1e-12
    assert pair.distance[-1] < 1e-3 * pair.distance[0]
    assert pair.mean_angle_difference_deg > 25


def test_simulation_stays_within_the_tracking_bound(study):
    found = study.tracking()
    assert found.stays
    assert 0 < found.simulated <= found.bound < 0.002
    assert found.simulated == pytest.approx(2.5e-4, rel=0.05)


def test_simulation_stays_within_the_robustness_bounds_at_every_moment(study):
    for found in study.robustness():
        assert found.stays
        assert 0 < found.simulated <= found.bound
        assert np.all(found.distance <= found.bounds + 1e-12)


def test_the_ball_around_a_known_equilibrium_leaves_most_for_disturbances(study):
    known = study.ball(study.operating, *OPERATING_REGION)
    assert known.residual == pytest.approx(0, abs=1e-9)
    assert known.disturbance_budget == pytest.approx(known.rate * known.radius)


def test_rates_are_of_the_droop_settings_chosen():
    """The angle block is proportional to m: half the droop, half its rate."""
    shift = shift_seminorm([1.0] * SOURCES)
    rates = []
    for share in (0.01, 0.02):
        grid, operating = microgrid9(Droop(active=share * 2 * math.pi * 50))
        rates.append(-float(shift.log_norm(grid.jacobian(operating)[:SOURCES, :SOURCES])))
    assert rates[1] == pytest.approx(2 * rates[0])
    assert rates[1] == pytest.approx(45.2, abs=0.1)
