"""`strict`: what would be computed in a slow generic way is refused, every node of it by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lowered import made_target

import cortado
from cortado.backends.targets import find_target
from cortado.cli import main as cli_main
from cortado.compiler.kernels.generic import GENERIC, SMALL, generic_if
from cortado.compiler.lower import lower
from cortado.compiler.optimize import optimize
from cortado.compiler.pipeline import generic_nodes
from cortado.proto.caffe2 import NetDef, Operator, operator, serialize_net

RNG = np.random.default_rng(6)


def loaded(operators: Sequence[Operator], inputs: dict[str, Any], outputs: Sequence[str], **weights: np.ndarray) -> cortado.Graph:
    data = serialize_net(NetDef("net", tuple(operators), tuple(inputs), tuple(outputs)))
    return cortado.load(data, init=weights, inputs=inputs)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def moves() -> cortado.Graph:
    return loaded([operator("Slice", ["x"], ["y"], starts=[0, 3], ends=[-1, 4])], {"x": (9000, 8)}, ["y"])


def weights_from_data() -> cortado.Graph:
    made = operator("Sigmoid", ["w"], ["made"])
    return loaded([made, operator("FC", ["x", "made", "b"], ["y"])], {"x": (4, 300), "w": (70, 300)}, ["y"], b=numbers(70))


def narrow_groups() -> cortado.Graph:
    conv = operator("Conv", ["x", "w"], ["y"], kernel=3, pad=1, group=8)
    return loaded([conv], {"x": (1, 24, 30, 30)}, ["y"], w=numbers(24, 3, 3, 3))


def columns_summed() -> cortado.Graph:
    sliced = operator("Slice", ["x"], ["z"], starts=[0, 0, 3], ends=[-1, -1, 4])
    return loaded([sliced, operator("ReduceSum", ["z"], ["y"], axes=[1], keepdims=0)], {"x": (50, 900, 8)}, ["y"])


GRAPHS = {
    "single_moves": moves,
    "packed_each_run": weights_from_data,
    "narrow_groups": narrow_groups,
    "across_rows": columns_summed,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_generic_way_is_named_with_what_avoids_it(name: str) -> None:
    graph = GRAPHS[name]()
    for target in ("x86-64-v3", "cortex-a76"):
        with pytest.raises(cortado.StrictError, match=r"strict: .* slow generic way") as error:
            cortado.compile(graph, target=target, strict=True)
        assert (
            len(error.value.nodes) == 1 and GENERIC[name].does in str(error.value) and GENERIC[name].avoid in error.value.nodes[0]
        )


def test_all_nodes_are_in_one_error() -> None:
    convs = [operator("Conv", ["x", w], [y], kernel=3, pad=1, group=8) for w, y in (("v", "first"), ("w", "second"))]
    graph = loaded(convs, {"x": (1, 24, 30, 30)}, ["first", "second"], v=numbers(24, 3, 3, 3), w=numbers(24, 3, 3, 3))
    with pytest.raises(cortado.StrictError, match=r"2 nodes(.|\n)*first(.|\n)*second") as error:
        cortado.compile(graph, strict=True)
    assert len(error.value.nodes) == 2


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3", "x86-64-v4", "cortex-a76"])
def test_groups_that_share_vectors_are_not_generic(target: str) -> None:
    conv = operator("Conv", ["x", "w"], ["y"], kernel=3, pad=1, group=8)
    graph = loaded([conv], {"x": (1, 16, 30, 30)}, ["y"], w=numbers(16, 2, 3, 3))
    assert cortado.compile(graph, target=target, strict=True).outputs["y"].shape == (1, 16, 30, 30)


def test_networks_without_generic_ways_compile() -> None:
    conv = operator("Conv", ["x", "w"], ["c"], kernel=3, pad=1)
    layers = [conv, operator("Relu", ["c"], ["c"]), operator("Softmax", ["c"], ["y"], axis=1)]
    graph = loaded(layers, {"x": (1, 16, 30, 30)}, ["y"], w=numbers(16, 16, 3, 3))
    assert cortado.compile(graph, strict=True).outputs["y"].shape == (1, 16, 30, 30)


def test_what_is_small_is_no_obstacle() -> None:
    assert generic_if("single_moves", True, SMALL + 1) == "single_moves" and not generic_if("single_moves", True, SMALL)
    graph = loaded([operator("Slice", ["x"], ["y"], starts=[0, 3], ends=[-1, 4])], {"x": (90, 8)}, ["y"])
    assert generic_nodes(lower(optimize(graph), made_target(256))) == []


@pytest.mark.parametrize("name", GRAPHS)
def test_a_core_without_vectors_has_no_faster_way(name: str) -> None:
    target = find_target("cortex-m4")
    assert generic_nodes(lower(optimize(GRAPHS[name]()), target)) == []


def test_the_command_line_fails_a_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = NetDef("net", (operator("Slice", ["x"], ["y"], starts=[0, 3], ends=[-1, 4]),), ("x",), ("y",))
    path = tmp_path / "net.pb"
    path.write_bytes(serialize_net(net))
    arguments = ["compile", str(path), "--input", "x=9000,8", "--output", str(tmp_path / "out")]
    assert cli_main.invoke([*arguments, "--strict", "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "StrictError" and len(error["nodes"]) == 1 and "y" in error["nodes"][0]
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    assert cli_main.invoke(arguments) == 0
