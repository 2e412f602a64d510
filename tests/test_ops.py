"""The operator table, the making of nodes, what inference says of wrong input, and running a graph by the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from operator_nodes import CONV, IMAGE, POOL, changed, floats, node

from cortado.compiler.graph import Graph, Node, constant, graph_input
from cortado.compiler.ops import OPS, make, merged
from cortado.compiler.ops.record import Op
from cortado.compiler.reference import run_graph
from cortado.compiler.types import Quant, TensorType
from cortado.errors import InputError, ShapeError

# --- table and making of nodes ---


def test_table_refuses_two_operators_of_one_name() -> None:
    op = OPS["relu"]
    with pytest.raises(ValueError, match="'relu'"):
        merged([(op,), (op,)])


def test_every_record_is_named_as_in_the_table_and_documents_its_attributes() -> None:
    for name, op in OPS.items():
        assert isinstance(op, Op) and op.name == name == name.lower()
        assert all(len(text) > 4 for text in op.attrs.values()), name


def test_make_prefixes_shape_errors_and_refuses_wrong_attributes() -> None:
    x = graph_input("x", TensorType((1, 4, 4, 3))).out()
    with pytest.raises(ShapeError, match=r"^node prob \(softmax\): axis 4 does not exist"):
        make("softmax", [x], {"axis": 4}, "prob")
    with pytest.raises(AssertionError, match=r"node prob \(softmax\).*attributes.*'axes'"):
        make("softmax", [x], {"axes": 1}, "prob")
    with pytest.raises(AssertionError, match="no operator 'softmx'"):
        make("softmx", [x], {}, "prob")


SAME_SIZE = {"scale_h": 1.0, "scale_w": 1.0, "out_h": 2, "out_w": 2}
PER_ROW = TensorType((1, 2, 2, 2), "int8", Quant((0.5, 1.0), (0, 0), 1))


@pytest.mark.parametrize(
    ("op", "kinds", "attrs", "words"),
    [
        ("tile", [TensorType((1024, 1024))], {"repeats": (1024, 1024)}, "at most 2147483647 bytes"),
        ("broadcast_to", [TensorType((1,))], {"shape": (2**40,)}, "at most 2147483647 bytes"),
        ("reshape", [TensorType((1,))], {"shape": (1,) * 40}, "40 axes; at most 16"),
        (
            "conv",
            [TensorType((1, 1, 1, 1)), TensorType((1, 1, 1, 1))],
            {
                "strides": (2**16,) * 2,
                "pads_begin": (2**16,) * 2,
                "pads_end": (2**16,) * 2,
                "dilations": (1, 1),
                "group": 1,
                "epilogue": (),
            },
            "the padded input is",
        ),
        ("pad", [TensorType((3,))], {"begin": (10**12,), "end": (0,), "mode": "constant", "value": 0.0}, "bytes"),
        ("gather", [TensorType((2, 2**20)), TensorType((2**20,), "int32")], {"axis": 0}, "bytes"),
    ],
)
def test_absurd_sizes_are_refused_without_allocation(op: str, kinds: list[TensorType], attrs: dict[str, Any], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        node(op, kinds, attrs)


BIAS = (("bias",),)


@pytest.mark.parametrize(
    ("op", "kinds", "attrs", "words"),
    [
        ("conv", [IMAGE, TensorType((8, 3, 3, 4))], CONV, r"made for 4 input channels; the input has 16"),
        ("conv", [IMAGE, TensorType((8, 3, 3, 4))], changed(CONV, group=3), r"group=3 does not divide the input's 16 channels"),
        ("conv", [IMAGE, TensorType((6, 3, 3, 4))], changed(CONV, group=4), r"group=4 does not divide the filter's 6 outputs"),
        ("conv", [IMAGE, TensorType((8, 7, 3, 16))], CONV, r"kernel of 7 does not fit spatial axis 0: 6 with pads 0 and 0 makes 6"),
        ("conv", [IMAGE, TensorType((8, 3, 4, 16))], changed(CONV, dilations=(1, 2)), r"kernel of 4 \(dilated to 7\)"),
        ("conv", [IMAGE, TensorType((8, 3, 3, 16))], changed(CONV, strides=(0, 1)), r"strides=\(0, 1\): 0 is not between 1"),
        ("conv", [IMAGE, TensorType((8, 3, 3, 16))], changed(CONV, strides=(1,)), r"strides=\(1,\) must give one whole number"),
        ("conv", [IMAGE, TensorType((8, 3, 3, 16))], changed(CONV, pads_end=(10**9, 0)), r"pads_end=.*not between -65536 and 65536"),
        ("conv", [IMAGE, TensorType((8, 3, 16))], CONV, r"must have as many axes"),
        ("conv", [IMAGE, TensorType((8, 3, 3, 16), "float64")], CONV, r"different types \(float32, float64\)"),
        ("conv", [IMAGE, TensorType((8, 3, 3, 16)), TensorType((7,))], changed(CONV, epilogue=BIAS), r"bias has shape \[7\]; it must be \[8\]"),
        ("conv", [IMAGE, TensorType((8, 3, 3, 16)), TensorType((1, 4, 4, 9))], changed(CONV, epilogue=(("residual",),)), r"residual has shape"),
        ("fc", [TensorType((2, 9)), TensorType((4, 8))], {"epilogue": ()}, r"made for 8 inputs; the input is \[2,9\]"),
        ("batch_matmul", [TensorType((2, 3)), TensorType((4, 5))], {"transpose_a": False, "transpose_b": False}, r"inner sizes 3 and 4 differ"),
        ("max_pool", [IMAGE], changed(POOL, kernel=(9, 2)), r"kernel of 9 does not fit"),
        ("max_pool", [TensorType((4, 4))], POOL, r"pooling takes 3, 4 or 5"),
        ("average_pool", [TensorType((1, 4, 4, 1), "int32")], {**POOL, "count_include_pad": False}, r"is int32; it must be"),
        ("add", [TensorType((2, 3)), TensorType((2, 4))], {}, r"shapes \[2,3\] and \[2,4\] do not broadcast: axis -1"),
        ("add", [TensorType((2, 3)), TensorType((2, 3), "int32")], {}, r"different types"),
        ("exp", [TensorType((2,), "int32")], {}, r"is int32"),
        ("where", [TensorType((2,)), TensorType((2,)), TensorType((2,))], {}, r"the condition is float32; it must be bool"),
        ("prelu", [TensorType((2, 3)), TensorType((2,))], {}, r"slope has shape \[2\]; it must be \[3\]"),
        ("cast", [TensorType((2,))], {"dtype": "string"}, r"string"),
        ("transpose", [TensorType((2, 3))], {"perm": (0, 0)}, r"must name each of the 2 axes"),
        ("reshape", [TensorType((2, 3))], {"shape": (5,)}, r"has 6 elements and cannot become \[5\]"),
        ("concat", [TensorType((2, 3)), TensorType((3, 3))], {"axis": 1}, r"only axis 1 may differ"),
        ("slice", [TensorType((5,))], {"starts": (3,), "stops": (6,)}, r"cannot take elements 3 up to 6"),
        ("pad", [TensorType((3,))], {"begin": (3,), "end": (0,), "mode": "reflect", "value": 0.0}, r"must be smaller"),
        ("pad", [TensorType((3,))], {"begin": (-2,), "end": (-2,), "mode": "constant", "value": 0.0}, r"less than nothing"),
        ("reduce_max", [TensorType((3, 0))], {"axes": (1,), "keepdims": False}, r"is empty"),
        ("reduce_sum", [TensorType((3, 2))], {"axes": (2,), "keepdims": False}, r"reduced axis 2 does not exist"),
        ("gather", [TensorType((3, 2)), TensorType((2,))], {"axis": 0}, r"indices are float32"),
        ("batch_norm", [IMAGE, *[TensorType((16,))] * 3, TensorType((8,))], {"epsilon": 1e-5}, r"variance has shape \[8\]; the input has 16"),
        ("lrn", [IMAGE], {"size": 4, "alpha": 1.0, "beta": 1.0, "bias": 1.0}, r"size=4 must be an odd"),
        ("resize_nearest", [IMAGE], {"scale_h": 0.0, "scale_w": 1.0, "out_h": 1, "out_w": 6}, r"scale_h=0.0 is impossible"),
        ("resize_bilinear", [PER_ROW], SAME_SIZE, r"axis 1, which this operator does not keep"),
        ("reduce_max", [PER_ROW], {"axes": (1,), "keepdims": True}, r"axis 1, which this operator does not keep"),
        ("relu", [TensorType((2,)), TensorType((2,))], {}, r"takes 1 input, got 2"),
    ],
)  # fmt: skip
def test_inference_says_what_is_wrong(op: str, kinds: list[TensorType], attrs: dict[str, Any], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        node(op, kinds, attrs)


# --- running a graph ---


def test_run_graph_gives_outputs_and_wanted_values_as_new_arrays() -> None:
    x = graph_input("x", TensorType((2,)))
    relu = make("relu", [x.out()], {}, "r")
    total = make("add", [relu.out(), constant(floats([1, 1]), "one")], {}, "s")
    graph = Graph("g", (x,), (("sum", total.out()), ("x", x.out())))
    fed = floats([-1, 2])
    got = run_graph(graph, {"x": fed})
    assert list(got) == ["sum", "x"] and got["sum"].tolist() == [1, 3]
    assert not np.shares_memory(got["x"], fed)
    assert {name: a.tolist() for name, a in run_graph(graph, {"x": fed}, [relu.out()]).items()} == {"r": [0, 2]}


def test_run_graph_names_every_wrong_feed() -> None:
    x, y = graph_input("x", TensorType((2,))), graph_input("y", TensorType((), "int32"))
    graph = Graph("g", (x, y), (("x", x.out()),))
    with pytest.raises(
        InputError, match=r"'y' is missing; it is int32\[\].*no input 'z'.*'x' is float64\[2\]; it must be float32\[2\]"
    ):
        run_graph(graph, {"x": np.zeros(2), "z": np.zeros(2)})
    with pytest.raises(InputError, match="'x' is a list, not a numpy array"):
        run_graph(graph, {"x": [1, 2], "y": np.int32(0).reshape(())})  # type: ignore[dict-item]


def test_run_graph_frees_what_nobody_reads_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    import cortado.compiler.reference as reference

    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    real = reference.evaluate

    def counting(made: Node, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        nonlocal most
        out = real(made, arrays)[0].copy()
        alive.append(weakref.ref(out))
        most = max(most, sum(r() is not None for r in alive))
        return (out,)

    monkeypatch.setattr(reference, "evaluate", counting)
    x = graph_input("x", TensorType((4,)))
    value = x.out()
    for i in range(20):
        value = make("square", [value], {}, f"n{i}").out()
    run_graph(Graph("g", (x,), (("y", value),)), {"x": np.ones(4, np.float32)})
    assert len(alive) == 20 and most <= 2
