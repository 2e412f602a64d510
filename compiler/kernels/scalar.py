"""Elementwise operators on recorded values: what `pointwise` kernels and fused epilogues are made of.

A value is a scalar or a vector of any number of lanes. Truth values are i1 lanes and 16-bit floats are float32: `from_memory` makes
them of what was loaded, `to_memory` makes what is stored. Float operators take f32 and, where no transcendental is involved, f64.

NaN passes through relu, clip and leaky_relu; -0.0 stays -0.0 in relu.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cortado.compiler.builder import KernelBuilder, Val
from cortado.compiler.graph import Node
from cortado.compiler.kernels import math, power, trigonometry
from cortado.compiler.lang import SCALAR_OF, Type
from cortado.errors import UnsupportedError

HALVES = frozenset({"float16", "bfloat16"})
UNSIGNED = frozenset({"uint8", "uint16"})
# what goes through `math`, `power` or `trigonometry`
FLOAT32_ONLY = frozenset(
    "exp log tanh sigmoid swish erf gelu gelu_tanh softplus elu selu logit sinh cosh sin cos tan asin acos atan cbrt pow".split()
)
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


def emit_op(
    k: KernelBuilder, name: str, args: Sequence[Val], attrs: Mapping[str, Any] = MappingProxyType({}), unsigned: bool = False
) -> Val:
    """Record one elementwise operator of the graph vocabulary (all but cast) and return its value.

    args: values of one type (`where`: a truth value, then two of one type); unsigned: whether integer ones are unsigned.
    Comparisons and logical operators give truth values. Raises ValueError for a name it does not know.
    """
    if name in COMPARISONS:
        return _compare(k, name, args[0], args[1], unsigned)
    if name in _LOGICAL:
        a, b = (truth(k, v) for v in args)
        return k.binary(_LOGICAL[name], a, b)
    if name in _BITWISE:
        return k.binary(_BITWISE[name], *args)
    if name in ("maximum", "minimum"):
        return _extremum(k, name == "maximum", args[0], args[1], unsigned)
    if name == "div":
        return args[0] / args[1] if args[0].type.is_float else _integer_div(k, args[0], args[1], unsigned)
    if name == "remainder":
        return args[0] - _integer_div(k, args[0], args[1], unsigned) * args[1]
    if unsigned and name in ("relu", "abs"):
        return args[0]
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](k, *args)
    if name in _WITH_ATTRS:
        function, names = _WITH_ATTRS[name]
        return function(k, *args, *(attrs[n] for n in names))
    raise ValueError(f"no elementwise operator {name!r}")


def require_float32(node: Node, dtype: str) -> None:
    """Raise UnsupportedError where a kernel that exists for float32 alone meets another type."""
    if dtype != "float32":
        line = f"{node.op} {node.name}: {dtype}"
        raise UnsupportedError(f"{line} has no kernel; cast to float32 before it", [line])


def known_ops() -> frozenset[str]:
    """Names that `emit_op` takes."""
    return frozenset((*COMPARISONS, *_LOGICAL, *_BITWISE, "maximum", "minimum", "div", "remainder", *_FUNCTIONS, *_WITH_ATTRS))


# --- values in memory and in registers ---


def register_scalar(dtype: str) -> str:
    """The scalar type of a dtype's values in registers (bool: of its bytes)."""
    return "f32" if dtype in HALVES else SCALAR_OF[dtype]


def from_memory(k: KernelBuilder, value: Val, dtype: str) -> Val:
    """A loaded value as operators take it: bool bytes become truth values, 16-bit floats float32."""
    if dtype in HALVES:
        return k.convert(value, Type("f32", value.type.lanes), "fpext")
    return truth(k, value) if dtype == "bool" else value


def to_memory(k: KernelBuilder, value: Val, dtype: str) -> Val:
    """A value as it is stored: truth values become bytes of 0 and 1, 16-bit floats are rounded."""
    if dtype in HALVES:
        return k.convert(value, Type(SCALAR_OF[dtype], value.type.lanes), "fptrunc")
    return k.convert(value, Type("i8", value.type.lanes), "zext") if dtype == "bool" else value


def truth(k: KernelBuilder, value: Val) -> Val:
    return value if value.type.scalar == "i1" else k.compare("ne", value, 0)


