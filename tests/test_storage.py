"""Views: what needs no memory of its own and no copy, and what must have both."""

from __future__ import annotations

import numpy as np
import pytest

from cortado.compiler.graph import Graph, Node, Value, graph_input
from cortado.compiler.storage import Storage, assign_storage, reshape_strides, same_place
from cortado.compiler.types import TensorType

SHAPE = (1, 4, 4, 8)


def node(op: str, inputs: list[Value], to: tuple[int, ...], name: str, **attrs: object) -> Value:
    return Node(op, tuple(inputs), attrs, (TensorType(to),), name).out()


def source(name: str = "x", shape: tuple[int, ...] = SHAPE) -> Node:
    return graph_input(name, TensorType(shape))


def opaque(x: Value, name: str, shape: tuple[int, ...] = SHAPE) -> Value:
    """An operator whose output may not take over its input."""
    return node("softmax", [x], shape, name, axis=3)


def storage_of(inputs: list[Node], *outputs: Value) -> Storage:
    graph = Graph("g", tuple(inputs), tuple((f"out{i}", v) for i, v in enumerate(outputs)))
    return assign_storage(graph, graph.nodes())


def test_both_branches_of_a_concat_are_written_into_it() -> None:
    x = source()
    a, b = opaque(x.out(), "a"), opaque(x.out(), "b")
    both = node("concat", [a, b], (1, 4, 4, 16), "both", axis=3)
    storage = storage_of([x], opaque(both, "y", (1, 4, 4, 16)))
    root = storage.places[both].root
    assert root.place == "arena"
    assert storage.places[a].root is root and storage.places[b].root is root
    assert (storage.places[a].offset, storage.places[b].offset) == (0, 8)
    assert storage.places[b].strides == (256, 64, 16, 1)


def test_a_concat_inside_a_concat_is_still_no_copy() -> None:
    x = source()
    a, b, c = (opaque(x.out(), n) for n in "abc")
    inner = node("concat", [a, b], (1, 4, 4, 16), "inner", axis=3)
    outer = node("concat", [c, inner], (1, 4, 4, 24), "outer", axis=3)
    storage = storage_of([x], outer)
    root = storage.places[outer].root
    assert root.place == "output"
    assert [storage.places[v].offset for v in (c, inner, a, b)] == [0, 8, 8, 16]
    assert all(storage.places[v].root is root for v in (a, b, c, inner))


def test_one_value_twice_in_a_concat_is_placed_once() -> None:
    x = source()
    a = opaque(x.out(), "a")
    both = node("concat", [a, a], (1, 4, 4, 16), "both", axis=3)
    storage = storage_of([x], both)
    assert storage.places[a] == storage.concat_view(both.node, 0)
    assert storage.places[a] != storage.concat_view(both.node, 1)


def test_an_input_of_the_network_is_never_written_into_a_concat() -> None:
    x = source()
    both = node("concat", [x.out(), opaque(x.out(), "a")], (1, 4, 4, 16), "both", axis=3)
    storage = storage_of([x], both)
    assert storage.places[x.out()].root.place == "input"


def test_heads_that_are_reshaped_and_concatenated_write_into_the_result() -> None:
    x = source()
    a, b = opaque(x.out(), "a"), opaque(x.out(), "b", (1, 2, 2, 8))
    flat = [node("reshape", [a], (1, 64, 2), "ra", shape=(1, 64, 2)), node("reshape", [b], (1, 16, 2), "rb", shape=(1, 16, 2))]
    boxes = node("concat", flat, (1, 80, 2), "boxes", axis=1)
    storage = storage_of([x], boxes)
    assert storage.places[a].root is storage.places[boxes].root
    assert storage.places[b].root is storage.places[boxes].root
    assert storage.places[b].offset == 128
    assert same_place(flat[1].shape, storage.places[flat[1]], storage.concat_view(boxes.node, 1))


