"""Look-up drafts: what they propose, that they change no answer, and that none is kept without the cloud."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from common.config_schema import OnlineConfig
from common.decoding.answer import Answer
from common.decoding.drafters.lookup_drafter import LookupDrafter
from common.decoding.online_gate import OnlineGate
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Gate, Plan
from common.decoding.request import DecodingRequest
from common.errors import EndpointError, GrammarError
from common.lookup.lookup import AT_ONCE, Lookup, MatchRate
from common.lookup.suffix_index import CANDIDATES, LONGEST, SEPARATOR, SuffixIndex
from common.types import (
    GREEDY,
    NEVER,
    Draft,
    DraftSource,
    Objective,
    Provenance,
    Sampling,
    StopRule,
    VerificationMode,
)
from tests.support.fakes import END, FakeDrafter, FakeVerifier, Model, answer_of, cloud_model, erring_model

PROMPTS = [[p, p + 3, 2 * p] for p in range(1, 40)]
ROUNDS = Plan(use_confidence_check=False, verification_mode=VerificationMode.ROUNDS)
CONTINUOUS = replace(ROUNDS, verification_mode=VerificationMode.CONTINUOUS)
GATED = Plan(gate=Gate(0.8, 0.0))
TEXT = random.Random(0).sample(range(2, 90), 60)
EDITED = [*TEXT[:20], 99, *TEXT[21:40], 98, 97, *TEXT[41:], END]


def editor(prompt: list[int], edited: list[int]) -> Model:
    """A model that answers `prompt` with `edited`."""
    return lambda ids: edited[min(len(ids) - len(prompt), len(edited) - 1)]


@dataclass
class Editing:
    """A cloud that repeats the prompt with two edits, and an edge model that knows nothing."""

    plan: Plan
    prediction: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=lambda: [91, *TEXT, 92])
    edge: Model = lambda ids: 1
    confidence: float = 0.5
    lost_after: int = 10_000
    lookup: bool = True
    online: OnlineGate | None = None

    async def answer(self) -> Pipeline:
        verifier = FakeVerifier(self.lost_after, model=editor(self.prompt, EDITED))
        self.drafter = FakeDrafter(self.edge, lambda position: self.confidence)
        lookup = Lookup(len(self.prompt), self.prediction, (END,)) if self.lookup else None
        request = DecodingRequest(self.prompt, 80, GREEDY, self.plan)
        pipeline = Pipeline(request, self.drafter, verifier, online=self.online, lookup=lookup)
        self.ids = [token async for chunk in pipeline.run() for token in chunk.token_ids]
        return pipeline


def longest_match(text: list[int]) -> int:
    """The length of the longest match by brute force, up to LONGEST."""
    lengths = [
        next((n for n in range(min(place, LONGEST)) if text[place - 1 - n] != text[-1 - n]), min(place, LONGEST))
        for place in range(1, len(text))
    ]
    return max(lengths, default=0)


@pytest.mark.parametrize("letters", [2, 5, 20])
def test_the_index_finds_the_longest_match(letters: int) -> None:
    draw = random.Random(letters)
    text = [draw.randrange(letters) for _ in range(CANDIDATES * letters)]  # few enough for all candidates
    index = SuffixIndex()
    for length in range(1, len(text) + 1):
        index.extend([text[length - 1]])
        match, longest = index.find(), longest_match(text[:length])
        assert (match.length if match else 0) == (longest if longest >= 2 else 0)
        if match:
            assert text[match.position - match.length : match.position] == text[length - match.length : length]


def test_one_text_read_at_once_or_token_by_token_gives_one_index() -> None:
    draw = random.Random(1)
    text = [draw.randrange(6) for _ in range(200)]
    whole, parts = SuffixIndex([1, 2, 3]), SuffixIndex([1, 2, 3])
    whole.extend(text)
    for token in text:
        parts.extend([token])
    assert whole.tokens == parts.tokens == [1, 2, 3, SEPARATOR, *text]
    assert whole.find() == parts.find()


async def test_a_repeated_period_is_continued_beyond_its_end() -> None:
    lookup, text = Lookup(7), [9, 5, 6, 7, 5, 6, 7]
    await lookup.read_prompt(text)
    assert lookup.propose([], 8).token_ids == [5, 6, 7, 5, 6, 7, 5, 6]


async def test_a_match_goes_on_past_an_edit_and_the_text_teaches_the_chances() -> None:
    prompt = [91, *TEXT, 92]
    lookup = Lookup(len(prompt), rate=MatchRate())
    await lookup.read_prompt(prompt)
    lookup.read(prompt + TEXT[:20])
    before = lookup.propose([], 1).confidences[0]
    lookup.read([*prompt, *TEXT[:20], 99])
    assert lookup.propose([], 3).token_ids == TEXT[21:24]
    lookup.read([*prompt, *TEXT[:20], 99, *TEXT[21:50]])
    assert lookup.propose([], 1).confidences[0] > before


async def test_text_that_does_not_repeat_lowers_the_chances_of_this_answer_and_a_little_those_of_others() -> None:
    shared, pairs = MatchRate(), [token for pair in zip(TEXT[::2], TEXT[1::2], strict=True) for token in (*pair, 90)]
    lookup = Lookup(len(TEXT), rate=shared)
    await lookup.read_prompt(TEXT)
    lookup.read([*TEXT, *pairs])
    assert lookup._rate.chance(4) < shared.chance(4) < MatchRate().chance(4)


@pytest.mark.parametrize("plan", [ROUNDS, replace(ROUNDS, draft_ahead=False), CONTINUOUS])
@pytest.mark.parametrize("model", [cloud_model, erring_model(2), lambda ids: 1])
async def test_lossless_answers_are_the_clouds_own_whatever_is_looked_up(plan: Plan, model: Model) -> None:
    for prompt, wrong in itertools.product(PROMPTS, (0, 1)):
        truth = answer_of(cloud_model, prompt, 40)
        prediction = [token + wrong * (place % 5 == 4) for place, token in enumerate(truth)]
        lookup = Lookup(len(prompt), prediction, (END,))
        request = DecodingRequest(prompt, 40, GREEDY, plan)
        pipeline = Pipeline(request, FakeDrafter(model), FakeVerifier(), lookup=lookup)
        ids = [token async for chunk in pipeline.run() for token in chunk.token_ids]
        report = pipeline.answer.report
        assert ids == truth
        assert report.lossless
        assert sum(report.drafters.values()) == report.tokens[Provenance.ACCEPTED]


@pytest.mark.parametrize("plan", [ROUNDS, CONTINUOUS, GATED])
async def test_an_edited_text_takes_fewer_steps_of_the_cloud_with_look_up(plan: Plan) -> None:
    editing, without = Editing(plan), Editing(plan, lookup=False)
    found, plain = (await editing.answer()).answer.report, (await without.answer()).answer.report
    assert editing.ids == without.ids == EDITED
    assert found.cloud_steps < plain.cloud_steps / 2
    assert found.drafters[DraftSource.LOOKUP] > len(EDITED) / 2


async def test_the_model_is_not_asked_while_the_look_up_is_sure() -> None:
    editing, without = Editing(ROUNDS), Editing(ROUNDS, lookup=False)
    found, plain = (await editing.answer()).answer.report, (await without.answer()).answer.report
    assert found.edge_drawn < plain.edge_drawn / 2
    assert found.edge_wasted == found.edge_drawn, "this model is never right"


async def test_what_the_model_drafts_after_a_look_up_follows_it() -> None:
    asked: list[list[int]] = []

    def model(ids: object) -> int:
        asked.append(list(ids))  # type: ignore[call-overload]
        return 1

    await Editing(ROUNDS, edge=model, prediction=EDITED[:5]).answer()
    assert [91, *TEXT, 92, *EDITED[:5]] in asked


async def test_a_prediction_is_drafted_from_its_beginning_and_counted() -> None:
    long_drafts = replace(ROUNDS, objective=Objective.COST)
    editing = Editing(long_drafts, prediction=EDITED, prompt=[91, 92])
    report = (await editing.answer()).answer.report
    assert editing.ids == EDITED
    assert report.predicted == len(EDITED)
    assert report.drafters[DraftSource.PREDICTION] == report.accepted == report.tokens[Provenance.ACCEPTED]
    assert report.cloud_steps < len(EDITED) / 10


def test_of_equal_matches_the_prediction_is_taken() -> None:
    index = SuffixIndex([1, 2, 3, 7])
    index.extend([1, 2, 3, 8, 5, 1, 2, 3])
    match = index.find()
    assert match is not None
    assert index.tokens[match.position] == 7


@pytest.mark.parametrize("confidence", [0.0, 1.0])
async def test_a_gated_answer_keeps_only_tokens_of_the_model(confidence: float) -> None:
    gates = [Gate(0.0, 0.0), GATED.gate]
    for gate in gates:
        editing = Editing(Plan(gate=gate), prediction=EDITED, confidence=confidence)
        pipeline = await editing.answer()
        kept = pipeline.answer.report.tokens[Provenance.EDGE]
        assert editing.ids.count(1) >= kept  # all that this edge model ever says
        assert kept or confidence < gate.threshold


async def test_an_online_gate_learns_from_the_models_own_tokens() -> None:
    online = OnlineGate(OnlineConfig(target_quality=0.9), GATED.gate)
    learning, without = Editing(GATED, prediction=EDITED, online=online), Editing(GATED, prediction=EDITED)
    assert (await learning.answer()).answer.report.drafters[DraftSource.PREDICTION] == 0
    assert (await without.answer()).answer.report.drafters[DraftSource.PREDICTION] > 0


@pytest.mark.parametrize("plan", [ROUNDS, CONTINUOUS, GATED])
@pytest.mark.parametrize("lost_after", [0, 1, 2])
async def test_without_the_cloud_nothing_is_looked_up(plan: Plan, lost_after: int) -> None:
    editing = Editing(plan, prediction=EDITED, lost_after=lost_after)
    pipeline = await editing.answer()
    if plan is CONTINUOUS and lost_after:
        return  # the whole answer is one call
    alone = pipeline.answer.report.tokens[Provenance.EDGE]
    assert pipeline.answer.report.degraded
    assert editing.ids[len(editing.ids) - alone :] == [1] * alone != []


async def test_a_lost_cloud_is_an_error_where_the_plan_says_so() -> None:
    with pytest.raises(EndpointError):
        await Editing(replace(ROUNDS, fallback=False), lost_after=1).answer()


async def test_an_end_token_ends_what_is_looked_up() -> None:
    prompt = [1, 2, 3, END, 50, 51, 1]
    lookup = Lookup(len(prompt), (), (END,))
    await lookup.read_prompt(prompt)
    lookup.read([*prompt, 2])
    draft = lookup.propose([], 8)
    assert (draft.token_ids, draft.finished) == ([3, END], True)


async def test_a_draft_ends_with_the_token_that_makes_it_unlikely() -> None:
    lookup = Lookup(len(TEXT))
    await lookup.read_prompt(TEXT)
    lookup.read(TEXT + TEXT[:4])
    chances = lookup.propose([], 30).confidences
    cut = lookup.propose([], 30, stop_below=chances[0] * chances[1]).confidences
    assert cut == chances[:3]


async def test_a_long_prompt_is_read_in_portions_and_only_its_end() -> None:
    reading, turns = True, 0

    async def count() -> None:
        nonlocal turns
        while reading:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(count())
    lookup = Lookup(40 * AT_ONCE)
    await lookup.read_prompt(range(40 * AT_ONCE))
    reading = False
    await other
    assert turns >= 15
    assert len(lookup._index.tokens) == 16 * AT_ONCE
    assert lookup._index.tokens[-1] == 40 * AT_ONCE - 1


class Strict(FakeDrafter):
    """Its grammar does not allow what was looked up."""

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        if TEXT[0] in token_ids:
            raise GrammarError("the answer so far does not match")
        return await super().draft(token_ids, limit, sampling)


async def test_found_text_that_breaks_the_answers_grammar_leaves_the_draft_to_the_model() -> None:
    lookup = Lookup(3, prediction=TEXT[:4], rate=MatchRate(4.0))
    drafter = LookupDrafter(Strict(lambda ids: 1), lookup, Answer(ROUNDS, [91, 95, 92], 40))
    assert (await drafter.draft([91, 95, 92], 4, GREEDY)).token_ids == TEXT[:4]
    assert (await drafter.draft([91, 95, 92], 8, GREEDY)).token_ids == [1] * 8
