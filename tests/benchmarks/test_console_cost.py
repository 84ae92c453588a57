"""What the benchmark of the console takes for a page is what the page says; a browser sees it in tests/console."""

import re

from benchmarks import console_cost
from edge.console.pages import FILES

LIVE = (FILES / "js" / "live.js").read_text()


def test_a_page_of_the_benchmark_looks_as_often_and_at_the_same_counters_as_a_real_one() -> None:
    (seconds,) = re.findall(r"const SECONDS = (\d+);", LIVE)
    assert int(seconds) == console_cost.SECONDS
    (names,) = re.findall(r"const NAMES = \[(.*?)\n\];", LIVE, re.DOTALL)
    parts = re.findall(r'"(\w+)"', names)
    assert len(parts) == len(console_cost.NAMES) > 5
    assert [one for one in parts if not any(one in name for name in console_cost.NAMES)] == []
