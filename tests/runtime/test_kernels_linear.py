"""Packed linear layers against float64, and the same bits whatever shares a call."""

import numpy as np
import pytest
import torch
from flexpipe.runtime.kernels.arrays import KernelInputError
from flexpipe.runtime.kernels.linear import pack_gated, pack_linear
from flexpipe.runtime.kernels.threads import get_threads, set_threads


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = get_threads()
    yield
    set_threads(before)


def _normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def _bits(array):
    return np.ascontiguousarray(array).view(np.int32)


SHAPES = [(1, 1), (7, 5), (16, 16), (33, 64), (100, 17), (192, 576)]


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 12, 13, 31, 200])
def test_a_layer_equals_its_float64_reference(outputs, inputs, rows):
    weight, bias, x, residual = (
        _normal(*shape) for shape in ((outputs, inputs), (outputs,), (rows, inputs), (rows, outputs))
    )
    y = pack_linear(weight, bias)(x, residual=residual)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64) + bias + residual
    np.testing.assert_allclose(y, expected, atol=2e-6 * inputs + 1e-6, rtol=1e-5)


@pytest.mark.parametrize("activation", ["none", "silu", "gelu", "gelu_tanh", "relu"])
def test_activations_equal_those_of_torch(activation):
    weight, gate, x = _normal(50, 40), _normal(50, 40, seed=1), _normal(9, 40)
    functions = {
        "none": lambda z: z,
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
        "relu": torch.relu,
    }
    up, gated = (torch.from_numpy(x).double() @ torch.from_numpy(w).double().T for w in (weight, gate))
    np.testing.assert_allclose(pack_linear(weight, activation=activation)(x), functions[activation](up), atol=2e-5)
    both = functions[activation](gated) * up
    np.testing.assert_allclose(pack_gated(gate, weight, activation)(x), both, atol=3e-4, rtol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_has_the_same_bits_in_any_batch_at_any_place_on_any_threads(gated, threads):
    weight, up, bias, x = _normal(90, 150), _normal(90, 150, seed=1), _normal(90), _normal(230, 150)
    layer = pack_gated(weight, up, "silu", bias) if gated else pack_linear(weight, bias)
    set_threads(1)
    alone = np.concatenate([layer(x[row : row + 1]) for row in range(len(x))])
    set_threads(threads)
    for rows in [*range(1, 40), 97, 230]:
        start = (rows * 7) % (len(x) - rows + 1)
        np.testing.assert_array_equal(_bits(layer(x[start : start + rows])), _bits(alone[start : start + rows]))


def test_torch_tensors_are_read_and_written_in_place():
    weight, x = torch.from_numpy(_normal(64, 32)), torch.from_numpy(_normal(6, 3 * 32))
    layer = pack_linear(weight)
    middle = x[:, 32:64]
    total = torch.from_numpy(_normal(6, 64))
    expected = middle.double() @ weight.double().T + total
    result = layer(middle, out=total, residual=total)
    assert result is total
    torch.testing.assert_close(total.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_leading_axis_of_one_stays_and_heads_are_taken_as_one_row():
    weight, x = torch.from_numpy(_normal(20, 24)), torch.from_numpy(_normal(5, 24))
    layer = pack_linear(weight)
    plain = layer(x)
    assert torch.equal(layer(x[None], residual=torch.zeros(1, 5, 20)), plain[None])
    assert torch.equal(layer(x.view(5, 3, 8)), plain)
    wide = torch.from_numpy(_normal(1, 5, 40))
    wide[..., 8:32] = x
    assert torch.equal(layer(wide[..., 8:32]), plain[None])


def test_no_rows_give_no_rows():
    assert pack_linear(_normal(4, 3))(_normal(0, 3)).shape == (0, 4)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda layer: layer(_normal(2, 3).astype(np.float64)), "float32"),
        (lambda layer: layer(torch.zeros(2, 3, dtype=torch.bfloat16)), "float32, not torch.bfloat16"),
        (lambda layer: layer(_normal(4, 5, 3)[::2, :3]), "evenly apart"),
        (lambda layer: layer(_normal(2, 4)), "rows of 3 numbers"),
        (lambda layer: layer(_normal(3, 2).T), "dense"),
        (lambda layer: layer(_normal(2, 3), out=_normal(3, 4)), "2 rows, but out 3"),
        (lambda _: pack_linear(_normal(2, 3), activation="swish"), "unknown activation"),
        (lambda _: pack_gated(_normal(2, 3), _normal(3, 3)), "one shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(KernelInputError, match=sentence):
        call(pack_linear(_normal(4, 3)))
