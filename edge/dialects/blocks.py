"""Groups the parts of an answer into blocks: a thought, a stretch of text, a tool call; both dialects stream these."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge.tool_calls.parts import Part, Said, Thought, ToolCall


@dataclass(frozen=True)
class BlockOpened:
    """A block begins; `part` tells its kind, and a call's name and id."""

    index: int
    part: Part


@dataclass(frozen=True)
class BlockAdded:
    """The block goes on with `part`; a call is in one piece."""

    index: int
    part: Part


@dataclass(frozen=True)
class BlockClosed:
    """The block is complete."""

    index: int
    part: Part


Step = BlockOpened | BlockAdded | BlockClosed


class BlockBuilder:
    """One answer's blocks, made from its parts as they arrive."""

    def __init__(self) -> None:
        self.blocks: list[Part] = []
        """So far; the last one may be open."""
        self._open = False

    def take(self, parts: Sequence[Part]) -> list[Step]:
        """What these parts do to the blocks."""
        return [step for part in parts for step in self._take(part)]

    def close(self) -> list[Step]:
        """Ends the last block."""
        if not self._open:
            return []
        self._open = False
        return [BlockClosed(len(self.blocks) - 1, self.blocks[-1])]

    def _take(self, part: Part) -> list[Step]:
        if isinstance(part, ToolCall):
            closed = self.close()
            index = self._begin(part)
            return [*closed, BlockOpened(index, part), BlockAdded(index, part), *self.close()]
        steps = list[Step]()
        if not self._open or type(self.blocks[-1]) is not type(part):
            steps += self.close()
            steps.append(BlockOpened(self._begin(type(part)("")), part))
        whole = self.blocks[-1]
        assert isinstance(whole, Said | Thought), "calls are closed at once"
        self.blocks[-1] = type(part)(whole.text + part.text)
        return [*steps, BlockAdded(len(self.blocks) - 1, part)]

    def _begin(self, part: Part) -> int:
        self._open = True
        self.blocks.append(part)
        return len(self.blocks) - 1
