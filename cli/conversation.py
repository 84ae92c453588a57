"""A conversation in the terminal: its turns, the settings of the next question, and the file it is saved to."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from cli.ask import QuestionSettings, ShownAnswer
from common.errors import RequestError
from common.protocol.openai import ChatRequest, Message
from common.types import Collaboration, Mode

MODES: dict[str, dict[str, Any]] = {
    "gated": {"mode": Mode.COLLABORATIVE, "use_confidence_check": True},
    "lossless": {"mode": Mode.COLLABORATIVE, "use_confidence_check": False},
    "edge": {"mode": Mode.EDGE_ONLY, "use_confidence_check": None},
    "cloud": {"mode": Mode.CLOUD_ONLY, "use_confidence_check": None},
    "route": {"mode": Mode.ROUTE, "use_confidence_check": None},
    "split": {"mode": Mode.SPLIT, "use_confidence_check": None},
}
"""The ways to answer, as settings."""


@dataclass
class Dialogue:
    """`turns`: questions and answers in turn. `system`: what the model is told before them; empty: nothing."""

    settings: QuestionSettings
    turns: list[Message] = field(default_factory=list)
    system: str = ""
    reports: list[Collaboration] = field(default_factory=list)
    """Of all answers since the start, also of conversations before this one."""
    last: ShownAnswer | None = None

    def request(self, prompt: str) -> ChatRequest:
        """Asks `prompt` after all that was said before."""
        system = [Message(role="system", content=self.system)] if self.system else []
        return self.settings.request(prompt, [*system, *self.turns])

    def in_mode(self, name: str, prompt: str) -> ChatRequest:
        """The same question in another mode, greedy, so that what differs comes from the mode."""
        settings = replace(self.settings, **MODES[name], temperature=0.0)
        return replace(self, settings=settings).request(prompt)

    def record(self, prompt: str, answer: ShownAnswer) -> None:
        """Adds a question and its answer, or what has arrived of it."""
        self.turns += [Message(role="user", content=prompt), Message(role="assistant", content=answer.text)]
        self.last = answer
        if answer.report:
            self.reports.append(answer.report)

    @property
    def mode(self) -> str:
        """The name in MODES of the present settings; `as configured` if they are none of them."""
        chosen = {"mode": self.settings.mode, "use_confidence_check": self.settings.use_confidence_check}
        return next((name for name, fields in MODES.items() if fields == chosen), "as configured")

    def choose_mode(self, name: str) -> None:
        """Raises RequestError for a mode that MODES does not name."""
        if name not in MODES:
            raise RequestError(f"/mode takes one of {', '.join(MODES)}, not {name!r}")
        self.settings = replace(self.settings, **MODES[name])

    def choose_threshold(self, text: str) -> None:
        """A number from 0 to 1; empty: the configured one. Raises RequestError for anything else."""
        try:
            threshold = float(text) if text else None
        except ValueError:
            threshold = -1.0
        if threshold is not None and not 0 <= threshold <= 1:
            raise RequestError(f"/threshold takes a number from 0 to 1, not {text!r}")
        self.settings = replace(self.settings, confidence_threshold=threshold)

    def forget(self) -> None:
        """Begins a new conversation with the same settings."""
        self.turns.clear()
        self.last = None

    def save(self, file: str) -> None:
        """Writes the conversation as JSON into a new file; raises RequestError if that cannot be written."""
        saved = {"system": self.system, "turns": self.turns, "settings": asdict(self.settings)}
        report = self.last.report if self.last else None
        try:
            with Path(file).expanduser().open("xb") as out:
                out.write(msgspec.json.format(msgspec.json.encode(saved | {"last_report": report}), indent=2) + b"\n")
        except OSError as error:
            raise RequestError(f"cannot write {file}: {error.strerror}") from error
