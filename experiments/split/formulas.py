"""What a split model sends and computes, by formula: what measured bytes and layers are held against. Pure.

P: tokens of the prompt, T: of the answer, H: numbers in a hidden state, N: layers. The last token of an answer is never
computed with, so that P + T - 1 positions are.
"""

from dataclasses import dataclass

FP32 = 4
"""Bytes of a number."""


@dataclass(frozen=True)
class SplitShape:
    """The whole model: `hidden` numbers in a state, and `layers`, of which the tail has those from `first` on."""

    hidden: int
    layers: int
    first: int


def positions(prompt: int, tokens: int) -> int:
    """Positions that are computed for an answer: P + T - 1; none for an answer without tokens."""
    return prompt + tokens - 1 if tokens else 0


def contexts(prompt: int, tokens: int) -> int:
    """Positions over all tokens, the whole context again for each: the sum of P + t over t = 0 ... T - 1."""
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
"""What "every hidden state in fp32" may mean: a title, its formula, and the bytes of one answer."""


def reduction(naive: float, ours: float) -> float:
    """The share of the naive bytes, or layers, that ours saves; negative where it needs more."""
    return 1 - ours / naive


def layer_tokens(layers: int, computed: float) -> float:
    """What computing so many positions in so many layers costs."""
    return layers * computed
