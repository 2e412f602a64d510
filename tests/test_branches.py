"""`If` as branches: only the steps of the branch that is taken run, wherever a program runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from lowered import made_target

import cortado
from cortado.compiler.builder import KernelBuilder
from cortado.compiler.graph import Graph, constant, graph_input
from cortado.compiler.interpret import run_program
from cortado.compiler.lang import I32, INDEX
from cortado.compiler.lower import lower
from cortado.compiler.ops import make
from cortado.compiler.optimize import optimize
from cortado.compiler.plan import guards_of_buffers
from cortado.compiler.program import Program, Step
from cortado.compiler.reference import run_graph
from cortado.compiler.types import TensorType
from cortado.proto.caffe2 import NetDef, Operator, operator, serialize_net

TARGET = made_target(128)
SHAPE = (6, 8)
FEEDS = {"x": np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)}


def conditions(*values: bool) -> dict[str, np.ndarray]:
    return {f"c{i}": np.array([value]) for i, value in enumerate(values)}


def loaded(outputs: list[str], *operators: Operator, conditions: int = 1, shape: tuple[int, ...] = SHAPE) -> Graph:
    names = ["x", *(f"c{i}" for i in range(conditions))]
    data = serialize_net(NetDef("net", operators, tuple(names), tuple(outputs)))
    return cortado.load(data, inputs={"x": shape, **dict.fromkeys(names[1:], ((1,), "bool"))})


def choice(condition: str, then: list[Operator], other: list[Operator]) -> Operator:
    return operator("If", [condition], [], then_net=NetDef("then", tuple(then)), else_net=NetDef("else", tuple(other)))


def two_sided() -> Graph:
    then = [operator("Softmax", ["x"], ["a"]), operator("Sigmoid", ["a"], ["y"])]
    other = [operator("Tanh", ["x"], ["b"]), operator("Softmax", ["b"], ["y"])]
    return loaded(["y"], choice("c0", then, other))


def nested() -> Graph:
    inner = choice("c1", [operator("Exp", ["x"], ["y"])], [operator("Softmax", ["x"], ["y"])])
    return loaded(["y"], choice("c0", [inner], [operator("Sigmoid", ["x"], ["y"])]), conditions=2)


def two_outputs() -> Graph:
    """Both results of a branch need one intermediate; one result is also an input as it is."""
    then = [operator("Softmax", ["x"], ["a"]), operator("Exp", ["a"], ["y"]), operator("Softmax", ["a"], ["z"])]
    other = [operator("Softsign", ["x"], ["b"]), operator("Softmax", ["b"], ["y"]), operator("Copy", ["x"], ["z"])]
    return loaded(["z", "y"], choice("c0", then, other))


def joined_after() -> Graph:
    """What a branch leaves is joined with other rows, so that it is written into the joined buffer."""
    then, other = [operator("Softmax", ["x"], ["y"])], [operator("Exp", ["x"], ["y"])]
    end = operator("Concat", ["y", "x"], ["z", "z_dims"], axis=0)
    return loaded(["z"], choice("c0", then, other), end)


def shared_part() -> Graph:
    """A part of what one branch joins is needed in any case, and stays what it is."""
    then = [operator("Exp", ["x"], ["e"]), operator("Concat", ["s", "e"], ["y", "y_dims"], axis=0)]
    other = [operator("Concat", ["x", "x"], ["t", "t_dims"], axis=0), operator("Softmax", ["t"], ["y"])]
    end = [operator("Softmax", ["s"], ["last"])]
    return loaded(["y", "last"], operator("Softmax", ["x"], ["s"]), choice("c0", then, other), *end)


GRAPHS: dict[str, tuple[Callable[[], Graph], int]] = {
    "two sides": (two_sided, 1),
    "nested": (nested, 2),
    "two outputs": (two_outputs, 1),
    "joined after": (joined_after, 1),
    "shared part": (shared_part, 1),
}
ALL = [
    pytest.param(make_graph, [bool(n >> i & 1) for i in range(count)], id=f"{name}-{n}")
    for name, (make_graph, count) in GRAPHS.items()
    for n in range(1 << count)
]


@pytest.mark.parametrize(("make_graph", "values"), ALL)
def test_branches_give_what_the_reference_gives(make_graph: Callable[[], Graph], values: list[bool]) -> None:
    graph, feeds = make_graph(), {**FEEDS, **conditions(*values)}
    want = run_graph(graph, feeds)
    for made in (graph, optimize(graph)):
        got = run_program(lower(made, TARGET), feeds)
        for name, array in want.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


def failing(step: Step) -> Step:
    """The step with a kernel that cannot run."""
    k = KernelBuilder("fails", TARGET)
    for number in range(len(step.args)):
        k.param(f"p{number}")
    begin, end = k.param("begin", INDEX), k.param("end", INDEX)
    zero = k.convert(begin - begin, I32, "trunc")
    k.loop(begin, end, 1, lambda i: k.binary("sdiv", k.const(1, I32), zero) and None)
    return replace(step, kernel=k.finish())


def spoiled(program: Program, wanted: bool) -> Program:
    """Every step that runs where the first condition is `wanted` fails."""
    steps = [failing(step) if any(guard.wanted == wanted for guard in step.guards) else step for step in program.steps]
    return replace(program, steps=tuple(steps))


@pytest.mark.parametrize("taken", [False, True])
def test_steps_of_the_other_branch_do_not_run(taken: bool) -> None:
    graph = two_sided()
    program = lower(optimize(graph), TARGET)
    assert {guard.wanted for step in program.steps for guard in step.guards} == {False, True}
    feeds = {**FEEDS, **conditions(taken)}
    got = run_program(spoiled(program, not taken), feeds)
    np.testing.assert_allclose(got["y"], run_graph(graph, feeds)["y"], rtol=1e-6, atol=1e-6)
    with pytest.raises(ZeroDivisionError):
        run_program(spoiled(program, taken), feeds)


def test_the_inner_branch_runs_where_both_conditions_hold() -> None:
    program = lower(optimize(nested()), TARGET)
    assert sorted(len(step.guards) for step in program.steps) == [1, 2, 2]


def test_what_both_branches_need_is_computed_once_and_always() -> None:
    then = [operator("Softmax", ["x"], ["a"]), operator("Exp", ["a"], ["y"])]
    other = [operator("Softmax", ["x"], ["b"]), operator("Tanh", ["b"], ["y"])]
    program = lower(optimize(loaded(["y"], choice("c0", then, other))), TARGET)
    assert [(step.op, bool(step.guards)) for step in program.steps] == [("softmax", False), ("exp", True), ("tanh", True)]


def test_both_sides_are_written_to_one_place_without_copies() -> None:
    program = lower(optimize(two_sided()), TARGET)
    assert len(program.steps) == 4
    writes = [step.args[-1] for step in program.steps if step.name in ("y", "y/branch", "y/branch_2")]
    assert len(set(writes)) == 1 and program.buffers[writes[0].buffer].place == "output"


def test_buffers_of_branches_that_exclude_each_other_share_memory() -> None:
    """The intermediate of one branch is still needed while the steps of the other stand in the program."""
    x, c = graph_input("x", TensorType((64, 64))), graph_input("c", TensorType((1,), "bool"))
    sides = {}
    for name, op in (("t", "exp"), ("e", "tanh")):
        first = make("softmax", [x.out()], {"axis": 1 if name == "t" else 0}, f"{name}0").out()
        sides[name] = [make("softmax", [first], {"axis": axis}, f"{name}{op}{axis}").out() for axis in (0, 1)]
    when = {"when": (True, False)}
    results = [make("branch", [c.out(), sides["t"][i], sides["e"][i]], when, f"y{i}").out() for i in (0, 1)]
    graph = Graph("g", (x, c), tuple((f"y{i}", value) for i, value in enumerate(results)))
    program = lower(graph, TARGET)
    only = guards_of_buffers(program)
    kept = [i for i, b in enumerate(program.buffers) if b.place == "arena"]
    assert len(kept) == 2 and all(only[i] for i in kept)
    a, b = (program.buffers[i] for i in kept)
    assert a.first <= b.last and b.first <= a.last and a.offset == b.offset
    feeds = {"x": np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32)}
    for value in (False, True):
        given = {**feeds, "c": np.array([value])}
        got, want = run_program(program, given), run_graph(graph, given)
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-6)


def test_a_known_condition_leaves_one_branch() -> None:
    x, c = graph_input("x", TensorType(SHAPE)), constant(np.array([False]), "c")
    sides = [make(op, [x.out()], {}, op).out() for op in ("exp", "tanh")]
    chosen = make("branch", [c, *sides], {"when": (True, False)}, "y").out()
    assert [node.op for node in optimize(Graph("g", (x,), (("y", chosen),))).nodes()] == ["input", "tanh"]


@pytest.mark.parametrize("values", [[False, False], [True, False], [True, True]])
def test_compiled_branches(values: list[bool]) -> None:
    """On one thread, on several, step by step: large enough that steps are split."""
    large = (600, 512)
    inner = choice("c1", [operator("Exp", ["x"], ["y"])], [operator("Softmax", ["x"], ["y"])])
    graph = loaded(["y"], choice("c0", [inner], [operator("Sigmoid", ["x"], ["y"])]), conditions=2, shape=large)
    model = cortado.compile(graph, threads=2)
    assert any(step.parts > 1 and step.guards for step in model.report().steps)
    feeds = {"x": np.random.default_rng(3).standard_normal(large).astype(np.float32), **conditions(*values)}
    want = run_graph(graph, feeds)["y"]
    for threads in (1, 2):
        np.testing.assert_allclose(model.run(feeds, threads=threads)["y"], want, rtol=2e-6, atol=2e-6)
        times = {step.op: step.min_us for step in model.profile(feeds, runs=5, threads=threads).steps}
        taken = "sigmoid" if not values[0] else "exp" if values[1] else "softmax"
        assert times[taken] > 5 * max(time for op, time in times.items() if op != taken)


def test_errors_name_operators_by_their_place_in_the_file() -> None:
    """Branches are nets of their own, and the operators behind an `If` keep their numbers."""
    unknown = [operator("NoSuchThing", ["x"], [name]) for name in ("a", "b", "y")]
    then = [operator("Exp", ["x"], ["e"]), operator("Exp", ["e"], ["f"]), unknown[0], operator("Add", ["a", "f"], ["z"])]
    inner = choice("c1", [unknown[1], operator("Exp", ["b"], ["z"])], [operator("Exp", ["x"], ["z"])])
    last = operator("Add", ["y", "z"], ["sum"])
    with pytest.raises(cortado.UnsupportedError) as error:
        loaded(["sum"], operator("Exp", ["x"], ["w"]), choice("c0", then, [inner]), unknown[2], last, conditions=2)
    places = [line.partition(" NoSuchThing")[0] for line in error.value.nodes]
    assert places == ["operator 1 then 2", "operator 1 else 0 then 0", "operator 2"]


@pytest.mark.emulator
@pytest.mark.parametrize("target", ["cortex-m0", "cortex-m4", "arm32-cortex-a7", "cortex-a53"])
def test_branches_on_other_machines(target: str) -> None:
    graph = nested()
    model = cortado.compile(graph, target=target)
    for values in ([False, True], [True, False], [True, True]):
        feeds = {**FEEDS, **conditions(*values)}
        try:
            got = model.run(feeds)
        except cortado.TargetError as error:
            pytest.skip(str(error))
        np.testing.assert_allclose(got["y"], run_graph(graph, feeds)["y"], rtol=1e-5, atol=1e-6)
