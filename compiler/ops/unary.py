"""Elementwise operators of one input.

Transcendental primitives are computed in double precision and rounded once; what is composed of them is composed in the input's
type, in the order Caffe2 uses, so that overflow shows where it does there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cortado.compiler.ops.checks import FLOATS, INTS, NUMBERS, arity, one_of
from cortado.compiler.ops.record import Attrs, Infer, Op, require

Function = Callable[[np.ndarray, Attrs], Any]
BOOL = frozenset({"bool"})


def primitive(function: Callable[[np.ndarray], Any], x: np.ndarray) -> np.ndarray:
    """function in double precision, rounded to x's type."""
    return np.asarray(function(x.astype(np.float64))).astype(x.dtype)


def exp(x: np.ndarray) -> np.ndarray:
    return primitive(np.exp, x)


def error_function(x: np.ndarray) -> np.ndarray:
    return primitive(lambda wide: np.frompyfunc(math.erf, 1, 1)(wide), x)


def clip(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """min(max(x, low), high): NaN passes, high wins where low > high."""
    lower, upper = x.dtype.type(low), x.dtype.type(high)
    raised = np.where(x < lower, lower, x)
    return np.where(raised > upper, upper, raised)


def _sigmoid(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    return 1 / (1 + exp(-x))


def _elu(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    below = x.dtype.type(attrs["alpha"]) * (exp(np.minimum(x, 0)) - 1)
    return np.where(x < 0, below, x)


def _selu(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    alpha, scale = x.dtype.type(attrs["alpha"]), x.dtype.type(attrs["scale"])
    return scale * np.where(x > 0, x, alpha * exp(np.minimum(x, 0)) - alpha)


def _gelu(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    root = x.dtype.type(math.sqrt(0.5))
    return x * (x.dtype.type(0.5) * (1 + error_function(x * root)))


def _gelu_tanh(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    """Hendrycks and Gimpel's approximation: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    inner = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * (x * x * x))
    return x.dtype.type(0.5) * x * (1 + primitive(np.tanh, inner))


def _hard_sigmoid(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    return clip(x.dtype.type(attrs["alpha"]) * x + x.dtype.type(attrs["beta"]), 0, 1)


def _logit(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    eps = x.dtype.type(attrs["eps"])
    inside = clip(x, eps, 1 - eps)
    return primitive(np.log, inside / (1 - inside))


def _sign(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    """0 for NaN."""
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)


def _double(function: Callable[[np.ndarray], Any]) -> Function:
    return lambda x, attrs: primitive(function, x)


def _infer(allowed: frozenset[str], check: Callable[[Attrs], None] | None) -> Infer:
    def infer(types: Any, attrs: Attrs) -> Any:
        arity(types, 1)
        one_of(types[0].dtype, allowed)
        if check is not None:
            check(attrs)
        return (types[0],)

    return infer


def _unary(
    name: str,
    function: Function,
    attrs: Mapping[str, str] | None = None,
    allowed: frozenset[str] = FLOATS,
    exact: bool = False,
    portable: bool = True,
    check: Callable[[Attrs], None] | None = None,
) -> Op:
    def reference(arrays: Any, attributes: Attrs) -> Any:
        return (np.asarray(function(arrays[0], attributes)).astype(arrays[0].dtype, copy=False),)

    return Op(name, _infer(allowed, check), reference, attrs or {}, exact, portable)


def _transcendental(name: str, function: Function, attrs: Mapping[str, str] | None = None, **more: Any) -> Op:
    return _unary(name, function, attrs, portable=False, **more)


def _check_eps(attrs: Attrs) -> None:
    require(0 <= attrs["eps"] < 0.5, f"eps={attrs['eps']} must be at least 0 and below 0.5")


def _check_bounds(attrs: Attrs) -> None:
    require(
        not math.isnan(attrs["lo"]) and not math.isnan(attrs["hi"]), f"the bounds {attrs['lo']} and {attrs['hi']} must be numbers"
    )


_ALPHA = {"alpha": "slope or factor below zero"}

OPS: tuple[Op, ...] = (
    _unary("relu", lambda x, a: np.where(x < 0, x.dtype.type(0), x), exact=True, allowed=NUMBERS),
    _unary(
        "clip",
        lambda x, a: clip(x, a["lo"], a["hi"]),
        {"lo": "lower bound, may be -inf", "hi": "upper bound, may be inf; wins where lo > hi"},
        exact=True,
        check=_check_bounds,
    ),
    _unary("leaky_relu", lambda x, a: np.where(x < 0, x * x.dtype.type(a["alpha"]), x), _ALPHA),
    _unary(
        "thresholded_relu",
        lambda x, a: np.where(x > x.dtype.type(a["alpha"]), x, x.dtype.type(0)),
        {"alpha": "x where x > alpha, else 0"},
        exact=True,
    ),
    _transcendental("elu", _elu, _ALPHA),
    _transcendental("selu", _selu, {"alpha": "factor of exp(x) - 1", "scale": "factor of everything"}),
    _transcendental("sigmoid", _sigmoid),
    _transcendental("tanh", _double(np.tanh)),
    _transcendental("exp", _double(np.exp)),
    _transcendental("log", _double(np.log)),
    _unary("sqrt", lambda x, a: np.sqrt(x)),
    _unary("rsqrt", lambda x, a: 1 / np.sqrt(x)),
    _transcendental("cbrt", _double(np.cbrt)),
    _unary("abs", lambda x, a: np.abs(x), exact=True, allowed=NUMBERS),
    _unary("negative", lambda x, a: np.negative(x), exact=True, allowed=NUMBERS),
    _unary("sign", _sign, exact=True, allowed=NUMBERS),
    _unary("square", lambda x, a: x * x, allowed=NUMBERS),
    _unary("cube", lambda x, a: x * x * x, allowed=NUMBERS),
    _unary("reciprocal", lambda x, a: 1 / x),
    _unary("floor", lambda x, a: np.floor(x), exact=True),
    _unary("ceil", lambda x, a: np.ceil(x), exact=True),
    _unary("round_even", lambda x, a: np.rint(x), exact=True),
    _transcendental("softplus", lambda x, a: primitive(np.log, exp(x) + 1)),
    _unary("softsign", lambda x, a: x / (1 + np.abs(x))),
    _transcendental("swish", lambda x, a: x / (1 + exp(-x))),
    _unary("hard_sigmoid", _hard_sigmoid, {"alpha": "slope", "beta": "value at 0; the line is clipped to 0..1"}),
    _transcendental("erf", lambda x, a: error_function(x)),
    _transcendental("gelu", _gelu),
    _transcendental("gelu_tanh", _gelu_tanh),
    _transcendental("logit", _logit, {"eps": "x is clipped to eps..1-eps first"}, check=_check_eps),
    _transcendental("sin", _double(np.sin)),
    _transcendental("cos", _double(np.cos)),
    _transcendental("tan", _double(np.tan)),
    _transcendental("asin", _double(np.arcsin)),
    _transcendental("acos", _double(np.arccos)),
    _transcendental("atan", _double(np.arctan)),
    _transcendental("sinh", _double(np.sinh)),
    _transcendental("cosh", _double(np.cosh)),
    _unary("logical_not", lambda x, a: np.logical_not(x), allowed=BOOL, exact=True),
    _unary("bitwise_not", lambda x, a: np.invert(x), allowed=INTS | BOOL, exact=True),
)