def emit_cast(k: KernelBuilder, value: Val, source: str, target: str) -> Val:
    """Convert between dtypes (keys of `types.NUMPY_DTYPE`).

    Float to integer truncates toward zero and saturates, NaN gives 0; integers keep their low bits; to bool is != 0.
    """
    if source == target:
        return value
    if target == "bool":
        return truth(k, value)
    lanes = value.type.lanes
    if target in HALVES:
        return from_memory(k, to_memory(k, emit_cast(k, value, source, "float32"), target), target)
    to = Type(register_scalar(target), lanes)
    if source == "bool":
        return k.select(value, k.const(1, to), k.zero(to))
    if value.type.is_float:
        if to == value.type:
            return value
        if to.is_float:
            return k.convert(value, to, "fpext" if _bits(to) > _bits(value.type) else "fptrunc")
        return _float_to_int(k, value, to.scalar, target in UNSIGNED)
    if to.is_float:
        return k.convert(value, to, "uitofp" if source in UNSIGNED else "sitofp")
    return _resize(k, value, to, source in UNSIGNED)


def _bits(type_: Type) -> int:
    return int(type_.scalar.lstrip("bfi"))


def _resize(k: KernelBuilder, value: Val, to: Type, unsigned: bool) -> Val:
    if _bits(to) == _bits(value.type):
        return value
    if _bits(to) < _bits(value.type):
        return k.convert(value, to, "trunc")
    return k.convert(value, to, "zext" if unsigned else "sext")


def _float_to_int(k: KernelBuilder, value: Val, to: str, unsigned: bool) -> Val:
    """Saturating; `to` is the integer's scalar type. Every number that is converted fits, as the conversion gives anything else."""
    bits = int(to.lstrip("i"))
    low, past = (0, 1 << bits) if unsigned else (-(1 << (bits - 1)), 1 << (bits - 1))
    wide = Type(to if bits > 32 else "i32", value.type.lanes)
    fits = (value > float(low)) & (value < float(past))
    whole = k.convert(k.select(fits, value, 0.0), wide, "fptosi")
    whole = k.select(value <= float(low), low, k.select(value >= float(past), past - 1, whole))
    return _resize(k, whole, Type(to, value.type.lanes), unsigned)


# --- comparisons, extrema, integers ---


def _compare(k: KernelBuilder, name: str, a: Val, b: Val, unsigned: bool) -> Val:
    if a.type.scalar == "i1":
        wide = Type("i8", a.type.lanes)
        a, b = k.convert(a, wide, "zext"), k.convert(b, wide, "zext")
    if unsigned and name not in ("eq", "ne"):
        name = f"u{name}"
    return k.compare(name, a, b)


def _extremum(k: KernelBuilder, larger: bool, a: Val, b: Val, unsigned: bool) -> Val:
    """The language's own: b where either is NaN."""
    prefix = "" if a.type.is_float else "u" if unsigned else "s"
    return k.binary(prefix + ("max" if larger else "min"), a, b)


def _integer_div(k: KernelBuilder, a: Val, b: Val, unsigned: bool) -> Val:
    """Toward zero; x / 0 is 0 and the smallest integer / -1 wraps around, so that no input traps."""
    by_zero = k.compare("eq", b, 0)
    if unsigned:
        return k.select(by_zero, 0, k.binary("udiv", a, k.select(by_zero, 1, b)))
    negated = k.compare("eq", b, -1)
    quotient = k.binary("sdiv", a, k.select(by_zero | negated, 1, b))
    return k.select(by_zero, 0, k.select(negated, 0 - a, quotient))


# --- arithmetic ---


def _relu(k: KernelBuilder, x: Val) -> Val:
    return k.max(k.zero(x.type), x)


def _clip(k: KernelBuilder, x: Val, lo: float, hi: float) -> Val:
    """min(max(x, lo), hi): hi wins where lo > hi; an infinite bound costs nothing."""
    if lo != -float("inf"):
        x = k.max(k.const(lo, x.type), x)
    return x if hi == float("inf") else k.min(k.const(hi, x.type), x)


def _leaky_relu(k: KernelBuilder, x: Val, alpha: float) -> Val:
    return k.select(x < 0.0, x * alpha, x)


def _prelu(k: KernelBuilder, x: Val, slope: Val) -> Val:
    return k.select(x > 0.0, x, x * slope)


def _thresholded_relu(k: KernelBuilder, x: Val, alpha: float) -> Val:
    return k.select(x > alpha, x, 0.0)


def _elu(k: KernelBuilder, x: Val, alpha: float) -> Val:
    return k.select(x < 0.0, math.expm1_nonpositive(k, x) * alpha, x)


def _selu(k: KernelBuilder, x: Val, alpha: float, scale: float) -> Val:
    return k.select(x > 0.0, x, math.expm1_nonpositive(k, x) * alpha) * scale


def _gelu(k: KernelBuilder, x: Val) -> Val:
    return x * ((math.erf(k, x * 0.7071067811865476) + 1.0) * 0.5)


