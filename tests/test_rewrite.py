"""The rewrite driver: measures, limits, traces, bookkeeping of readers, names."""

from __future__ import annotations

import pytest
from graphs import Net, assert_same_meaning, node_named, ops

from cortado.compiler.graph import Graph, Node
from cortado.compiler.rewrite import Context, Replacement, Rewrite, RewriteError, Rule, Steps, apply_rules, rewritten, rule, unite


def count(node: Node) -> tuple[int, ...]:
    return (int(node.op not in ("input", "constant")),)


def halves(net: Net, length: int) -> Graph:
    """negative of negative of ... x"""
    x = net.input(3)
    for _ in range(length):
        x = net.op("negative", x)
    return net.graph(x)


@rule("negative")
def drop_pair(node: Node, context: Context) -> Replacement | None:
    inner = node.inputs[0].node
    return inner.inputs[0] if inner.op == "negative" else None


def test_rules_run_to_a_fixed_point() -> None:
    graph = halves(Net(), 9)
    after = apply_rules(graph, "pairs", [drop_pair], count, Steps())
    assert ops(after) == {"negative": 1}
    assert_same_meaning(graph, after)


def test_nothing_to_do_returns_the_same_graph() -> None:
    graph = halves(Net(), 1)
    assert apply_rules(graph, "pairs", [drop_pair], count, Steps()) is graph


def test_steps_are_counted_limited_and_traced() -> None:
    graph = halves(Net(), 8)
    for limit in range(6):
        trace: list[Rewrite] = []
        steps = Steps(limit, trace)
        after = apply_rules(graph, "pairs", [drop_pair], count, steps)
        done = min(limit, 4)
        assert ops(after) == ({"negative": 8 - 2 * done} if done < 4 else {})
        assert [r.number for r in trace] == list(range(1, done + 1)) and steps.count == done
        assert_same_meaning(graph, after)
    assert str(trace[0]) == "1 pairs.drop_pair n1"


def test_the_limit_spans_passes() -> None:
    graph = halves(Net(), 8)
    steps = Steps(3)
    half = apply_rules(graph, "first", [drop_pair], lambda node: count(node), Steps(2))
    assert ops(half) == {"negative": 4}
    once = apply_rules(graph, "first", [drop_pair], count, steps)
    assert ops(apply_rules(once, "second", [drop_pair], count, steps)) == {"negative": 2} and steps.exhausted


@rule("relu")
def same_again(node: Node, context: Context) -> Replacement:
    return rewritten("relu", node.inputs, {}, node)


@rule("relu")
def another_shape(node: Node, context: Context) -> Replacement:
    return rewritten("reshape", node.inputs, {"shape": (1, *node.types[0].shape)}, node)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (same_again, r"rule broken\.same_again at relu n0: the measure must shrink, but \(1,\) became \(1,\)"),
        (another_shape, r"rule broken\.another_shape at relu n0: float32\[3\] became float32\[1,3\]"),
    ],
)
def test_a_rule_that_breaks_its_contract_is_named(bad: Rule, words: str) -> None:
    net = Net()
    graph = net.graph(net.op("relu", net.input(3)))
    with pytest.raises(RewriteError, match=words):
        apply_rules(graph, "broken", [bad], count, Steps())


@rule("abs")
def to_square(node: Node, context: Context) -> Replacement:
    return rewritten("square", node.inputs, {}, node)


def cost_seen_by_readers(node: Node) -> tuple[int, ...]:
    return ({"abs": 1, "relu": 5 * (bool(node.inputs) and node.inputs[0].node.op == "square")}.get(node.op, 0),)


def test_a_sweep_that_does_not_shrink_the_whole_is_named() -> None:
    """A measure that looks at producers can shrink where a rule applies and grow at the readers."""
    net = Net()
    graph = net.graph(net.op("relu", net.op("abs", net.input(3))))
    with pytest.raises(RewriteError, match=r"pass ring went round in a circle \(\(1,\) -> \(5,\)\): to_square"):
        apply_rules(graph, "ring", [to_square], cost_seen_by_readers, Steps())


def test_readers_follow_rewrites() -> None:
    """What a rule sees in the middle of a sweep: the readers that are there now, not those of the beginning."""
    net = Net()
    x = net.input(3)
    twice = net.op("negative", net.op("negative", x))
    graph = net.graph(net.op("add", net.op("relu", twice), net.op("tanh", twice)), twice)
    seen: dict[str, tuple[list[str], bool]] = {}

    @rule("relu", "tanh", "add")
    def look(node: Node, context: Context) -> Replacement | None:
        value = node.inputs[0]
        seen[node.op] = (sorted(reader.op for reader, _ in context.readers_of(value)), context.is_output(value))
        assert node.op != "relu" or not context.read_only_by(value, node)
        assert node.op != "add" or context.read_only_by(value, node)
        return None

    after = apply_rules(graph, "look", [drop_pair, look], count, Steps())
    assert seen == {"relu": (["relu", "tanh"], True), "tanh": (["relu", "tanh"], True), "add": (["add"], False)}
    assert after.outputs[1] == ("out1", x)
    assert_same_meaning(graph, after)


def test_the_output_keeps_the_contested_name() -> None:
    net = Net()
    x = net.input(3, name="x")
    inner = net.op("relu", net.op("negative", x, name="y"), name="z")
    graph = net.graph(inner)

    @rule("negative")
    def rename(node: Node, context: Context) -> Replacement | None:
        return rewritten("abs", (net.op("negative", x, name="z"),), {}, node) if node.name == "y" else None

    after = apply_rules(graph, "names", [rename], lambda node: (1 if node.op == "negative" and node.name == "y" else 0,), Steps())
    assert [node.name for node in after.nodes()] == ["x", "z_2", "y", "z"]
    assert after.outputs[0][1].node.op == "relu"


def test_origins_are_united() -> None:
    net = Net()
    a = net.op("relu", net.input(3), name="a")
    b = net.op("relu", a, name="b")
    assert unite((a.node, b.node, a.node)) == ("op:a", "op:b")
    made = rewritten("relu", a.node.inputs, {}, b.node, (a.node,))
    assert made.name == "b" and made.origin == ("op:a", "op:b")


def test_dead_inputs_stay() -> None:
    net = Net()
    x, unused = net.input(3), net.input(4)
    graph = net.graph(net.op("negative", net.op("negative", x)))
    after = apply_rules(graph, "pairs", [drop_pair], count, Steps())
    assert after.inputs == (x.node, unused.node)
    assert node_named(after, "x0") is x.node
