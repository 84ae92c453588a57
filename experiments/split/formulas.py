"""Computes by formula what a split model sends and computes, to compare with what is measured.

P: tokens of the prompt, T: of the answer, H: values in a hidden state, N: layers. The last token of an answer is never
fed to the model, so P + T - 1 positions are computed.
"""

from dataclasses import dataclass

FP32 = 4
"""Bytes of a value."""


@dataclass(frozen=True)
class SplitShape:
    """The whole model: `hidden` values in a state, and `layers`, of which the tail has those from `first` on."""

    hidden: int
    layers: int
    first: int


def positions(prompt: int, tokens: int) -> int:
    """Positions computed for an answer: P + T - 1; 0 for an answer without tokens."""
    return prompt + tokens - 1 if tokens else 0


def contexts(prompt: int, tokens: int) -> int:
    """Positions computed if the whole context is computed for each token: the sum of P + t over t = 0 ... T - 1."""
    return tokens * prompt + tokens * (tokens - 1) // 2


def once(shape: SplitShape, prompt: int, tokens: int) -> int:
    """(a) Bytes in fp32 at the one boundary, each position once: 4 H (P + T - 1)."""
    return FP32 * shape.hidden * positions(prompt, tokens)


def every_token(shape: SplitShape, prompt: int, tokens: int) -> int:
    """(b) Bytes in fp32 at the one boundary, the whole context for each token: 4 H (T P + T (T - 1) / 2)."""
    return FP32 * shape.hidden * contexts(prompt, tokens)


def every_layer(shape: SplitShape, prompt: int, tokens: int) -> int:
    """(c) Bytes in fp32 at each boundary between two layers, each position once: (N - 1) times (a)."""
    return (shape.layers - 1) * once(shape, prompt, tokens)


READINGS = {
    "naive_once": ("(a) once a position, one boundary", "4 H (P + T − 1)", once),
    "naive_context": ("(b) whole context a token, one boundary", "4 H (T P + T (T − 1) / 2)", every_token),
    "naive_layers": ("(c) once a position, every boundary", "4 H (N − 1) (P + T − 1)", every_layer),
}
"""The possible meanings of "every hidden state in fp32": a title, the formula, and the bytes of one answer."""


def reduction(naive: float, ours: float) -> float:
    """The share of the naive bytes or layers that ours saves; negative where it needs more."""
    return 1 - ours / naive


def layer_tokens(layers: int, computed: float) -> float:
    """The cost of computing this many positions in this many layers."""
    return layers * computed
