"""Recurrent units of Caffe2: one step of an LSTM or GRU, and whole LSTM networks unrolled over the time axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cortado.compiler.graph import Value
from cortado.compiler.importers.caffe2_call import FLOAT32, MANY, Call, OpSpec
from cortado.compiler.ops.checks import show
from cortado.errors import FormatError, ShapeError

Results = Sequence[Value | None]


def _parts(call: Call, gates: Value, count: int, name: str) -> list[Value]:
    """The last axis cut into equal parts."""
    shape, size = gates.shape, gates.shape[-1] // count
    parts = []
    for number in range(count):
        starts = (*(0,) * (len(shape) - 1), number * size)
        stops = (*shape[:-1], (number + 1) * size)
        parts.append(call.helper("slice", (gates,), f"{name}{number}", {"starts": starts, "stops": stops}))
    return parts


def _unit_inputs(call: Call, states: int, gates: int) -> tuple[list[Value], Value, Value | None]:
    """Previous states [1, N, D], gates [1, N, gates * D], and where a row goes on: timestep < its length, [1, N, 1]."""
    call.dtype(FLOAT32, *range(states + 1))
    with_lengths = call.args.flag("sequence_lengths", True)
    if len(call.inputs) != states + 2 + with_lengths:
        raise FormatError(
            f"takes {states + 2 + with_lengths} inputs with sequence_lengths={int(with_lengths)}, the file gives {len(call.inputs)}"
        )
    previous, given = list(call.inputs[:states]), call.inputs[states]
    shape = previous[0].shape
    if len(shape) != 3 or shape[0] != 1:
        raise ShapeError(f"the state '{call.operator.inputs[0]}' is {show(shape)}; it must be [1, batch, units]")
    for position in range(states):
        call.shape(position, shape, "state")
    call.shape(states, (1, shape[1], gates * shape[2]), "gates")
    timestep = call.inputs[-1]
    call.dtype(frozenset({"int32"}), *range(states + 1, len(call.inputs)))
    if timestep.type.size != 1:
        raise ShapeError(f"the timestep '{call.operator.inputs[-1]}' is {show(timestep.shape)}; it must have one element")
    if not with_lengths:
        return previous, given, None
    call.shape(states + 1, (shape[1],), "lengths")
    lengths = call.reshaped(call.inputs[states + 1], (1, shape[1], 1), "column")
    running = call.helper("lt", (call.reshaped(timestep, (1, 1, 1), "scalar"), lengths), "running")
    return previous, given, running


def _kept(call: Call, running: Value | None, new: Value, old: Value, output: int) -> Value:
    """The new state where a row goes on; else the old one, or 0 with drop_states=1."""
    if running is None:
        return new
    if call.args.flag("drop_states"):
        old = call.helper(
            "broadcast_to", (call.number(0, "float32", f"dropped{output}"),), f"zeros{output}", {"shape": old.shape}
        )
    return call.node("where", (running, new, old), None, output)


def _lstm_unit(call: Call) -> Results:
    """Gates i, f, o, g: c = c_prev sig(f + forget_bias) + sig(i) tanh(g), h = sig(o) tanh(c)."""
    (hidden, cell), gates, running = _unit_inputs(call, 2, 4)
    i, f, o, g = _parts(call, gates, 4, "gate")
    bias = call.args.number("forget_bias", 0.0)
    if bias:
        f = call.helper("add", (f, call.number(bias, "float32", "forget_bias")), "forget")
    h, c = _lstm_step(call, (i, f, o, g), cell, "")
    return _kept(call, running, h, hidden, 0), _kept(call, running, c, cell, 1)


def _lstm_step(call: Call, gates: Sequence[Value], cell: Value, name: str) -> tuple[Value, Value]:
    """The next hidden state and cell from gates i, f, o, g before their activations."""
    i, f, o = (call.helper("sigmoid", (gate,), f"{name}{letter}") for gate, letter in zip(gates, "ifo", strict=False))
    g = call.helper("tanh", (gates[3],), f"{name}g")
    kept = call.helper("mul", (f, cell), f"{name}kept")
    c = call.helper("add", (kept, call.helper("mul", (i, g), f"{name}added")), f"{name}cell")
    return call.helper("mul", (o, call.helper("tanh", (c,), f"{name}tanh")), f"{name}hidden"), c


def _gru_unit(call: Call) -> Results:
    """Gates reset (not used here), update, output: h = h_prev sig(update) + (1 - sig(update)) tanh(output)."""
    (hidden,), gates, running = _unit_inputs(call, 1, 3)
    _, update, output = _parts(call, gates, 3, "gate")
    z = call.helper("sigmoid", (update,), "update")
    kept = call.helper("mul", (hidden, z), "kept")
    rest = call.helper("sub", (call.number(1, "float32", "one"), z), "rest")
    added = call.helper("mul", (call.helper("tanh", (output,), "candidate"), rest), "added")
    return (_kept(call, running, call.helper("add", (kept, added), "hidden"), hidden, 0),)


# --- whole networks ---


def _inference_lstm(call: Call) -> Results:
    """torch.nn.LSTM: inputs x, h0, c0, then per layer and direction w_ih, w_hh and, with has_biases, b_ih, b_hh (gates i, f, g, o).

    x [T, N, F], or [N, T, F] with batch_first; outputs y and the last h and c, [layers * directions, N, D].
    """
    call.dtype(FLOAT32)
    layers = call.args.integer("num_layers", 1)
    biased, batch_first = call.args.flag("has_biases", True), call.args.flag("batch_first")
    directions = 2 if call.args.flag("bidirectional") else 1
    each = 4 if biased else 2
    wanted = 3 + layers * directions * each
    if layers < 1 or len(call.inputs) != wanted:
        raise FormatError(f"{layers} layers of {directions} directions take {wanted} inputs, the file gives {len(call.inputs)}")
    if len(call.x.shape) != 3:
        raise ShapeError(f"the input '{call.operator.inputs[0]}' is {show(call.x.shape)}; it must have 3 axes")
    x = call.transposed(call.x, (1, 0, 2), "time_first") if batch_first else call.x
    hiddens, cells = [], []
    for layer in range(layers):
        results = []
        for direction in range(directions):
            number = layer * directions + direction
            weights = call.inputs[3 + number * each : 3 + (number + 1) * each]
            y, h, c = _Direction(call, number, weights, direction == 1).run(x)
            results.append(y)
            hiddens.append(h)
            cells.append(c)
        x = results[0] if directions == 1 else call.helper("concat", results, f"layer{layer}", {"axis": 2})
    y = call.transposed(x, (1, 0, 2), "batch_first") if batch_first else x
    return (y, _stacked(call, hiddens, 1), _stacked(call, cells, 2))


def _stacked(call: Call, states: Sequence[Value], output: int) -> Value:
    """[N, D] each, as [count, N, D]."""
    parts = [call.reshaped(s, (1, *s.shape), f"state{output}_{i}") for i, s in enumerate(states)]
    return parts[0] if len(parts) == 1 else call.node("concat", parts, {"axis": 0}, output)


class _Direction:
    """One layer in one direction."""

    def __init__(self, call: Call, number: int, weights: Sequence[Value], backwards: bool) -> None:
        self.call, self.number, self.backwards = call, number, backwards
        self.w_in, self.w_hidden = weights[:2]
        self.biases = weights[2:]
        self.name = f"lstm{number}_"

    def run(self, x: Value) -> tuple[Value, Value, Value]:
        """All hidden states [T, N, D], and the last hidden state and cell [N, D]."""
        call, steps, name = self.call, x.shape[0], self.name
        hidden, cell = (self._start(position) for position in (1, 2))
        flat = call.reshaped(x, (steps * x.shape[1], x.shape[2]), f"{name}flat")
        projected = call.helper("fc", (flat, self.w_in, self._bias()), f"{name}input", {"epilogue": (("bias",),)})
        projected = call.reshaped(projected, (steps, x.shape[1], projected.shape[1]), f"{name}steps")
        states: list[Value] = []
        order = range(steps - 1, -1, -1) if self.backwards else range(steps)
        for step in order:
            hidden, cell = self._step(projected, step, hidden, cell)
            states.append(call.reshaped(hidden, (1, *hidden.shape), f"{name}{step}_row"))
        if self.backwards:
            states.reverse()
        y = states[0] if steps == 1 else call.helper("concat", states, f"{name}states", {"axis": 0})
        return y, hidden, cell

    def _start(self, position: int) -> Value:
        call, given = self.call, self.call.inputs[position]
        if len(given.shape) != 3 or self.number >= given.shape[0]:
            name = call.operator.inputs[position]
            raise ShapeError(f"the state '{name}' is {show(given.shape)}; it must be [layers, batch, units]")
        if given.shape[0] > 1:
            attrs = {"starts": (self.number, 0, 0), "stops": (self.number + 1, *given.shape[1:])}
            given = call.helper("slice", (given,), f"{self.name}start{position}", attrs)
        return call.reshaped(given, given.shape[1:], f"{self.name}state{position}")

    def _bias(self) -> Value:
        if not self.biases:
            return self.call.side(np.zeros(self.w_in.shape[:1], np.float32), f"{self.name}no_bias")
        return self.call.helper("add", self.biases, f"{self.name}bias")

    def _step(self, projected: Value, step: int, hidden: Value, cell: Value) -> tuple[Value, Value]:
        call, name = self.call, f"{self.name}{step}_"
        _, batch, width = projected.shape
        part = call.helper("slice", (projected,), f"{name}slice", {"starts": (step, 0, 0), "stops": (step + 1, batch, width)})
        recurrent = call.helper("fc", (hidden, self.w_hidden), f"{name}recurrent", {"epilogue": ()})
        gates = call.helper("add", (call.reshaped(part, (batch, width), f"{name}input"), recurrent), f"{name}gates")
        i, f, g, o = _parts(call, gates, 4, f"{name}gate")
        return _lstm_step(call, (i, f, o, g), cell, name)


OPERATORS: Mapping[str, OpSpec] = MappingProxyType(
    {
        "LSTMUnit": OpSpec(_lstm_unit, inputs=(4, 5), outputs=(2, 2)),
        "GRUUnit": OpSpec(_gru_unit, inputs=(3, 4)),
        "InferenceLSTM": OpSpec(_inference_lstm, inputs=(1, MANY), outputs=(3, 3)),
    }
)
