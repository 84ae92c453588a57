"""Different vocabularies: the answer is the cloud's own whatever is drafted and however text is tokenized."""

import math
import random

import pytest

from common.decoding.drafters.retokenize import BACK, EdgeText
from common.decoding.drafters.vocab_translation import PaddedDrafter, TranslatingDrafter
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.protocol.vocabulary import RemoteVocabulary
from common.types import GREEDY, Draft, Sampling, StopRule
from tests.support.fakes import FakeDrafter
from tests.support.vocabularies import ODD, EdgeSide, TextDrafter, Truth, file, spelled

PAIRS = [("bytes", "digits"), ("digits", "bytes"), ("bytes", "pieces"), ("pieces", "digits")]
EDGE_PROMPT, CLOUD_PROMPT = [1, 40, 41], [1, 50, 51, 52]
TEXT = ODD[2] + " Machine learning is when computers learn from 1234 examples, isn't it? 🙂 Oui, naïve café."


def whole(parts: list[int], edge: EdgeSide) -> bytes:
    return b"".join(map(edge.piece, parts))


def translating(
    edge_kind: str, cloud: RemoteVocabulary, text: str, **how: int
) -> tuple[TranslatingDrafter, TextDrafter]:
    edge = EdgeSide(edge_kind)
    inner = TextDrafter(edge, text, len(EDGE_PROMPT), **how)
    return TranslatingDrafter(inner, edge, cloud, EDGE_PROMPT, len(CLOUD_PROMPT)), inner


def any_cut(cloud: RemoteVocabulary, text: str, rng: random.Random) -> list[int]:
    """An unusual tokenization of `text`: down to single bytes, with special tokens in between."""
    ids: list[int] = []
    at = 0
    while at < len(text):
        end = min(len(text), at + rng.randint(1, 6))
        part = text[at:end]
        if rng.random() < 0.3:
            ids += [cloud.byte_tokens[bytes([byte])] for byte in part.encode()]
        else:
            ids += [token for token, _ in cloud.tokens(part)]
        if rng.random() < 0.1:
            ids.append(1)
        at = end
    return ids


@pytest.mark.parametrize("kind", ["bytes", "digits", "pieces"])
@pytest.mark.parametrize("text", ODD)
def test_the_edges_tokens_spell_what_is_committed_at_every_cut(kind: str, text: str) -> None:
    edge, data, rng = EdgeSide(kind), text.encode(), random.Random(1)
    for _ in range(30):
        follower, at = EdgeText(edge, EDGE_PROMPT), 0
        while at < len(data):
            end = min(len(data), at + rng.randint(1, 7))
            follower.follow(data[at:end])
            at = end
            done = whole(follower.ids[len(EDGE_PROMPT) :], edge)
            assert data[:at].startswith(done)
            assert at - len(done) < 4, "only part of a character is held back"
        assert whole(follower.ids[len(EDGE_PROMPT) :], edge) == data


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_only_the_last_word_is_tokenized_again(kind: str) -> None:
    edge, data = EdgeSide(kind), (TEXT * 20).encode()
    follower = EdgeText(edge, EDGE_PROMPT)
    for at in range(0, len(data), 5):
        before = list(follower.ids)
        follower.follow(data[at : at + 5])
        kept = max(0, len(before) - BACK)
        assert follower.ids[:kept] == before[:kept]


def test_bytes_that_are_not_utf8_are_followed_too() -> None:
    edge = EdgeSide("bytes")
    follower = EdgeText(edge, EDGE_PROMPT)
    follower.follow(b"good \xff\xfe bad")
    follower.follow(b" and good again")
    assert whole(follower.ids[len(EDGE_PROMPT) :], edge).endswith(b" and good again")


