"""Norms, rotary embedding and the vector functions under them, against float64."""

import numba
import numpy as np
import pytest
import torch
from flexpipe.runtime.kernels import lanes
from flexpipe.runtime.kernels.arrays import KernelInputError
from flexpipe.runtime.kernels.elementwise import layer_norm, rms_norm, rotate
from numba import types


def _normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("size", [1, 16, 70, 576])
@pytest.mark.parametrize("rows", [1, 3, 300])
def test_norms_equal_their_float64_references(size, rows):
    x, weight, bias = _normal(rows, size) * 3 + 1, _normal(size), _normal(size, seed=1)
    wide = torch.from_numpy(x).double()
    w, b = torch.from_numpy(weight).double(), torch.from_numpy(bias).double()
    expected = torch.nn.functional.rms_norm(wide, (size,), w, 1e-5)
    np.testing.assert_allclose(rms_norm(x, weight, 1e-5), expected, atol=1e-5, rtol=1e-5)
    for given, reference in ((bias, b), (None, None)):
        expected = torch.nn.functional.layer_norm(wide, (size,), w, reference, 1e-5)
        np.testing.assert_allclose(layer_norm(x, weight, given, 1e-5), expected, atol=1e-4, rtol=1e-4)


def test_a_norm_over_heads_takes_each_head_alone_and_may_work_in_place():
    merged, weight = _normal(5, 100), _normal(24)
    heads = merged[:, 4:76].reshape(5, 3, 24)
    expected = np.concatenate([rms_norm(np.ascontiguousarray(heads[:, h]), weight, 1e-6) for h in range(3)], axis=1)
    view = torch.from_numpy(merged)[:, 4:76].view(5, 3, 24)
    rms_norm(view, torch.from_numpy(weight), 1e-6, out=view)
    np.testing.assert_array_equal(merged[:, 4:76], expected)


def test_a_rows_norm_has_the_same_bits_in_any_batch():
    x, weight = _normal(400, 130), _normal(130)
    together = rms_norm(x, weight, 1e-6)
    alone = np.concatenate([rms_norm(x[row : row + 1], weight, 1e-6) for row in range(400)])
    np.testing.assert_array_equal(together.view(np.int32), alone.view(np.int32))


@pytest.mark.parametrize(("head_size", "rotated"), [(64, 64), (24, 20), (80, 32), (8, 8)])
def test_rotation_turns_halves_as_transformers_does(head_size, rotated):
    q, k, angle = _normal(50, 3, head_size), _normal(50, 2, head_size, seed=1), _normal(50, rotated // 2)
    cos, sin = (np.concatenate([f(angle), f(angle)], axis=1) for f in (np.cos, np.sin))

    def reference(x):
        turned = x[..., :rotated]
        other = np.concatenate([-turned[..., rotated // 2 :], turned[..., : rotated // 2]], axis=-1)
        return np.concatenate([turned * cos[:, None] + other * sin[:, None], x[..., rotated:]], axis=-1)

    expected = reference(q), reference(k)
    rotate(q, k, cos, sin)
    np.testing.assert_allclose(q, expected[0], atol=1e-6)
    np.testing.assert_allclose(k, expected[1], atol=1e-6)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(KernelInputError, match="norm of 5 weights"):
        rms_norm(_normal(2, 12), _normal(5), 1e-6)
    with pytest.raises(KernelInputError, match="cannot rotate"):
        rotate(_normal(2, 1, 8), _normal(2, 1, 8), _normal(2, 10), _normal(2, 10))


def test_exp_is_within_three_parts_in_ten_million():
    @numba.njit(types.void(types.int64, types.int64, types.int64))
    def run(source, target, count):
        for index in range(count):
            lanes.store(target + 64 * index, lanes.exp(lanes.load(source + 64 * index)))

    x = np.linspace(-86.9, 87.9, 1 << 16, dtype=np.float32)
    y = np.empty_like(x)
    run(x.ctypes.data, y.ctypes.data, len(x) // 16)
    assert np.abs(y / np.exp(x.astype(np.float64)) - 1).max() < 3e-7
    edges = np.array([-np.inf, -1e30, -87.5, 0.0] * 4, np.float32)
    run(edges.ctypes.data, y.ctypes.data, 1)
    np.testing.assert_array_equal(y[:4], [0.0, 0.0, 0.0, 1.0])
