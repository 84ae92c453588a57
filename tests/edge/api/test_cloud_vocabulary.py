"""When the edge compares vocabularies, what it sends before, and what it does with each outcome."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from common.config_edge import EdgeModelConfig
from common.decoding.drafters.vocab_translation import TranslatingDrafter
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.errors import EndpointError, NotFoundError, VocabularyError
from common.protocol import vocabulary as vocab
from common.protocol.content.tokenizer_json import normalizer_of
from common.protocol.openai import Message
from common.protocol.vocabulary import RemoteVocabulary, TokenizerFile, VocabularyInfo
from common.types import GREEDY, Provenance, Sampling, Verdict
from edge.api.clouds.cloud_vocabulary import CloudVocabulary
from edge.api.clouds.shared_prompt import SharedPrompt
from edge.engine.engine import EdgeEngine
from edge.text.chat_forms import CONVERSATION
from edge.text.chat_template import ChatTemplate
from edge.text.conversation import Conversation
from tests.support.fakes import FakeDrafter, FakeVerifier, cloud_model
from tests.support.vocabularies import EdgeSide, TextDrafter, Truth, file

MODELS = Path(__file__).parents[3] / "models"
QUESTION = [Message(role="user", content="What is AI?")]


@pytest.fixture
async def engine() -> AsyncIterator[EdgeEngine]:
    async with EdgeEngine(EdgeModelConfig(path=str(MODELS / "demo-edge.gguf"), sequences=1)) as made:
        yield made


class VocabularyCloud:
    """A cloud with a vocabulary; while `down` is set, it fails with that error."""

    def __init__(self, info: VocabularyInfo, file: TokenizerFile | None = None) -> None:
        self.info = info
        self.file = file
        self.down: Exception | None = None
        self.asked: list[str] = []

    async def get(self, path: str, type_: Any, /) -> Any:
        self.asked.append(path)
        if self.down is not None:
            raise self.down
        return self.info if path == "/tokenizer" else self.file


def of_the_pair(size: int = 4096) -> VocabularyInfo:
    pieces = vocab.pieces_of((MODELS / "demo-cloud" / "tokenizer.json").read_text())
    return VocabularyInfo(vocab.fingerprint(pieces), size)


def another() -> VocabularyCloud:
    other = file("bytes")
    template = "{% for m in messages %}{{ m['content'] }}<|user|>{% endfor %}"
    other = TokenizerFile(
        fingerprint=other.fingerprint, tokenizer=other.tokenizer, end_tokens=[0], chat_template=template, bos="", eos=""
    )
    return VocabularyCloud(VocabularyInfo(other.fingerprint, 512), other)


async def test_identical_vocabularies_share_ids_and_the_tokenizer_file_is_not_fetched(engine: EdgeEngine) -> None:
    cloud = VocabularyCloud(of_the_pair())
    async with CloudVocabulary(engine, cloud.get) as vocabulary:
        for _ in range(3):
            shared = await vocabulary.share([1, 500, 2], conversation=Conversation(QUESTION))
    assert shared.ids == shared.edge_ids == [1, 500, 2]
    assert shared.vocabulary == cloud.info.fingerprint
    drafter = FakeDrafter(cloud_model)
    assert shared.drafter(drafter) is drafter, "no translation"
    assert cloud.asked == ["/tokenizer"]


@pytest.mark.parametrize("size", [4000, 5000])
async def test_padded_vocabularies_share_all_ids_that_both_have(engine: EdgeEngine, size: int) -> None:
    async with CloudVocabulary(engine, VocabularyCloud(of_the_pair(size)).get) as vocabulary:
        shared = await vocabulary.share([1, 2], text="x")
    shares = min(size, engine.vocab_size)
    drafter = shared.drafter(FakeDrafter(lambda ids: shares - 2 + len(ids)))
    assert (await drafter.draft([1], 4, GREEDY)).token_ids == [shares - 1]
    assert shared.piece(engine.vocab_size + 1) == b""
    assert shared.piece(500) == engine.piece(500)


async def test_different_vocabularies_get_a_prompt_each(engine: EdgeEngine) -> None:
    cloud = another()
    async with CloudVocabulary(engine, cloud.get) as vocabulary:
        chat = await vocabulary.share([1, 500, 2], conversation=Conversation(QUESTION))
        text = await vocabulary.share([500], text="naïve <|user|>")
    assert b"".join(map(chat.piece, chat.ids)) == b"What is AI?" and chat.ids[-1] == 1
    assert chat.edge_ids == [1, 500, 2]
    assert text.ids[-1] == 1
    assert cloud.asked == ["/tokenizer", "/tokenizer/file"]


async def test_no_ids_are_sent_until_the_vocabularies_are_compared(engine: EdgeEngine) -> None:
    cloud, verifier = another(), FakeVerifier()
    cloud.down = EndpointError("cannot reach it")
    async with CloudVocabulary(engine, cloud.get) as vocabulary:
        lonely = await vocabulary.share([5, 6], text="x")
        with pytest.raises(EndpointError, match="cannot reach it"):
            await lonely.verifier(verifier).verify([5, 6], [7], GREEDY, 1)
        assert verifier.traffic.calls == 0
        cloud.down = NotFoundError("no such route")
        with pytest.raises(EndpointError, match="does not give its vocabulary"):
            await (await vocabulary.share([5, 6], text="x")).verifier(verifier).verify([5, 6], [7], GREEDY, 1)
        cloud.down = None
        met = await vocabulary.share([5, 6], text="x")
        assert met.unknown_because == "" and met.vocabulary == cloud.info.fingerprint


async def test_a_cloud_that_changed_its_vocabulary_is_compared_again(engine: EdgeEngine) -> None:
    cloud = VocabularyCloud(of_the_pair())

    class Changed(FakeVerifier):
        async def verify(
            self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
        ) -> Verdict:
            raise VocabularyError("these ids are of another vocabulary")

    async with CloudVocabulary(engine, cloud.get) as vocabulary:
        before = await vocabulary.share([5, 6], text="x")
        cloud.info, cloud.file = another().info, another().file
        pipeline = Pipeline(
            DecodingRequest([5, 6], 5, GREEDY, Plan()),
            FakeDrafter(cloud_model, lambda _: 0.0),
            before.verifier(Changed()),
        )
        assert [chunk async for chunk in pipeline.run()], "the edge goes on alone"
        assert pipeline.answer.report.degraded
        assert (await vocabulary.share([5, 6], text="x")).ids != [5, 6]


OTHER_FORM = "{% for m in messages %}<|user|>{{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        ("", "the cloud's model has no chat template"),
        (OTHER_FORM, "the chat templates of edge and cloud differ"),
        (None, ""),
        ("the edge's", ""),
    ],
)
async def test_a_cloud_that_writes_chats_otherwise_is_used_and_that_is_said_once(
    engine: EdgeEngine, caplog: pytest.LogCaptureFixture, greeting: str | None, said: str
) -> None:
    cloud, own = VocabularyCloud(of_the_pair()), engine.chat_template or ""
    async with ChatTemplate(own, engine.bos, engine.eos) as template:
        if greeting:
            async with ChatTemplate(own if greeting == "the edge's" else greeting, engine.bos, engine.eos) as theirs:
                text = await theirs.render(CONVERSATION)
            cloud.info = replace(cloud.info, greeting=engine.tokenize(text, add_special=False, parse_special=True))
        elif greeting == "":
            cloud.info = replace(cloud.info, greeting=[])
        async with CloudVocabulary(engine, cloud.get, template) as vocabulary:
            for _ in range(3):
                shared = await vocabulary.share([1, 500, 2], conversation=Conversation(QUESTION))
    assert shared.ids == [1, 500, 2], "answered all the same"
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == bool(said)
    assert said in "".join(lines)


async def test_a_cloud_with_another_vocabulary_and_no_template_reads_the_edges_form(engine: EdgeEngine) -> None:
    cloud = another()
    assert cloud.file
    cloud.file.chat_template = ""
    ids = engine.tokenize("<|user|>What is AI?<|assistant|>", add_special=False, parse_special=True)
    async with CloudVocabulary(engine, cloud.get) as vocabulary:
        shared = await vocabulary.share(ids, conversation=Conversation(QUESTION))
    text = RemoteVocabulary(cloud.file).prompt("<|user|>What is AI?<|assistant|>", add_special=True)
    assert (shared.edge_ids, shared.ids) == (ids, text)


async def test_when_the_cloud_is_lost_the_edge_completes_the_answer_in_the_clouds_tokens() -> None:
    words = "The capital of France is Paris. It isn't magic: naïve café. 🙂"
    cloud, edge = RemoteVocabulary(file("digits")), EdgeSide("bytes")
    truth = [*(token for token, _ in cloud.tokens(words)), 0]

    class Lost(Truth):
        async def verify(
            self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
        ) -> Verdict:
            if len(token_ids) > 20:
                raise EndpointError("lost")
            return await super().verify(token_ids, draft, sampling, max_tokens)

    drafter = TranslatingDrafter(TextDrafter(edge, words, 1), edge, cloud, [1], 2)
    shared = SharedPrompt([1], [1, 1], cloud.piece)
    plan = Plan(use_confidence_check=False, max_draft_tokens=8)
    pipeline = Pipeline(
        DecodingRequest([1, 1], 400, GREEDY, plan), shared.drafter(drafter), shared.verifier(Lost(truth, 2))
    )
    ids = [token async for chunk in pipeline.run() for token in chunk.token_ids]
    assert b"".join(map(cloud.piece, ids)).decode() == words
    assert ids[-1] == 0 and pipeline.answer.finish_reason == "stop"
    assert pipeline.answer.report.degraded == "lost"
    assert pipeline.answer.report.tokens[Provenance.EDGE] > 0


def reading_cloud(normalizer: object) -> VocabularyCloud:
    """A cloud with the pair's vocabulary that changes texts before it cuts them."""
    tree = json.loads((MODELS / "demo-cloud" / "tokenizer.json").read_text()) | {"normalizer": normalizer}
    text = json.dumps(tree)
    tokenizer = vocab.load(text)
    info = replace(
        of_the_pair(),
        reading=vocab.reading_of(lambda probe: tokenizer.encode(probe, add_special_tokens=False).ids),
        normalizer=normalizer_of(text),
    )
    return VocabularyCloud(info, cloud_file(text))


