"""The `timings` object of llama-server: how long prompt and answer took."""

import time


class Timings:
    """Of one response; `tick` is called when text arrives. The prompt's time ends with the first text."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._first: float | None = None
        self._last = self._began

    def tick(self) -> None:
        self._last = time.perf_counter()
        self._first = self._last if self._first is None else self._first

    def report(self, prompt: int, cached: int, answer: int, drafted: int, accepted: int) -> dict[str, float]:
        """With the numbers of tokens: of the prompt, those of it whose KV was found, of the answer, and of drafts."""
        first = self._last if self._first is None else self._first
        timings: dict[str, float] = {"cache_n": cached}
        timings |= _rates("prompt", prompt - cached, (first - self._began) * 1e3)
        timings |= _rates("predicted", answer, (self._last - first) * 1e3)
        return timings | ({"draft_n": drafted, "draft_n_accepted": accepted} if drafted else {})


def _rates(name: str, tokens: int, milliseconds: float) -> dict[str, float]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": milliseconds,
        f"{name}_per_token_ms": milliseconds / tokens if tokens else 0.0,
        f"{name}_per_second": tokens / milliseconds * 1e3 if milliseconds else 0.0,
    }
