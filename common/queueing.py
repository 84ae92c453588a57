"""How many requests may wait: a burst fills a queue, and one that does not empty is kept short."""

from dataclasses import dataclass


@dataclass
class QueueBound:
    """`longest` may wait in a burst. Each turn that leaves others waiting takes a place away, down to `standing`.

    A queue that never empties makes every answer late and none sooner (CoDel, Nichols and Jacobson 2012). How long that
    takes is counted in turns: a second is long for a small model, and for a large one no answer ends in it.
    """

    longest: int
    standing: int
    served: int = 0
    """Turns since nobody waited."""

    @property
    def places(self) -> int:
        """How many may wait now."""
        return min(self.longest, max(self.standing, self.longest - self.served))

    def record_turn(self, waiting: int, turns: int = 1) -> None:
        """Counts turns after which so many still wait; 0 turns: those who waited have left."""
        self.served = self.served + turns if waiting > 0 else 0
