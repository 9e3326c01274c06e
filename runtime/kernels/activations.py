"""Activation functions over `Lanes`, and the numbers by which kernels know them."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import compiler
from .lanes import add, div, exp, fma, larger, mul, splat, sub

IDENTITY, SILU, GELU_TANH, GELU_ERF, RELU = range(5)

ACTIVATIONS = {
    "none": IDENTITY,
    "silu": SILU,
    "gelu_tanh": GELU_TANH,
    "gelu": GELU_ERF,
    "relu": RELU,
}
"""Names as torch knows them; ``gelu`` is the exact one, by erf."""

_ZERO, _ONE, _TWO, _HALF = (np.float32(value) for value in (0.0, 1.0, 2.0, 0.5))
_GELU_SCALE = np.float32(0.7978845608)  # sqrt(2 / pi)
_GELU_CUBE = np.float32(0.044715)
_SQRT_HALF = np.float32(0.7071067812)

# erfc(z) = t * exp(-z*z + P(t)), t = 1 / (1 + z/2): Numerical Recipes' Chebyshev fit, relative error below 1.2e-7.
_ERFC = tuple(
    np.float32(value)
    for value in (0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196,
                  1.00002368, -1.26551223)
)  # fmt: skip


@compiler.inlined
def tanh(x: Any) -> Any:
    """Hyperbolic tangent as 1 - 2 / (e**2x + 1); absolute error below 3e-7."""
    return sub(splat(_ONE), div(splat(_TWO), add(exp(mul(x, splat(_TWO))), splat(_ONE))))


@compiler.inlined
def _erf(x: Any) -> Any:
    z = larger(x, sub(splat(_ZERO), x))
    t = div(splat(_ONE), fma(z, splat(_HALF), splat(_ONE)))
    p = splat(_ERFC[0])
    p = fma(p, t, splat(_ERFC[1]))
    p = fma(p, t, splat(_ERFC[2]))
    p = fma(p, t, splat(_ERFC[3]))
    p = fma(p, t, splat(_ERFC[4]))
    p = fma(p, t, splat(_ERFC[5]))
    p = fma(p, t, splat(_ERFC[6]))
    p = fma(p, t, splat(_ERFC[7]))
    p = fma(p, t, splat(_ERFC[8]))
    p = fma(p, t, splat(_ERFC[9]))
    tail = mul(t, exp(sub(p, mul(z, z))))
    sign = div(x, larger(z, splat(np.float32(1e-30))))
    return mul(sign, sub(splat(_ONE), tail))


@compiler.inlined
def activate(kind: int, x: Any) -> Any:
    """Apply one of `ACTIVATIONS` to every lane."""
    result = x
    if kind == SILU:
        result = div(x, add(splat(_ONE), exp(sub(splat(_ZERO), x))))
    elif kind == GELU_TANH:
        inner = mul(splat(_GELU_SCALE), mul(x, fma(mul(x, x), splat(_GELU_CUBE), splat(_ONE))))
        result = mul(mul(splat(_HALF), x), add(splat(_ONE), tanh(inner)))
    elif kind == GELU_ERF:
        result = mul(mul(splat(_HALF), x), add(splat(_ONE), _erf(mul(x, splat(_SQRT_HALF)))))
    elif kind == RELU:
        result = larger(x, splat(_ZERO))
    return result
