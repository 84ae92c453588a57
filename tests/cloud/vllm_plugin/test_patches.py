"""The patches of vLLM: all in place in an engine process, none in the web server's, once each, seeds kept."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1 import structured_output
from vllm.v1.executor.abstract import Executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.gpu_input_batch import InputBatch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from cloud.vllm_plugin import answer_so_far, grammar_backend, patches, round_seed
from cloud.vllm_plugin.keys import ANSWER_KEY

GUARDED = [(rejection_sampler, "expand_batch_to_tokens"), (rejection_sampler, "apply_top_k_top_p")]
PATCHED: list[tuple[Any, str]] = [
    (InputBatch, "add_request"),
    (GPUModelRunner, "_sample"),
    (structured_output, "GuidanceBackend"),
    *((executor, "take_draft_token_ids") for executor in (Executor, MultiprocExecutor, UniProcExecutor)),
    *(GUARDED if current_platform.is_cpu() else []),
]
Install = Callable[[], None]
WRAPPING = [install for install in patches.ORDER if install is not grammar_backend.install]
"""Of the others none can undo another: what `grammar_backend` replaces is its alone."""
ORDERS = list(itertools.permutations(WRAPPING))


def keeps_seeds(order: tuple[Install, ...]) -> bool:
    return order.index(answer_so_far.install) < order.index(round_seed.install)


def ours() -> set[str]:
    """The names of the functions in vLLM that this project has replaced."""
    return {name for place, name in PATCHED if getattr(place, name).__module__.startswith("cloud.")}


def printed(*lines: str) -> list[str]:
    """What a fresh interpreter prints, which runs `lines` and can call `ours`."""
    code = "\n".join(["import cloud", *lines])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


ALL = repr(sorted({name for _, name in PATCHED}))
SHOW = "print(sorted(ours()))"
OURS = "from tests.cloud.vllm_plugin.test_patches import ours"


def test_the_web_server_runs_vllms_own_functions_and_a_scheduler_patches_all_of_them() -> None:
    shown = printed(
        "import cloud.cloud_server, sys",
        "web = 'cloud.vllm_plugin.patches' in sys.modules",
        OURS,
        SHOW,
        "import cloud.vllm_plugin.scheduler",
        SHOW,
        "print(web)",
    )
    assert shown == ["[]", ALL, "False"]


def test_the_tails_scheduler_patches_all_functions_and_the_other_one_then_changes_nothing() -> None:
    found = "[getattr(place, name) for place, name in PATCHED]"
    shown = printed(
        OURS,
        "from tests.cloud.vllm_plugin.test_patches import PATCHED",
        "import cloud.vllm_plugin.tail_scheduler",
        SHOW,
        f"before = {found}",
        "import cloud.vllm_plugin.scheduler",
        f"print(before == {found})",
    )
    assert shown == [ALL, "True"]


@pytest.fixture
def unpatched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """vLLM in this process without patches; the requests that enter a batch are listed."""
    entered: list[Any] = []

    def add_request(batch: object, request: Any) -> int:
        entered.append(request)
        return len(entered)

    for place, name in PATCHED:
        monkeypatch.setattr(place, name, lambda *_: None)
    monkeypatch.setattr(InputBatch, "add_request", add_request)
    monkeypatch.setattr(patches, "install", cache(patches.install.__wrapped__))
    return entered


def enter() -> Any:
    """A seeded verify request of four tokens, two of them the answer so far, once it is in a worker's batch."""
    params = SamplingParams(temperature=1.0, seed=7, extra_args={ANSWER_KEY: 2})
    request = SimpleNamespace(
        sampling_params=params, prompt_token_ids=[1, 2, 3, 4], output_token_ids=[], generator=None
    )
    InputBatch.add_request(SimpleNamespace(device="cpu"), request)
    return request


def test_a_seeded_round_with_an_answer_so_far_keeps_both(unpatched: list[Any]) -> None:
    patches.install()
    request = enter()
    assert (request.prompt_token_ids, request.output_token_ids) == ([1, 2], [3, 4])
    assert request.generator.initial_seed() == 7


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_keeps_the_seeds_if_answers_are_patched_before_seeds_and_only_then(
    unpatched: list[Any], order: tuple[Install, ...]
) -> None:
    for install in order:
        install()
    request = enter()
    assert (request.prompt_token_ids, request.output_token_ids) == ([1, 2], [3, 4])
    assert (request.generator is not None) == keeps_seeds(order)


def test_installing_twice_wraps_once(unpatched: list[Any]) -> None:
    patches.install()
    once = [getattr(place, name) for place, name in PATCHED]
    patches.install()
    assert [getattr(place, name) for place, name in PATCHED] == once
    enter()
    assert len(unpatched) == 1
