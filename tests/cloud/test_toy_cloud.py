"""The cloud server's routes on a toy engine: what /stats tells, and how answers end."""

import pytest

from benchmarks.toy_model import END, Model
from tests.cloud.toy_engine import ToyEngine, toy_cloud


async def test_stats_tell_the_sessions_that_are_held_and_their_bytes() -> None:
    async with toy_cloud(ToyEngine()) as http:
        for session in ("a", "b"):
            async with http.post("/verify", json={"session": session, "new_token_ids": [5, 6, 7]}) as response:
                drawn = len((await response.json())["token_ids"])
                assert drawn == 1
        async with http.get("/stats") as response:
            stats = await response.json()
    assert (stats["sessions"], stats["session_bytes"]) == (2, 2 * 4 * 4)


@pytest.mark.parametrize(("model", "reason"), [(lambda ids: 9, "length"), (lambda ids: END, "stop")])
@pytest.mark.parametrize("draft", [[], [9]], ids=["without a draft", "with a draft"])
async def test_the_last_token_of_the_context_is_a_stop_only_if_it_ends_the_answer(
    model: Model, reason: str, draft: list[int]
) -> None:
    prompt = [5] * (99 - len(draft))
    async with toy_cloud(ToyEngine(model)) as http:
        body = {"new_token_ids": prompt, "draft_token_ids": draft, "max_tokens": 4}
        async with http.post("/verify", json=body) as response:
            assert (await response.json())["finish_reason"] == reason


async def test_a_draft_that_is_longer_than_the_room_is_verified_as_far_as_it_fits() -> None:
    async with toy_cloud(ToyEngine(lambda ids: 9)) as http:
        for committed in range(90, 100):
            body = {"new_token_ids": [5] * committed, "draft_token_ids": [9] * 16}
            async with http.post("/verify", json=body) as response:
                answer = await response.json()
            assert answer["token_ids"] == [9] * (100 - committed)
            assert (answer["drafted"], answer["finish_reason"]) == (100 - committed, "length")
        async with http.post("/verify", json={"new_token_ids": [5] * 100}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (400, "context_length_exceeded")


async def test_the_cloud_tells_its_context() -> None:
    async with toy_cloud(ToyEngine(max_model_len=77)) as http, http.get("/tokenizer") as response:
        assert (await response.json())["context_length"] == 77