def cloud_file(text: str) -> TokenizerFile:
    mark = vocab.fingerprint(vocab.pieces_of(text))
    return TokenizerFile(fingerprint=mark, tokenizer=text, end_tokens=[0], chat_template="", bos="", eos="")


ACCENT = "E\u0301 ﬁ"


@pytest.mark.parametrize(
    ("normalizer", "read_as", "fetched"),
    [
        (None, ACCENT, False),
        ({"type": "NFC"}, "É ﬁ", False),
        ({"type": "NFKC"}, "É fi", False),
        ({"type": "Lowercase"}, "e\u0301 ﬁ", True),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}, "é ﬁ", True),
    ],
)
async def test_the_prompt_is_read_as_the_clouds_tokenizer_reads_it(
    engine: EdgeEngine, normalizer: object, read_as: str, fetched: bool
) -> None:
    cloud = reading_cloud(normalizer)
    async with CloudVocabulary(engine, cloud.get) as vocabulary:
        written = engine.tokenize(ACCENT, add_special=False)
        text = await vocabulary.share(written, text=ACCENT)
        chat = await vocabulary.share(written, conversation=Conversation(QUESTION))
        given = await vocabulary.share(written)
    assert text.ids == text.edge_ids == chat.ids == engine.tokenize(read_as, add_special=False)
    assert given.ids == written, "ids that a client gives stay as they are"
    assert ("/tokenizer/file" in cloud.asked) == fetched
