"""The affine map of hidden states that a segment's exit may have before its norm and head.

It maps the state after the segment's last layer to what the model's last layer would give (tuned lens, Belrose et al.
2023, arXiv 2303.08112), so that exits can share the model's own norm and head.
"""

from pathlib import Path

import numpy as np

from common.errors import ConfigError
from edge.llama.batch import States


class Translator:
    """The map in `path`: [width + 1, width] in float32, the last row of which is added.

    Raises ConfigError if the file holds something else, or numbers that are not finite.
    """

    def __init__(self, path: Path, width: int) -> None:
        try:
            matrix = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ConfigError(f"translator {path}: not a NumPy array: {error}") from error
        if not isinstance(matrix, np.ndarray) or (matrix.shape, matrix.dtype) != ((width + 1, width), np.float32):
            raise ConfigError(f"translator {path}: not an array [{width + 1}, {width}] in float32")
        if not np.isfinite(matrix).all():
            raise ConfigError(f"translator {path}: has numbers that are not finite")
        self._weight, self._bias = np.ascontiguousarray(matrix[:-1]), matrix[-1]

    def __call__(self, states: States) -> States:
        """The translated states, [n, width]; one product of matrices."""
        return np.asarray(states @ self._weight + self._bias, np.float32)