def _gelu_tanh(k: KernelBuilder, x: Val) -> Val:
    """Hendrycks and Gimpel's approximation: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    inner = (x + x * x * x * 0.044715) * 0.7978845608028654
    return (x * 0.5) * (math.tanh(k, inner) + 1.0)


def _softplus(k: KernelBuilder, x: Val) -> Val:
    """As written, log(e^x + 1): infinite above 88.7."""
    return math.log(k, math.exp(k, x) + 1.0)


def _logit(k: KernelBuilder, x: Val, eps: float) -> Val:
    inside = _clip(k, x, eps, 1.0 - eps)
    return math.log(k, inside / (1.0 - inside))


def _sign(k: KernelBuilder, x: Val) -> Val:
    """0 for NaN."""
    one, zero = k.const(1, x.type), k.zero(x.type)
    return k.select(x > 0, one, zero) - k.select(x < 0, one, zero)


def _bitwise_not(k: KernelBuilder, x: Val) -> Val:
    return x ^ (1 if x.type.scalar == "i1" else -1)


def _hard_sigmoid(k: KernelBuilder, x: Val, alpha: float, beta: float) -> Val:
    return _clip(k, x * alpha + beta, 0.0, 1.0)


def _where(k: KernelBuilder, condition: Val, a: Val, b: Val) -> Val:
    return k.select(truth(k, condition), a, b)


def _negative(k: KernelBuilder, x: Val) -> Val:
    if not x.type.is_float:
        return 0 - x
    return _from_bits(k, _to_bits(k, x) ^ _sign_bit(x.type), x.type)


def _absolute(k: KernelBuilder, x: Val) -> Val:
    return k.virtual("abs", x) if x.type.is_float else k.max(x, 0 - x)


def _to_bits(k: KernelBuilder, x: Val) -> Val:
    return k.convert(x, Type({"f32": "i32", "f64": "i64"}[x.type.scalar], x.type.lanes), "bitcast")


def _from_bits(k: KernelBuilder, bits: Val, type_: Type) -> Val:
    return k.convert(bits, type_, "bitcast")


def _sign_bit(type_: Type) -> int:
    return -(1 << (_bits(type_) - 1))


_LOGICAL = MappingProxyType({"logical_and": "and", "logical_or": "or", "logical_xor": "xor"})
_BITWISE = MappingProxyType({"bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor"})
_FUNCTIONS: Mapping[str, Callable[..., Val]] = MappingProxyType(
    {
        "relu": _relu,
        "add": lambda k, a, b: a + b,
        "sub": lambda k, a, b: a - b,
        "mul": lambda k, a, b: a * b,
        "abs": _absolute,
        "negative": _negative,
        "square": lambda k, x: x * x,
        "reciprocal": lambda k, x: 1.0 / x,
        "cube": lambda k, x: x * x * x,
        "sign": _sign,
        "sqrt": lambda k, x: k.virtual("sqrt", x),
        "floor": lambda k, x: k.virtual("floor", x),
        "ceil": lambda k, x: k.virtual("ceil", x),
        "round_even": lambda k, x: k.virtual("round_even", x),
        "rsqrt": lambda k, x: 1.0 / k.virtual("sqrt", x),
        "exp": math.exp,
        "log": math.log,
        "tanh": math.tanh,
        "sigmoid": math.sigmoid,
        "swish": lambda k, x: x / (math.exp(k, _negative(k, x)) + 1.0),
        "erf": math.erf,
        "gelu": _gelu,
        "gelu_tanh": _gelu_tanh,
        "softplus": _softplus,
        "sinh": math.sinh,
        "cosh": math.cosh,
        "sin": trigonometry.sin,
        "cos": trigonometry.cos,
        "tan": trigonometry.tan,
        "asin": trigonometry.asin,
        "acos": trigonometry.acos,
        "atan": trigonometry.atan,
        "cbrt": power.cube_root,
        "pow": power.power,
        "bitwise_not": _bitwise_not,
        "softsign": lambda k, x: x / (k.virtual("abs", x) + 1.0),
        "prelu": _prelu,
        "where": _where,
        "logical_not": lambda k, x: truth(k, x) ^ 1,
    }
)
_WITH_ATTRS: Mapping[str, tuple[Callable[..., Val], tuple[str, ...]]] = MappingProxyType(
    {
        "clip": (_clip, ("lo", "hi")),
        "leaky_relu": (_leaky_relu, ("alpha",)),
        "thresholded_relu": (_thresholded_relu, ("alpha",)),
        "elu": (_elu, ("alpha",)),
        "selu": (_selu, ("alpha", "scale")),
        "logit": (_logit, ("eps",)),
        "hard_sigmoid": (_hard_sigmoid, ("alpha", "beta")),
    }
)
