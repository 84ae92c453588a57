"""Patterns of private prompts: what they find, and that no pattern can stop the edge, however it backtracks."""

import asyncio
import os
import signal
from typing import Any

import pytest

from benchmarks.fake_cloud import serving
from common.cloud_client import privacy
from common.cloud_client.privacy import PrivatePatterns, has_token_ids, numbers_of, texts_of
from common.http.request_context import current_tenant
from common.http_client import EdgeCloudHTTPClient
from tests.support.edge_in_process import edge_of

BACKTRACKING = r"(\w+\s?)+:secret"
WORDS = "the quick brown fox jumps over the lazy dog and then it sleeps until the next morning comes"


def test_the_texts_of_a_body_are_found_in_order_at_any_depth_and_in_names_but_not_in_media() -> None:
    media = "data:image/png;base64,aGVsbG8="
    body = [{"a": ["b", {"c": 1, "d": None}], "e": media}, f"see {media}", "data:text/plain,secret"]
    assert texts_of(body) == ["a", "b", "c", "d", "e", f"see {media}", "data:text/plain,secret"]
    deep: object = "secret"
    for _ in range(10_000):
        deep = [{"not": deep}]
    assert texts_of(deep)[-1] == "secret"


@pytest.mark.parametrize(
    ("body", "found"),
    [([1], True), ({"a": [["b"], [[2]]]}, True), ({"a": 1, "b": ["c", {"d": 2}]}, False), ("a", False)],
)
def test_token_ids_are_numbers_in_a_list(body: object, found: bool) -> None:
    assert has_token_ids(body) is found


def test_numbers_are_found_as_json_writes_them() -> None:
    assert numbers_of({"a": [1, {"b": 2.5}], "c": True, "d": None, "e": "3"}) == ["1", "2.5"]


def child(patterns: PrivatePatterns) -> int:
    assert patterns._process is not None
    return patterns._process.pid


@pytest.mark.parametrize(
    ("prompt", "private"),
    [
        *(
            ("My number is 123-45-6789.", True),
            ("TOP secret", True),
            ("Zürich \ud800", True),
            ("Hi", False),
            ("", False),
        ),
        *((r'"TOP\u0020secret"', True), (r'"{\"a\": \"TOP\\u0020secret\"}"', True), (r"TOP\x20secret", False)),
        *((r"smile \ud83d\ude00", True), (r"C:\users \ud8", False), (r"TOP\nsecret", False)),
    ],
)
async def test_a_prompt_is_private_if_a_pattern_matches_somewhere_in_it(prompt: str, private: bool) -> None:
    async with PrivatePatterns([r"\d{3}-\d{2}-\d{4}", "(?i)top secret", "ü.*\ud800", "smile \U0001f600"]) as patterns:
        assert [await patterns.match(prompt) for _ in range(2)] == [private] * 2
    async with PrivatePatterns([]) as none:
        assert not await none.match(prompt)


async def test_a_search_that_takes_too_long_counts_as_a_match_while_the_loop_runs_on() -> None:
    async with PrivatePatterns([BACKTRACKING]) as patterns:
        searching, turns = asyncio.create_task(patterns.match(WORDS)), 0
        while not searching.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert searching.result() and turns > 2  # a loop that stands still meanwhile turns twice: before and after
        assert await asyncio.gather(*map(patterns.match, ("my:secret", "hello"))) == [True, False]


async def test_a_tenant_that_has_many_texts_searched_keeps_no_other_waiting() -> None:
    ended = list[str]()

    async def search(tenant: str) -> None:
        current_tenant.set(tenant)
        await patterns.match(WORDS if tenant == "slow" else "hello")
        ended.append(tenant)

    async with PrivatePatterns([BACKTRACKING], seconds=0.1) as patterns:
        searches = [asyncio.create_task(search("slow")) for _ in range(6)]
        await asyncio.sleep(0)
        await asyncio.gather(search("other"), *searches)
    assert ended.index("other") <= 1


async def test_without_the_limit_such_a_search_does_not_end_and_leaves_nothing_when_it_is_cancelled() -> None:
    async with PrivatePatterns([BACKTRACKING], seconds=600) as patterns:
        assert not await patterns.match("hello")
        process = child(patterns)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(patterns.match(WORDS), 1.5)
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
        assert await patterns.match("my:secret")


async def test_a_search_whose_process_is_lost_or_stands_still_counts_as_a_match(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with PrivatePatterns(["secret"]) as patterns:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            assert not await patterns.match("hello")
            with monkeypatch.context() as shorter:
                shorter.setattr(privacy, "LOST_SECONDS", 0.5)
                os.kill(child(patterns), number)
                assert await patterns.match("hello")


async def test_an_edge_answers_others_while_a_pattern_backtracks_and_sends_that_prompt_nowhere() -> None:
    ask: dict[str, Any] = {"prompt": WORDS, "max_tokens": 2, "mode": "cloud_only"}
    async with serving() as cloud, edge_of(cloud.url, f"inference.private_patterns=['{BACKTRACKING}']") as edge:
        asking, answered = asyncio.create_task(edge.post("/v1/completions", ask, dict)), 0
        while not asking.done():
            await edge.get("/health", dict)
            answered += 1
        assert answered >= 5
        assert asking.result()["collaboration"]["mode"] == "edge_only"
        assert (cloud.asked, cloud.starts) == ([], [])
        async with EdgeCloudHTTPClient(edge.base_url, cloud.url, private_patterns=[BACKTRACKING]) as client:
            await cloud.share_vocabulary(edge)
            assert (await client.full_inference_pipeline(WORDS, max_tokens=2)).collaboration.mode == "edge_only"
        assert cloud.asked == []
