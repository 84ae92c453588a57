"""A clock that tests set by hand."""


class ManualClock:
    """Stands in for `time.monotonic`; its seconds pass only when a test changes `now`."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
