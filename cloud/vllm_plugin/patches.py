"""Installs everything that this project changes inside vLLM's engine processes."""

from collections.abc import Callable
from functools import cache

from cloud.vllm_plugin import answer_so_far, cpu_guards, grammar_backend, plain_steps, round_seed

ORDER: tuple[Callable[[], None], ...] = (
    cpu_guards.install,
    answer_so_far.install,
    round_seed.install,
    plain_steps.install,
    grammar_backend.install,
)
"""A later patch runs before an earlier one of the same function.

`round_seed` must come after `answer_so_far`; both wrap `InputBatch.add_request`. To `round_seed`, a request with output
tokens is one that was preempted within its round, and keeps its generator. `answer_so_far` turns prompt tokens into
output tokens: if it ran first, every round with an answer so far would lose its seed. The others touch no common
function.
"""


@cache
def install() -> None:
    """Applies all patches to vLLM in this process; does nothing from the second call on.

    Each patch wraps the function that it finds when it is installed, and keeps it as `__wrapped__`.
    """
    for patch in ORDER:
        patch()
