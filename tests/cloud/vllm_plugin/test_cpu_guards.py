"""The guards against vLLM's faults on CPU are right where vLLM's own functions are still wrong."""

import inspect

import pytest
import torch
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler

from cloud.vllm_plugin import cpu_guards, patches

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="the guards are for the CPU platform")

patches.install()
guarded_expand = rejection_sampler.expand_batch_to_tokens
guarded_top_k_top_p = rejection_sampler.apply_top_k_top_p
unguarded_expand, unguarded_top_k_top_p = inspect.unwrap(guarded_expand), inspect.unwrap(guarded_top_k_top_p)

CUMULATIVE = torch.tensor([2, 2, 5, 6], dtype=torch.int32)
DTYPES = [torch.float32, torch.int32]


def right_expansion(x: torch.Tensor, replace_from: int, replace_to: int) -> torch.Tensor:
    a, _, c, d = (replace_to if value == replace_from else value for value in x.tolist())
    return torch.tensor([a, a, c, c, c, d], dtype=x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_guarded_expansion_repeats_each_request_for_its_tokens(dtype: torch.dtype) -> None:
    x = torch.tensor([3, 5, 0, 7], dtype=dtype)
    expanded = guarded_expand(x, CUMULATIVE, 6, replace_from=0, replace_to=1)
    assert expanded.dtype == dtype
    assert torch.equal(expanded, right_expansion(x, 0, 1))
    assert torch.equal(guarded_expand(x, CUMULATIVE, 6), right_expansion(x, 0, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_expansion_without_the_guard_is_still_wrong(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    current_platform.register_triton_kernel_overrides()  # as vLLM's worker does at its start
    # Memory that happens to hold the right values would hide that nothing is written.
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, size: self.new_full((size,), -9))
    x = torch.tensor([3, 5, 0, 7], dtype=dtype)
    expanded = unguarded_expand(x, CUMULATIVE, 6, replace_from=0, replace_to=1)
    assert not torch.equal(expanded, right_expansion(x, 0, 1))


def test_guarded_top_k_passes_a_step_without_drafts() -> None:
    empty = torch.empty(0, 16)
    assert guarded_top_k_top_p(empty, torch.empty(0, dtype=torch.int32), None).shape == (0, 16)


def test_guarded_top_k_masks_like_vllm_where_there_are_drafts() -> None:
    logits, k = torch.randn(3, 16, generator=torch.manual_seed(0)), torch.tensor([1, 4, 16], dtype=torch.int32)
    kept = guarded_top_k_top_p(logits.clone(), k, None).isfinite().sum(dim=-1)
    assert kept.tolist() == k.tolist()


def test_top_k_without_the_guard_still_fails_on_a_step_without_drafts() -> None:
    with pytest.raises((RuntimeError, IndexError)):
        unguarded_top_k_top_p(torch.empty(0, 16), torch.empty(0, dtype=torch.int32), None)


def test_a_rewound_generator_draws_the_same_again() -> None:
    generator = cpu_guards.RewindingGenerator()
    generator.manual_seed(3)
    before = torch.empty(4).exponential_(generator=generator)
    generator.mark()
    drawn = torch.empty(4).exponential_(generator=generator)
    generator.set_offset(generator.get_offset() - 4)  # as vLLM does
    again = torch.empty(4).exponential_(generator=generator)
    assert torch.equal(again, drawn) and not torch.equal(again, before)


def test_a_generator_for_the_cpu_still_has_no_offset() -> None:
    with pytest.raises(RuntimeError):
        torch.Generator().get_offset()


def test_vllms_functions_are_guarded_once() -> None:
    for guarded, unguarded in ((guarded_expand, unguarded_expand), (guarded_top_k_top_p, unguarded_top_k_top_p)):
        assert guarded.__wrapped__ is unguarded
        assert unguarded.__module__.startswith("vllm.")
