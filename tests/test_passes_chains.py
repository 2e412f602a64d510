"""Convolutions that become one chain: where, what they compute then, and what is left of their middle tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphs import Net, assert_same_meaning, feeds_of, ops
from test_models_compiled import target_for

import cortado
from cortado.backends.targets import find_target
from cortado.compiler.graph import Graph, Value
from cortado.compiler.options import CompileOptions
from cortado.compiler.passes.fuse_chains import fuse_chains, possible_chains
from cortado.compiler.pipeline import compile_program
from cortado.compiler.reference import run_graph
from cortado.compiler.rewrite import Rewrite, Steps
from cortado.compiler.text import format_graph

V3 = find_target("x86-64-v3")
RELU = ("activation", "relu", ())


def layer(net: Net, x: Value, outputs: int, *more: Any, **attrs: Any) -> Value:
    """A convolution with bias and ReLU."""
    return net.conv(x, outputs, *more, epilogue=(("bias",), RELU), **attrs)


def block(net: Net, x: Value, wide: int, outputs: int, stride: int = 1) -> tuple[Value, Value, Value]:
    """An inverted residual without its sum: every layer's output."""
    first = layer(net, x, wide)
    second = layer(net, first, wide, 3, 1, wide, strides=(stride, stride))
    return first, second, net.conv(second, outputs)


def fused(graph: Graph, threads: int = 1, limit: int | None = None) -> Graph:
    after = fuse_chains(graph, V3, threads, Steps(limit))
    assert_same_meaning(graph, after, 1e-5)
    return after


def test_an_inverted_residual_is_one_operator() -> None:
    net = Net()
    x = net.input(1, 96, 96, 8)
    first, second, third = block(net, x, 96, 8)
    assert third.node.attrs["epilogue"] == (("bias",),)
    summed = net.op("conv", *third.node.inputs, x, **{**third.node.attrs, "epilogue": (("bias",), ("residual",))})
    after = fused(net.graph(summed))
    assert ops(after) == {"conv_chain": 1}
    node = after.outputs[0][1].node
    assert node.name == summed.node.name and node.inputs[-1] == x
    assert node.origin == tuple(f"op:{value.node.name}" for value in (first, second, summed))


def test_small_tensors_stay_as_they_are() -> None:
    net = Net()
    graph = net.graph(block(net, net.input(1, 14, 14, 8), 64, 8)[-1])
    assert fused(graph) is graph


