"""Lists the figures that the CE-CoLLM paper reports (arXiv 2411.02829), to show beside what is measured here.

The paper uses LLaMA-2-7B on 100 samples of each data set, on its own hardware and network. Models, questions and
machines differ here: shares and reductions can be compared, seconds and megabytes cannot.
"""

from typing import NamedTuple


class Data(NamedTuple):
    """Megabytes of one response with a naive split and with the paper's method, and the share saved."""

    dataset: str
    naive: float
    ours: float
    reduction: float


class Time(NamedTuple):
    """Seconds for 100 samples of Alpaca."""

    method: str
    total: float
    cloud: float
    edge: float
    communication: float


class Accuracy(NamedTuple):
    """Quality of collaborative and of cloud-only answers, 0 to 1."""

    task: str
    dataset: str
    collaborative: float
    cloud_only: float


DATA = (Data("Alpaca", 112, 0.96, 0.9915), Data("XSum", 673, 3.76, 0.9944))
REQUEST_RATE = 0.4958
"""Share of Alpaca's tokens for which the edge asked the cloud."""
EXITS = {"Alpaca": 0.4789, "XSum": 0.6826}
"""Share of tokens that an exit decided."""
OFFLOADED = {"Alpaca": 0.6952, "XSum": 0.8453}
"""Share of the cloud's computation that was saved."""
TIMES = (
    Time("cloud only", 370, 370, 0, 0.4),
    Time("naive split", 3372, 253, 241, 2877),
    Time("CE-CoLLM", 319, 113, 192, 14),
)
TIME_SAVED = 0.1381
"""Share of cloud only's time for Alpaca."""
ACCURACY = (
    Accuracy("questions", "BoolQ", 0.658, 0.646),
    Accuracy("questions", "QuAC", 0.289, 0.291),
    Accuracy("sentiment", "IMDB", 0.724, 0.724),
    Accuracy("summaries", "XSum", 0.225, 0.228),
)
HIDDEN, LAYERS = 4096, 32
"""Of the paper's model."""
