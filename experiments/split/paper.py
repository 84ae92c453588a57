"""What CE-CoLLM's paper reports (arXiv 2411.02829), to be shown beside what is measured here. Only figures of theirs.

Theirs are LLaMA-2-7B over 100 samples of each data set, on their hardware and network. Here are other models, questions
and machines: shares and reductions can be compared, seconds and megabytes cannot.
"""

from typing import NamedTuple


class Data(NamedTuple):
    """Megabytes of one response, and the share that is saved."""

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
    task: str
    dataset: str
    collaborative: float
    cloud_only: float


DATA = (Data("Alpaca", 112, 0.96, 0.9915), Data("XSum", 673, 3.76, 0.9944))
REQUEST_RATE = 0.4958
"""Share of Alpaca's tokens that asked the cloud."""
EXITS = {"Alpaca": 0.4789, "XSum": 0.6826}
"""Share of tokens that an exit was sure of."""
OFFLOADED = {"Alpaca": 0.6952, "XSum": 0.8453}
"""Share of the cloud's computing that was saved."""
TIMES = (
    Time("cloud only", 370, 370, 0, 0.4),
    Time("naive split", 3372, 253, 241, 2877),
    Time("CE-CoLLM", 319, 113, 192, 14),
)
TIME_SAVED = 0.1381
ACCURACY = (
    Accuracy("questions", "BoolQ", 0.658, 0.646),
    Accuracy("questions", "QuAC", 0.289, 0.291),
    Accuracy("sentiment", "IMDB", 0.724, 0.724),
    Accuracy("summaries", "XSum", 0.225, 0.228),
)
HIDDEN, LAYERS = 4096, 32
"""Of their model."""