def stem(net: Net, x: Value, wide: int, outputs: int, kernel: int = 3, stride: int = 2, **more: Any) -> Value:
    """The first layers of a network of depthwise convolutions."""
    first = layer(net, x, wide, kernel, kernel // 2, strides=(stride, stride), **more)
    return net.conv(layer(net, first, wide, 3, 1, wide), outputs)


@pytest.mark.parametrize("kernel, stride", [(3, 2), (5, 1), (7, 2), (1, 2)])
def test_first_layers_are_one_operator(kernel: int, stride: int) -> None:
    net = Net()
    after = fused(net.graph(stem(net, net.input(1, 128 * stride, 128 * stride, 3), 32, 16, kernel, stride)))
    assert ops(after) == {"conv_chain": 1}


def test_winograds_filtering_stays_apart() -> None:
    """It is faster than any chain, and makes all rows at once."""
    net = Net()
    x = net.input(1, 128, 128, 32)
    assert ops(fused(net.graph(stem(net, x, 32, 16, 3, 1)))) == {"conv": 1, "conv_chain": 1}


def test_the_first_layer_has_one_group_and_several_columns() -> None:
    for group, columns, fusable in ((1, 8, True), (2, 8, False), (1, 1, False)):
        net = Net()
        first = layer(net, net.input(1, 8, columns, 4), 6, 1, 0, group)
        graph = net.graph(net.conv(layer(net, first, 6, 3, 2, 6), 5))
        assert [len(nodes) for nodes in possible_chains(graph)] == ([3, 2] if fusable else [2])


def test_cores_of_one_multiply_add_a_cycle_fuse_what_no_cache_holds() -> None:
    """Their second cache level is larger, and chains gain less."""
    zen4 = find_target("znver4")
    for size, count in ((112, 1), (56, 0)):
        net = Net()
        graph = net.graph(stem(net, net.input(1, 2 * size, 2 * size, 3), 32, 16))
        assert ops(fuse_chains(graph, zen4, 1, Steps())).get("conv_chain", 0) == count


@pytest.mark.parametrize("wanted, expected", [(0, {"conv": 1, "conv_chain": 1}), (1, {"conv": 3})])
def test_what_somebody_else_reads_is_computed(wanted: int, expected: dict[str, int]) -> None:
    """An output's value, and one that another node reads."""
    for as_output in (True, False):
        net = Net()
        *middle, last = block(net, net.input(1, 96, 96, 8), 96, 8)
        also = middle[wanted] if as_output else net.op("exp", middle[wanted])
        after = fused(net.graph(last, also))
        assert {name: count for name, count in ops(after).items() if name != "exp"} == expected


def test_without_the_last_convolution() -> None:
    """A pool, say, wants the depthwise output whole."""
    net = Net()
    second = block(net, net.input(1, 96, 96, 8), 96, 8)[1]
    assert ops(fused(net.graph(net.op("exp", second)))) == {"conv_chain": 1, "exp": 1}


def test_runs_of_blocks_are_chains_of_their_own() -> None:
    net = Net()
    x = block(net, net.input(1, 160, 160, 8), 64, 16, 2)[-1]
    after = fused(net.graph(block(net, x, 128, 16, 2)[-1]))
    assert ops(after) == {"conv_chain": 2}


def test_threads_decide_how_many_ranges_there_are() -> None:
    net = Net()
    graph = net.graph(block(net, net.input(1, 128, 128, 8), 96, 8, 2)[-1])
    assert [fused(graph, n).outputs[0][1].node.attrs["ranges"] for n in (1, 2, 3)] == [4, 2, 3]


def test_it_counts_as_a_rewrite() -> None:
    net = Net()
    graph = net.graph(block(net, net.input(1, 96, 96, 8), 96, 8)[-1])
    assert fused(graph, limit=0) is graph
    trace: list[Rewrite] = []
    fuse_chains(graph, V3, 1, Steps(None, trace))
    assert [(entry.pass_name, entry.rule, entry.node) for entry in trace] == [
        ("fuse_chains", "fuse_chain", graph.outputs[0][1].node.name)
    ]


def test_only_compilations_for_speed() -> None:
    net = Net()
    graph = net.graph(block(net, net.input(1, 96, 96, 8), 96, 8)[-1])
    programs = {goal: compile_program(graph, V3, CompileOptions(optimize_for=goal))[0] for goal in ("speed", "size", "memory")}
    assert {goal: [step.op for step in program.steps] for goal, program in programs.items()} == {
        "speed": ["conv_chain"], "size": ["conv"] * 3, "memory": ["conv"] * 3,
    }  # fmt: skip
    assert programs["speed"].arena_bytes < programs["size"].arena_bytes
    assert sum(step.macs for step in programs["speed"].steps) == sum(step.macs for step in programs["size"].steps)


def test_a_board_without_vectors_has_no_chains() -> None:
    net = Net()
    graph = net.graph(block(net, net.input(1, 96, 96, 8), 96, 8)[-1])
    assert fuse_chains(graph, find_target("cortex-m4"), 1, Steps()) is graph


def test_text_of_a_chain_names_every_convolution() -> None:
    net = Net()
    text = format_graph(fused(net.graph(block(net, net.input(1, 96, 96, 8), 96, 8)[-1])))
    assert text.count("relu") == 2 and "conv_chain(" in text


@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_compiled(level: str) -> None:
    """Odd sizes, several images, strides, a residual, a first layer of 3x3; any number of threads gives the same bits."""
    net = Net(3)
    x = stem(net, net.input(2, 189, 193, 3), 34, 3)
    first = block(net, x, 66, 9, 2)[-1]
    second = block(net, first, 54, 9)[-1]
    summed = net.op("conv", *second.node.inputs, first, **{**second.node.attrs, "epilogue": (("bias",), ("residual",))})
    graph = replace(net.graph(layer(net, layer(net, summed, 9, 5, 2, 9), 20)), layouts={})
    target = target_for(level)
    steps = compile_program(graph, target, CompileOptions(threads=3))[0].steps
    assert [step.op for step in steps].count("conv_chain") >= 2
    feeds = feeds_of(graph)
    wanted = run_graph(graph, feeds)["out0"]
    for planned in (1, 3):
        model = cortado.compile(graph, target=target, threads=planned)
        got = [model.run(feeds, threads=threads)["out0"] for threads in (1, 2, 3)]
        assert np.abs(got[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
        assert got[0].tobytes() == got[1].tobytes() == got[2].tobytes()
