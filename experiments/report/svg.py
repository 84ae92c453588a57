"""Builds SVG: elements, scales and their ticks. Colours are classes of plots.css. All texts are escaped."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from markupsafe import Markup

CHARACTER = 0.56
"""Mean width of a character over the font's size; a little too much for most texts."""
NAMESPACE = "http://www.w3.org/2000/svg"
STYLE = Path(__file__).with_name("plots.css")


def element(name: str, *inside: str, **attributes: object) -> Markup:
    """`class_` is class, `text_anchor` is text-anchor; an attribute that is None is left out."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, Markup("").join(inside))


def title(text: str) -> Markup:
    """The tooltip of the element that contains it."""
    return element("title", text)


def drawing(width: float, height: float, label: str, *inside: str) -> Markup:
    """A picture that fills the width of its container; `label` is its text alternative."""
    return element("svg", *inside, viewBox=f"0 0 {_short(width)} {_short(height)}", role="img", aria_label=label)


def file(width: float, height: float, label: str, *inside: str) -> str:
    """The text of an SVG file, with the style sheet and a background; sizes in pixels."""
    sheet = element("rect", width=width, height=height, class_="sheet")
    style = element("style", Markup(STYLE.read_text()))
    size = {"width": width, "height": height, "viewBox": f"0 0 {_short(width)} {_short(height)}"}
    return element("svg", style, sheet, *inside, xmlns=NAMESPACE, **size, role="img", aria_label=label)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    return element("text", words, x=x, y=y, class_=class_ or None, text_anchor=None if anchor == "start" else anchor)


def width_of(words: str, size: float) -> float:
    return CHARACTER * size * len(words)


def shortened(words: str, width: float, size: float) -> str:
    """As much of a text as fits into `width`, with an ellipsis where it is cut."""
    room = int(width / (CHARACTER * size))
    return words if len(words) <= room else words[: max(1, room - 1)] + "…"


def path(points: Iterable[tuple[float, float]], class_: str, closed: bool = False) -> Markup:
    steps = " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("path", d=f"M{steps}{'Z' if closed else ''}", class_=class_)


@dataclass(frozen=True)
class Scale:
    """Maps values between `low` and `high` to coordinates between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, wanted: int) -> list[float]:
        return list((_log_ticks if self.log else _ticks)(self.low, self.high, wanted))


def scale_for(values: Sequence[float], start: float, end: float, zero: bool = True, log: bool = False) -> Scale:
    """A scale that covers all `values` (at least one); `zero`: it includes 0. A log scale needs values above 0."""
    low, high = min(values), max(values)
    if log:
        return Scale(low / 1.15, high * 1.15, start, end, log=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = low if zero else low - 1, high + 1
    room = 0.05 * (high - low)
    return Scale(low - room if low < 0 or not zero else low, high + room if high > 0 or not zero else high, start, end)


def label_of(number: float) -> str:
    """In as few digits as possible, with a narrow space between thousands."""
    return f"{number:,.10g}".replace(",", "\u202f").replace("-", "−")


def _ticks(low: float, high: float, wanted: int) -> Iterator[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart (Heckbert, Nice Numbers for Graph Labels, 1990)."""
    rough = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    for at in count(math.ceil(low / step - 1e-9)):
        if at * step > high + 1e-9 * step:
            return
        yield round(at * step, 12)


def _log_ticks(low: float, high: float, wanted: int) -> Iterator[float]:
    """1, 2 and 5 times powers of ten, or powers alone where those are enough."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for times in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        found = [round(t * 10.0**power, 12) for power in powers for t in times if low <= t * 10.0**power <= high]
        if len(found) >= min(wanted, 3) or len(times) == 3:
            yield from found
            return


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
