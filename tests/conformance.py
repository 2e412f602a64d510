"""The recorded Caffe2 cases as a suite that any executor can run: the reference, the kernel interpreter, compiled code.

for case in iter_cases(folder, "Conv"):
    check(case, executor)          # executor(graph, feeds) -> {output name: array}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

import cortado
from cortado.compiler.graph import Graph
from cortado.compiler.importers.caffe2 import import_net, plan_net
from cortado.compiler.types import Quant, TensorType
from cortado.proto.caffe2 import NetDef, Operator, parse_net, serialize_net

Executor = Callable[[Graph, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
EXCLUSIONS = Path(__file__).with_name("conformance_exclusions.txt")


@dataclass(frozen=True)
class Tolerance:
    """|got - want| <= atol + rtol * |want| + atol_max * max|want|."""

    atol: float = 0.0
    rtol: float = 0.0
    atol_max: float = 0.0


@dataclass(frozen=True)
class Case:
    """One recorded operator call or mini-net.

    net: the net to load, with `constants` as its weights and `feeds` as inputs. outputs: blob -> array. must_fail: Caffe2 refuses it.
    quants: the quantization of inputs and weights that have one.
    """

    family: str
    number: str
    form: str
    net: NetDef
    init: bytes | None
    constants: Mapping[str, np.ndarray]
    feeds: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    must_fail: bool
    tolerance: Tolerance
    quants: Mapping[str, Quant] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.family} {self.number} ({self.form})"


def operators(folder: Path) -> list[str]:
    """Names of the recorded operators. folder: conformance/caffe2 of the reference data."""
    return sorted(path.stem for path in folder.glob("*.npz") if path.stem != "nets")


def iter_cases(folder: Path, operator: str, everything: bool = False) -> Iterator[Case]:
    """The recorded cases of one operator, or of "nets", without the excluded ones unless everything is asked for."""
    skipped = {} if everything else exclusions()
    arrays = _arrays(folder, operator)
    for number in sorted({name.partition(".")[0] for name in arrays}):
        if (operator, "*") in skipped or (operator, number) in skipped:
            continue
        own = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{number}.")}
        yield _net_case(folder, number, own) if operator == "nets" else _operator_case(folder, operator, number, own)


def exclusions(path: Path = EXCLUSIONS, executor: str = "") -> dict[tuple[str, str], str]:
    """(operator, number or "*") -> reason. One line each: operator, numbers or *, a colon, the reason.

    Lines that begin with `executor/` are for that executor alone; without one those for all.
    """
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line:
            names, _, reason = line.partition(":")
            operator, *numbers = names.split()
            whose, _, operator = operator.rpartition("/")
            assert numbers and reason.strip(), f"{path.name}: {line!r} needs numbers (or *) and a reason"
            if whose == executor:
                found.update({(operator, number): reason.strip() for number in numbers})
    return found


def check(case: Case, executor: Executor) -> None:
    """AssertionError where the case does not come out as recorded."""
    if case.must_fail:
        try:
            executor(load_case(case), case.feeds)
        except cortado.CortadoError as error:
            assert str(error).strip(), f"{case}: an error without words"
            return
        raise AssertionError(f"{case}: Caffe2 refuses this, but it loaded and ran")
    got = executor(load_case(case), case.feeds)
    for name, want in case.outputs.items():
        problem = difference(got[name], want, case.tolerance)
        assert not problem, f"{case}: output '{name}': {problem}"


def load_case(case: Case) -> Graph:
    if case.quants:
        types = {name: TensorType(array.shape, array.dtype.name, case.quants.get(name)) for name, array in case.feeds.items()}
        plan = plan_net(case.net, list(case.outputs) or list(case.net.external_outputs), str(case))
        return import_net(plan, case.constants, types, case.quants)
    shapes = {name: (array.shape, array.dtype.name) for name, array in case.feeds.items()}
    init = case.init if case.init is not None else dict(case.constants)
    outputs = list(case.outputs) or list(case.net.external_outputs)
    return cortado.load(serialize_net(case.net), init=init, inputs=shapes, outputs=outputs)


def difference(got: np.ndarray, want: np.ndarray, tolerance: Tolerance) -> str:
    """What is wrong with got, or "" where it is within the tolerance. Exact means bit-equal up to the sign of zero."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if want.dtype.kind != "f":
        wrong = np.argwhere(got != want)
        return f"{len(wrong)} of {want.size} values differ, first at {wrong[0].tolist()}" if len(wrong) else ""
    with np.errstate(all="ignore"):
        same = (got == want) | (np.isnan(got) & np.isnan(want))
        finite = np.abs(want[np.isfinite(want)])
        allowed = tolerance.atol + tolerance.rtol * np.abs(want) + tolerance.atol_max * (finite.max() if finite.size else 0)
        error = np.abs(got.astype(np.float64) - want.astype(np.float64))
        good = same | (np.isfinite(want) & np.isfinite(got) & (error <= allowed))
    if good.all():
        return ""
    at = tuple(np.argwhere(~good)[0])
    return f"{(~good).sum()} of {want.size} values differ, first at {[int(i) for i in at]}: {got[at]!r} instead of {want[at]!r}"


