"""Seeded damage to nets: of their bytes, and of their records (extreme numbers, wrong kinds, exchanged names, lost parts)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cortado.proto.caffe2 import Argument, NetDef, Operator, serialize_net

NUMBERS = (0, 1, -1, 2, 3, -2, 7, 255, 1 << 15, 1 << 24, 2**31 - 1, -(2**31), 2**31, 1 << 40, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 3e38, -3e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (b"", b"NHWC", b"NCHW", b"CHWN", b"reflect", b"\xff\xfe", b"C", b"HW")


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four small accidents."""
    work = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not work:
            break
        at = rng.randrange(len(work))
        kind = rng.randrange(6)
        if kind == 0:
            work[at] = rng.randrange(256)
        elif kind == 1:
            work[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del work[at:]
        elif kind == 3:
            del work[at : at + rng.randint(1, 8)]
        elif kind == 4:
            work[at:at] = rng.randbytes(rng.randint(1, 8))
        else:
            other = rng.randrange(len(work))
            work[at : at + 16] = work[other : other + 16]
    return bytes(work)


def damaged_net(net: NetDef, rng: random.Random) -> bytes:
    """The net with one to three of its parts made wrong, serialized."""
    for _ in range(rng.randint(1, 3)):
        net = rng.choice(_NET_DAMAGES)(net, rng)
    return serialize_net(net)


def _one_operator(net: NetDef, rng: random.Random) -> NetDef:
    if not net.operators:
        return net
    at = rng.randrange(len(net.operators))
    changed = rng.choice(_OPERATOR_DAMAGES)(net.operators[at], rng)
    return replace(net, operators=(*net.operators[:at], changed, *net.operators[at + 1 :]))


def _lose_operator(net: NetDef, rng: random.Random) -> NetDef:
    at = rng.randrange(len(net.operators) + 1)
    return replace(net, operators=net.operators[:at] + net.operators[at + 1 :])


def _shuffle(net: NetDef, rng: random.Random) -> NetDef:
    return replace(net, operators=tuple(rng.sample(net.operators, len(net.operators))))


def _outputs(net: NetDef, rng: random.Random) -> NetDef:
    names = [name for op in net.operators for name in (*op.inputs, *op.outputs)] or ["x"]
    return replace(net, external_outputs=tuple(rng.choices(names, k=rng.randrange(3))))


def _argument(op: Operator, rng: random.Random) -> Operator:
    name = rng.choice([*op.args, "axis", "order", "group", "shape", "dims", "pads", "kernel", "strides", "is_test", "broadcast"])
    return replace(op, args={**op.args, name: rng.choice(_ARGUMENTS)(op.args.get(name, Argument()), rng)})


def _nudged(old: Argument, rng: random.Random) -> Argument:
    if len(old.ints):
        ints = old.ints.copy()
        ints[rng.randrange(len(ints))] = rng.choice(NUMBERS)
        return replace(old, ints=ints)
    return replace(old, i=(old.i or 0) + rng.choice((-2, -1, 1, 2)))


_ARGUMENTS: tuple[Callable[[Argument, random.Random], Argument], ...] = (
    _nudged,
    lambda old, rng: Argument(i=rng.choice(NUMBERS)),
    lambda old, rng: Argument(f=rng.choice(FLOATS)),
    lambda old, rng: Argument(s=rng.choice(TEXTS)),
    lambda old, rng: Argument(ints=np.array(rng.choices(NUMBERS, k=rng.randrange(7)), np.int64)),
    lambda old, rng: Argument(floats=np.array(rng.choices(FLOATS, k=rng.randrange(5)), np.float32)),
    lambda old, rng: Argument(ints=old.ints[: rng.randrange(len(old.ints) + 1)]),
    lambda old, rng: Argument(),
)


def _lose_argument(op: Operator, rng: random.Random) -> Operator:
    lost = rng.choice([*op.args, ""])
    return replace(op, args={name: value for name, value in op.args.items() if name != lost})


def _rename(op: Operator, rng: random.Random) -> Operator:
    names = [*op.inputs, *op.outputs, "", "nowhere"]
    inputs = tuple(rng.choice(names) if rng.random() < 0.4 else name for name in op.inputs)
    return replace(op, inputs=inputs, outputs=op.outputs if rng.random() < 0.7 else tuple(rng.choice(names) for _ in op.outputs))


def _count(op: Operator, rng: random.Random) -> Operator:
    if rng.random() < 0.5:
        return replace(op, inputs=rng.choice([op.inputs[:-1], (*op.inputs, *op.inputs[:1]), ()]))
    return replace(op, outputs=rng.choice([op.outputs[:-1], (*op.outputs, "extra"), ()]))


def _type(op: Operator, rng: random.Random) -> Operator:
    return replace(
        op, type=rng.choice(("Relu", "Concat", "Reshape", "Conv", "FC", "Split", "Sum", "Transpose", "Nonsense", "Alias"))
    )


_OPERATOR_DAMAGES = (_argument, _argument, _argument, _lose_argument, _rename, _count, _type)
_NET_DAMAGES = (_one_operator, _one_operator, _one_operator, _one_operator, _lose_operator, _shuffle, _outputs)
