"""What answers have taken of the clouds, beside what the cloud alone would have: steps, and money at its prices."""

from collections.abc import Callable
from datetime import date

from msgspec import Struct, structs

from common.config_schema import PricesConfig
from common.enums import BY_CLOUD
from common.types import Collaboration


class CloudWork(Struct):
    """Sums over answers, in tokens, answers and steps."""

    answers: int = 0
    prompt_tokens: int = 0
    """The cloud alone reads all of them, and draws all `answer_tokens`, each in a step of its own."""
    answer_tokens: int = 0
    read_tokens: int = 0
    """Tokens that clouds read: prompts of answers that asked one, and drafts."""
    drawn_tokens: int = 0
    """Tokens that clouds drew."""
    steps: int = 0

    def add(self, report: Collaboration, prompt_tokens: int) -> None:
        self.answers += 1
        self.prompt_tokens += prompt_tokens
        self.answer_tokens += sum(report.tokens.values())
        self.read_tokens += report.drafted + (prompt_tokens if report.cloud_calls else 0)
        self.drawn_tokens += sum(report.tokens[source] for source in BY_CLOUD)
        self.steps += report.cloud_steps


class Savings:
    """Counts since the start, and since midnight. What a draft costs is not sold anywhere: it is priced as a prompt."""

    def __init__(self, prices: PricesConfig, today: Callable[[], date] = date.today) -> None:
        self._prices, self._today = prices, today
        self._since_start, self._of_day, self._day = CloudWork(), CloudWork(), today()

    def record(self, report: Collaboration, prompt_tokens: int) -> None:
        """Counts one answer that has ended, also if its client left."""
        for work in (self._since_start, self._current_day()):
            work.add(report, prompt_tokens)

    def stats(self) -> dict[str, dict[str, float | None]]:
        """Both counts; `money` is what was not spent, and null without prices."""
        return {"since_start": self._row(self._since_start), "today": self._row(self._current_day())}

    def _current_day(self) -> CloudWork:
        if self._day != (today := self._today()):
            self._of_day, self._day = CloudWork(), today
        return self._of_day

    def _row(self, work: CloudWork) -> dict[str, float | None]:
        alone = self._price(work.prompt_tokens, work.answer_tokens)
        money = alone - self._price(work.read_tokens, work.drawn_tokens)
        priced = {"money": money, "money_alone": alone} if alone else {"money": None, "money_alone": None}
        return {**structs.asdict(work), "steps_saved": work.answer_tokens - work.steps, **priced}

    def _price(self, read: int, drawn: int) -> float:
        return (read * self._prices.prompt + drawn * self._prices.completion) / 1e6