# --- reading ---


@lru_cache(maxsize=2)
def _arrays(folder: Path, operator: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{operator}.npz") as archive:
        return {name: archive[name] for name in archive.files}


@cache
def _table(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@cache
def _facts(folder: Path, operator: str) -> dict:
    return {**_table(folder, "cases.json")[operator]}


@cache
def _tolerance(folder: Path, operator: str) -> Tolerance:
    row = _table(folder, "tolerances.json").get(operator, {})
    return Tolerance(row.get("atol", 0.0), row.get("rtol", 0.0), row.get("atol_max", 0.0))


def _operator_case(folder: Path, operator: str, number: str, own: Mapping[str, np.ndarray]) -> Case:
    """A net of the one operator. Inputs that deployed nets hold as constants are given as weights."""
    op = _single(own["op"].tobytes())
    facts = _facts(folder, operator)
    given = {name: own[f"in.{k}"] for k, name in enumerate(op.inputs) if f"in.{k}" in own}
    fixed = {op.inputs[k] for k in facts.get("const_inputs", ()) if k < len(op.inputs) and op.inputs[k] != op.inputs[0]}
    fixed |= {op.inputs[0]} if 0 in facts.get("const_inputs", ()) and op.inputs else set()
    return Case(
        family=operator,
        number=number,
        form=facts["cases"][number]["form"],
        net=NetDef(operator, (op,), tuple(dict.fromkeys(op.inputs)), tuple(dict.fromkeys(op.outputs))),
        init=None,
        constants={name: array for name, array in given.items() if name in fixed},
        feeds={name: array for name, array in given.items() if name not in fixed},
        outputs={name: own[f"out.{k}"] for k, name in enumerate(op.outputs) if f"out.{k}" in own},
        must_fail=str(own["expected"]) == "error",
        tolerance=_tolerance(folder, operator),
        quants={name: _quant(own, f"in.{k}") for k, name in enumerate(op.inputs) if f"in.{k}.scale" in own},
    )


def _quant(own: Mapping[str, np.ndarray], key: str) -> Quant:
    return Quant((float(own[f"{key}.scale"]),), (int(own[f"{key}.zero_point"]),))


def _single(data: bytes) -> Operator:
    """An OperatorDef is what field 2 of a NetDef holds."""
    size, prefix = len(data), bytearray()
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    return parse_net(b"\x12" + bytes([*prefix, size]) + data, "recorded operator").operators[0]


def _net_case(folder: Path, number: str, own: Mapping[str, np.ndarray]) -> Case:
    net = parse_net(own["predict"].tobytes(), f"recorded net {number}")
    return Case(
        family="nets",
        number=number,
        form=_facts(folder, "nets")["cases"][number]["template"],
        net=net,
        init=own["init"].tobytes(),
        constants={},
        feeds={name[3:]: array for name, array in own.items() if name.startswith("in.")},
        outputs={name[4:]: array for name, array in own.items() if name.startswith("out.")},
        must_fail=False,
        tolerance=_tolerance(folder, "nets"),
    )