def test_a_slice_is_a_view() -> None:
    x = source()
    a = opaque(x.out(), "a")
    part = node("slice", [a], (1, 4, 4, 3), "part", starts=(0, 0, 0, 5), stops=(1, 4, 4, 8))
    storage = storage_of([x], opaque(part, "y", (1, 4, 4, 3)))
    assert storage.is_view(part.node)
    assert storage.places[part].offset == 5
    assert storage.places[part].strides == storage.places[a].strides


def test_an_elementwise_result_overwrites_an_operand_that_is_dead() -> None:
    x = source()
    a = opaque(x.out(), "a")
    b = node("relu", [a], SHAPE, "b")
    storage = storage_of([x], opaque(b, "y"))
    assert storage.places[b] == storage.places[a]


def test_an_operand_that_is_read_again_is_not_overwritten() -> None:
    x = source()
    a = opaque(x.out(), "a")
    b = node("relu", [a], SHAPE, "b")
    late = node("add", [opaque(b, "c"), a], SHAPE, "late")
    storage = storage_of([x], opaque(late, "y"))
    assert storage.places[b].root is not storage.places[a].root


def test_an_operand_whose_slice_is_read_later_is_not_overwritten() -> None:
    x = source()
    a = opaque(x.out(), "a")
    part = node("slice", [a], (1, 4, 4, 4), "part", starts=(0, 0, 0, 4), stops=SHAPE)
    b = node("relu", [a], SHAPE, "b")
    storage = storage_of([x], b, opaque(part, "y", (1, 4, 4, 4)), opaque(b, "z"))
    assert storage.places[b].root is not storage.places[a].root


def test_the_input_of_the_network_is_never_overwritten() -> None:
    x = source()
    b = node("relu", [x.out()], SHAPE, "b")
    storage = storage_of([x], opaque(b, "y"))
    assert storage.places[b].root.place == "arena"


def test_a_broadcast_operand_is_never_overwritten() -> None:
    x = source()
    row = opaque(x.out(), "row", (1, 1, 1, 8))
    total = node("add", [x.out(), row], SHAPE, "total")
    storage = storage_of([x], opaque(total, "y"))
    assert storage.places[total].root is not storage.places[row].root


def test_an_output_is_computed_in_the_users_memory() -> None:
    x = source()
    a = opaque(x.out(), "a")
    flat = node("reshape", [a], (128,), "flat", shape=(128,))
    storage = storage_of([x], flat)
    assert storage.places[a].root.place == "output"
    assert storage.copied_outputs == []


def test_what_cannot_be_computed_there_is_copied() -> None:
    x = source()
    a = opaque(x.out(), "a")
    storage = storage_of([x], a, a, x.out())
    assert storage.copied_outputs == [1, 2]


@pytest.mark.parametrize("seed", range(40))
def test_reshape_strides_show_the_same_elements_or_refuse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(d) for d in rng.integers(1, 5, rng.integers(1, 5)))
    around = np.arange(np.prod([d + 2 for d in shape])).reshape([d + 2 for d in shape])
    cut = around[tuple(slice(0, d + (2 if rng.random() < 0.5 else 0)) for d in shape)]
    divisors = [d for d in range(1, cut.size + 1) if cut.size % d == 0]
    first = int(rng.choice(divisors))
    new = (first, cut.size // first) if rng.random() < 0.7 else (1, first, 1, cut.size // first)
    strides = reshape_strides(cut.shape, [s // 8 for s in cut.strides], new)
    if strides is not None:
        shown = np.lib.stride_tricks.as_strided(cut, new, [s * 8 for s in strides])
        np.testing.assert_array_equal(shown, cut.reshape(new))
    else:
        assert viewed_by_numpy(cut, new) in (None, False)


def viewed_by_numpy(array: np.ndarray, shape: tuple[int, ...]) -> bool | None:
    """Whether numpy shows the array in the shape with dense innermost elements; None where it would have to copy."""
    view = array.view()
    try:
        view.shape = shape
    except AttributeError:
        return None
    innermost = next((s for d, s in zip(reversed(shape), reversed(view.strides), strict=True) if d > 1), 8)
    return innermost == 8