@pytest.mark.parametrize(("edge_kind", "cloud_kind"), PAIRS)
@pytest.mark.parametrize("length", [1, 2, 4, 16])
async def test_lossless_answers_are_the_clouds_own_however_they_are_tokenized(
    edge_kind: str, cloud_kind: str, length: int
) -> None:
    cloud, rng = RemoteVocabulary(file(cloud_kind)), random.Random(length)
    plan = Plan(use_confidence_check=False, max_draft_tokens=length, stretch_tokens=3)
    for text in [*ODD, TEXT]:
        truths = [[*(token for token, _ in cloud.tokens(text)), 0], [*any_cut(cloud, text, rng), 0]]
        for truth in truths:
            for guess in (text, text[: len(text) // 2] + " quite another", "x" + text):
                drafter, _ = translating(edge_kind, cloud, guess)
                pipeline = Pipeline(
                    DecodingRequest(CLOUD_PROMPT, 400, GREEDY, plan), drafter, Truth(truth, len(CLOUD_PROMPT))
                )
                assert [token async for chunk in pipeline.run() for token in chunk.token_ids] == truth[:400]


@pytest.mark.parametrize(("edge_kind", "cloud_kind"), [("bytes", "digits"), ("digits", "bytes"), ("pieces", "digits")])
async def test_an_edge_that_knows_the_answer_is_accepted_to_its_end(edge_kind: str, cloud_kind: str) -> None:
    cloud = RemoteVocabulary(file(cloud_kind))
    truth = [*(token for token, _ in cloud.tokens(TEXT)), 0]
    drafter, inner = translating(edge_kind, cloud, TEXT)
    plan = Plan(use_confidence_check=False, max_draft_tokens=8)
    pipeline = Pipeline(DecodingRequest(CLOUD_PROMPT, 400, GREEDY, plan), drafter, Truth(truth, len(CLOUD_PROMPT)))
    assert [token async for chunk in pipeline.run() for token in chunk.token_ids] == truth
    report = pipeline.answer.report
    assert report.accepted == report.drafted > 0
    assert report.rounds < len(truth) / 4
    for before, after in zip(inner.asked, inner.asked[1:], strict=False):
        assert after[: len(before)] == before, "what was decoded is never decoded again"


@pytest.mark.parametrize(("edge_kind", "cloud_kind"), PAIRS)
async def test_drafts_are_the_edges_text_without_special_tokens_and_have_its_confidence(
    edge_kind: str, cloud_kind: str
) -> None:
    cloud = RemoteVocabulary(file(cloud_kind))
    for text in ODD:
        for limit in (1, 3, 8, 400):
            drafter, inner = translating(edge_kind, cloud, text)
            draft = await drafter.draft(CLOUD_PROMPT, limit, GREEDY)
            assert len(draft.token_ids) == len(draft.probs) == len(draft.confidences) <= limit
            ids = draft.token_ids[:-1] if draft.finished else draft.token_ids
            assert not {0, 1} & set(ids)
            assert text.encode().startswith(b"".join(map(cloud.piece, draft.token_ids)))
            if draft.finished:
                edge = await inner.draft(EDGE_PROMPT, 1000, GREEDY)
                assert math.prod(draft.confidences) == pytest.approx(math.prod(edge.confidences))
            else:
                assert limit < 400


async def test_a_translated_draft_ends_where_its_rule_says_and_goes_on_from_there() -> None:
    """An edge that drew all 16 tokens each time took 15 s for an answer that its cloud alone gave in 11."""
    cloud = RemoteVocabulary(file("digits"))
    drafter, inner = translating("bytes", cloud, TEXT)
    rule = StopRule(below=0.3)
    draft = await drafter.draft(CLOUD_PROMPT, 16, GREEDY, stop=rule)
    assert 0 < len(draft.token_ids) < 16
    drawn = inner.drawn
    assert drawn < 16
    again = await drafter.draft(CLOUD_PROMPT, 16, GREEDY, stop=rule)
    assert again.token_ids[: len(draft.token_ids)] == draft.token_ids
    assert inner.drawn < drawn + 16
    whole_draft = await drafter.draft(CLOUD_PROMPT, 16, GREEDY)
    assert len(whole_draft.token_ids) == 16


async def test_an_unfinished_word_is_held_back_until_no_text_can_change_it() -> None:
    cloud = RemoteVocabulary(file("bytes"))
    drafter, _ = translating("digits", cloud, "1234 examples of data! The capital")
    draft = await drafter.draft(CLOUD_PROMPT, 4, GREEDY)
    truth = [token for token, _ in cloud.tokens("1234 examples of data! The capital")]
    assert draft.token_ids == truth[: len(draft.token_ids)]


async def test_a_full_edge_context_ends_drafting_and_loses_no_token() -> None:
    cloud = RemoteVocabulary(file("digits"))
    truth = [*(token for token, _ in cloud.tokens(TEXT)), 0]
    drafter, _ = translating("bytes", cloud, TEXT, context=20)
    plan = Plan(use_confidence_check=False, stretch_tokens=4)
    pipeline = Pipeline(DecodingRequest(CLOUD_PROMPT, 400, GREEDY, plan), drafter, Truth(truth, len(CLOUD_PROMPT)))
    assert [token async for chunk in pipeline.run() for token in chunk.token_ids] == truth


async def test_the_edge_samples_with_its_own_prompt_length_and_drafts_again_when_sampling_changes() -> None:
    cloud = RemoteVocabulary(file("digits"))
    drafter, inner = translating("bytes", cloud, TEXT)
    first = await drafter.draft(CLOUD_PROMPT, 4, Sampling(prompt_tokens=len(CLOUD_PROMPT)))
    await drafter.draft([*CLOUD_PROMPT, *first.token_ids], 4, Sampling(temperature=1.0, prompt_tokens=4))
    assert {sampling.prompt_tokens for sampling in inner.samplings} == {len(EDGE_PROMPT)}
    done = whole(inner.asked[-1][len(EDGE_PROMPT) :], EdgeSide("bytes"))
    assert done == b"".join(map(cloud.piece, first.token_ids)), "nothing drawn with other sampling is kept"


async def test_padding_is_neither_drafted_nor_followed() -> None:
    drafter = PaddedDrafter(FakeDrafter(lambda ids: len(ids)), size=6)
    assert (await drafter.draft([1, 2, 3], 8, GREEDY)).token_ids == [3, 4, 5]
    assert (await drafter.draft([1, 2], 3, GREEDY)).token_ids == [2, 3, 4]
    assert await drafter.draft([1, 6], 3, GREEDY) == Draft([], [], [], False, 0.0)


def test_the_fake_edge_can_begin_inside_a_character() -> None:
    edge = EdgeSide("bytes")
    assert whole(spelled(edge, "🙂 ok".encode()[2:]), edge) == "🙂 ok".encode()[2:]
