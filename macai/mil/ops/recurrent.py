"""Recurrent layers over x [S, B, I]; states are [B, H], [B, 2·H] where both directions are run."""

from collections.abc import Callable

import numpy as np

from macai.mil.ops.activation import sigmoid_array
from macai.mil.ops.size import allowed
from macai.mil.registry import Array, op

F = np.float32
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "hard_sigmoid": lambda x: np.clip(F(0.2) * x + F(0.5), F(0), F(1)),
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, F(0)),
    "scaled_tanh": lambda x: F(1.7159) * np.tanh(F(2 / 3) * x),
    "sigmoid": sigmoid_array,
    "sigmoid_hard": lambda x: np.clip(F(0.2) * x + F(0.5), F(0), F(1)),
    "tanh": np.tanh,
}

Step = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]
"""(what the input gives [B, n·H], states) -> states, the first of them the output."""


def _scan(
    x: Array,
    weight_ih: Array,
    bias: Array | None,
    states: tuple[Array, ...],
    step: Step,
    back: bool,
) -> tuple[Array, tuple[Array, ...]]:
    """Return the outputs in the order of x, [S, B, H], and the states after the last step."""
    allowed((*x.shape[:-1], len(weight_ih)))
    projected = x @ weight_ih.T
    if bias is not None:
        projected += bias
    outputs = []
    for given in projected[::-1] if back else projected:
        states = step(given, states)
        outputs.append(states[0])
    return np.stack(outputs[::-1] if back else outputs), states


def _sequence(outputs: Array, last: Array, output_sequence: bool) -> Array:
    return outputs if output_sequence else last[None]


def _lstm_step(
    weight_hh: Array, peephole: Array | None, gate: str, cell: str, output: str, clip: float | None
) -> Step:
    """Gates are in the order input, forget, output, cell; peepholes the first three."""
    to_gate, to_cell, to_output = ACTIVATIONS[gate], ACTIVATIONS[cell], ACTIVATIONS[output]
    p = (F(0),) * 3 if peephole is None else np.split(peephole, 3)

    def step(given: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
        h, c = states
        i, f, o, z = np.split(given + h @ weight_hh.T, 4, axis=-1)
        c = to_gate(f + p[1] * c) * c + to_gate(i + p[0] * c) * to_cell(z)
        if clip is not None:
            c = np.clip(c, F(-clip), F(clip))
        return to_gate(o + p[2] * c) * to_output(c), c

    return step


@op("lstm")
def lstm(
    x: Array,
    initial_h: Array,
    initial_c: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    peephole: Array | None = None,
    weight_ih_back: Array | None = None,
    weight_hh_back: Array | None = None,
    bias_back: Array | None = None,
    peephole_back: Array | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Array, Array, Array]:
    """Returns the outputs, [S or 1, B, H], and the last hidden and cell states."""
    names = (recurrent_activation, cell_activation, activation)
    H = weight_hh.shape[1]
    step = _lstm_step(weight_hh, peephole, *names, clip)
    states = (initial_h[:, :H], initial_c[:, :H])
    outputs, (h, c) = _scan(x, weight_ih, bias, states, step, _is_back(direction))
    if direction == "bidirectional":
        if weight_ih_back is None or weight_hh_back is None:
            raise ValueError("both directions need weights for the second")
        step = _lstm_step(weight_hh_back, peephole_back, *names, clip)
        states = (initial_h[:, H:], initial_c[:, H:])
        back, (h_back, c_back) = _scan(x, weight_ih_back, bias_back, states, step, True)
        outputs = np.concatenate([outputs, back], -1)
        h, c = np.concatenate([h, h_back], -1), np.concatenate([c, c_back], -1)
    return _sequence(outputs, h, output_sequence), h, c


def _is_back(direction: str) -> bool:
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ValueError(f"there is no direction {direction!r}")
    return direction == "reverse"


@op("rnn")
def rnn(
    x: Array,
    initial_h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Array, Array]:
    act = ACTIVATIONS[activation]

    def step(given: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
        return (act(given + states[0] @ weight_hh.T),)

    outputs, (h,) = _scan(x, weight_ih, bias, (initial_h,), step, _is_back(direction))
    return _sequence(outputs, h, output_sequence), h


@op("gru")
def gru(
    x: Array,
    initial_h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Array | None = None,
) -> tuple[Array, Array]:
    """Gates are in the order reset, output, update.

    The reset gate multiplies the state, or with `reset_after` what the state gives, its bias
    included; no other implementation was at hand to compare this with.
    """
    to_gate, act = ACTIVATIONS[recurrent_activation], ACTIVATIONS[activation]
    w_r, w_o, w_z = np.split(weight_hh, 3)
    b_r, b_o, b_z = np.split(np.zeros(len(weight_hh), F) if bias is None else bias, 3)

    def step(given: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
        (h,) = states
        x_r, x_o, x_z = np.split(given, 3, axis=-1)
        r = to_gate(x_r + h @ w_r.T + b_r)
        z = to_gate(x_z + h @ w_z.T + b_z)
        o = act(x_o + (r * (h @ w_o.T + b_o) if reset_after else (r * h) @ w_o.T + b_o))
        return ((F(1) - z) * o + z * h,)

    outputs, (h,) = _scan(x, weight_ih, input_bias, (initial_h,), step, _is_back(direction))
    return _sequence(outputs, h, output_sequence), h
