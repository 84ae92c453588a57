"""Private words of a request become placeholders, and these the words again, however the answer is cut."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from common.cloud_client.privacy import PrivatePart, PrivatePatterns
from common.protocol.content.openai_options import StructuredOutputs
from common.protocol.openai import ChatRequest, Message
from edge.privacy import redaction
from edge.privacy.redaction import redacted, still_private, texts_beside_prompt, without_secrets
from edge.privacy.restoring import RestoredParts, RestoredText, restored
from edge.relay.restored_events import RestoredEvents, restored_reply
from edge.tool_calls.parts import Part, Said, Thought, ToolCall

FOUND = [r"(?P<email>[\w.]+@[\w.]+\w)", r"(?<=password: )\S+", r"\d{3}-\d{2}", r"\d{2}-\d{4}", "x*"]
SECRETS = {"<EMAIL_1>": "a@b.c", "<PRIVATE_1>": 'say "\\o/"', "<PRIVATE_11>": "eleven"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def patterns() -> AsyncIterator[PrivatePatterns]:
    async with PrivatePatterns(FOUND[:-1]) as made:
        yield made


async def said(patterns: PrivatePatterns, *texts: str) -> tuple[list[str], dict[str, str]]:
    tree, secrets = await without_secrets({"texts": list(texts)}, patterns, taken=texts)
    return tree["texts"], dict(secrets)


async def test_a_word_has_one_placeholder_wherever_it_stands(patterns: PrivatePatterns) -> None:
    texts, secrets = await said(patterns, "password: hunter2 for a@b.c", "is hunter2hunter2 safe, d@e.f? a@b.c")
    assert texts == ["password: <PRIVATE_1> for <EMAIL_1>", "is <PRIVATE_1><PRIVATE_1> safe, <EMAIL_2>? <EMAIL_1>"]
    assert secrets == {"<PRIVATE_1>": "hunter2", "<EMAIL_1>": "a@b.c", "<EMAIL_2>": "d@e.f"}


@pytest.mark.parametrize(("cut", "replaced"), [(4, False), (14, True), (20, True)])
async def test_nothing_is_replaced_where_a_private_word_lies_in_two_parts_of_a_message(
    patterns: PrivatePatterns, cut: int, replaced: bool
) -> None:
    """A placeholder for the half that matches by itself would leave the other half in clear text."""
    text = "to a@b.cc, or d@e.ff."
    parts = [{"type": "text", "text": text[:cut]}, {"type": "text", "text": text[cut:]}]
    tree = {"messages": [{"role": "user", "content": parts}]}
    changed, secrets = await without_secrets(tree, patterns, taken=[text])
    assert bool(secrets) == replaced
    assert (changed != tree) == replaced
    assert await still_private(text, secrets, patterns)


async def test_what_overlaps_is_replaced_as_one(patterns: PrivatePatterns) -> None:
    assert (await said(patterns, "so 123-45-6789"))[0] == ["so <PRIVATE_1>"]


async def test_no_placeholder_is_a_word_of_the_request(patterns: PrivatePatterns) -> None:
    assert (await said(patterns, "<EMAIL_1> <EMAIL_2>", "a@b.c"))[0] == ["<EMAIL_1> <EMAIL_2>", "<EMAIL_3>"]


def test_placeholders_are_numbered_past_many_that_are_taken_by_reading_each_text_once() -> None:
    taken = iter([" ".join(f"<EMAIL_{number}>" for number in range(1, 3001))])
    own = [[PrivatePart(0, 5, "EMAIL"), PrivatePart(6, 11, "EMAIL")]]
    made = redaction._placeholders(["a@b.c d@e.f"], own, taken)
    assert made == {"a@b.c": "<EMAIL_3001>", "d@e.f": "<EMAIL_3002>"}


async def test_without_private_words_a_request_is_the_same_object(patterns: PrivatePatterns) -> None:
    body = ChatRequest(messages=[Message("user", "Hi")])
    assert await redacted(body, patterns) == (body, {})
    assert (await redacted(body, patterns))[0] is body


@pytest.mark.parametrize("outputs", [{"regex": r"to a@b\.c"}, {"grammar": 'root ::= "a@b.c"'}])
async def test_expressions_are_left_as_they_are_and_are_then_private(
    patterns: PrivatePatterns, outputs: dict[str, str]
) -> None:
    body = ChatRequest(messages=[Message("user", "a@b.c")], structured_outputs=StructuredOutputs(**outputs))
    changed, secrets = await redacted(body, patterns)
    assert changed.messages[0].content == "<EMAIL_1>"
    assert changed.structured_outputs == body.structured_outputs
    assert await still_private("\n".join(texts_beside_prompt(changed)), secrets, patterns)


async def test_what_is_not_replaced_is_still_private(patterns: PrivatePatterns) -> None:
    _, secrets = await said(patterns, "password: hunter2")
    assert await still_private("hunter2 again", secrets, patterns), "no pattern finds it here"
    assert await still_private("123-45", {}, patterns)
    assert not await still_private("password: <PRIVATE_1>", secrets, patterns), "a placeholder is no secret"
    assert await still_private("password: <PRIVATE_1>1", secrets, patterns)


async def test_what_is_private_as_escapes_of_json_is_private_at_any_depth(patterns: PrivatePatterns) -> None:
    text = r'{"to": "a\u0040b.c"}'
    for _ in range(3):
        assert await still_private(text, {}, patterns)
        assert await still_private(text, {"<PRIVATE_1>": "hunter2"}, patterns)
        text = json.dumps({"said": text})
    for spelt in (r"a\u0062c", r"a\/b"):
        assert await still_private(spelt, {"<PRIVATE_1>": json.loads(f'"{spelt}"')}, patterns), "a secret, spelt so"
    assert not await still_private(r"C:\users\new \u00e9 \ud83d", {"<PRIVATE_1>": "hunter2"}, patterns)


async def test_escaped_words_are_replaced_and_what_has_none_keeps_its_escapes(patterns: PrivatePatterns) -> None:
    result = r'{"to": "\u00dc a\u0040b.c", "n": "\"\\u0040\n\u0022\ud83d"}'
    texts, secrets = await said(patterns, result, r"\u0040 \u00dc")
    assert texts == [r'{"to": "Ü <EMAIL_1>", "n": "\"\\u0040\n\u0022\ud83d"}', r"\u0040 \u00dc"]
    assert secrets == {"<EMAIL_1>": "a@b.c"}
    assert json.loads(texts[0])["n"] == json.loads(result)["n"]
    assert not await still_private("\n".join(texts), secrets, patterns)


@pytest.mark.parametrize("pattern", [r"\b\d+\b", r"\d+"])
async def test_a_secret_that_is_part_of_its_own_placeholder_is_replaced_all_the_same(pattern: str) -> None:
    async with PrivatePatterns([pattern]) as numbers:
        texts, secrets = await said(numbers, "room 1")
        assert (texts, secrets) == (["room <PRIVATE_1>"], {"<PRIVATE_1>": "1"})
        assert not await still_private(texts[0], secrets, numbers)
        for left in ("<PRIVATE_1> 1", "<PRIVATE_1>2", "<PRIVATE_2>1"):
            assert await still_private(left, secrets, numbers), left


async def test_half_a_character_beside_a_word_stays_an_escape_and_as_part_of_one_is_left_alone(
    patterns: PrivatePatterns,
) -> None:
    tree: dict[str, Any] = {"arguments": r'{"to": "\ud83d a@b.c \u00fc"}'}
    changed, secrets = await without_secrets(tree, patterns, taken=())
    assert changed == {"arguments": r'{"to": "\ud83d <EMAIL_1> \u00fc"}'}
    (call,) = RestoredParts(secrets).take([ToolCall("mail", changed["arguments"])])
    assert isinstance(call, ToolCall) and json.loads(call.arguments) == json.loads(tree["arguments"])
    call.arguments.encode()
    whole = {"arguments": r'{"to": "password: \ud83dx"}'}
    assert await without_secrets(whole, patterns, taken=()) == (whole, {})
    assert await still_private(whole["arguments"], {}, patterns)


@pytest.mark.parametrize("words", [257, 3])
async def test_a_request_full_of_private_words_is_left_alone(patterns: PrivatePatterns, words: int) -> None:
    texts, secrets = await said(patterns, *(f"{n}@b.c" for n in range(words)))
    assert len(secrets) == (words if words < 257 else 0)
    assert (texts[0] == "0@b.c") is (words == 257)


async def test_a_pattern_that_matches_nothing_at_all_replaces_nothing_and_is_still_private() -> None:
    async with PrivatePatterns(FOUND[-1:]) as empty:
        assert await said(empty, "word") == (["word"], {})
        assert await still_private("word", {}, empty)


async def test_a_search_that_takes_too_long_replaces_nothing() -> None:
    async with PrivatePatterns([r"(\w+\s?)+:secret"], seconds=0.1) as slow:
        text = "the quick brown fox jumps over the lazy dog and then it sleeps until the next morning comes"
        assert await said(slow, text) == ([text], {})


async def test_names_media_and_nested_arguments(patterns: PrivatePatterns) -> None:
    image = "data:image/png;base64,aGVsbG8="
    arguments = json.dumps({"name": "a@b.c", "n": [{"id": "a@b.c"}]})
    tree: dict[str, Any] = {"name": "a@b.c", "required": ["a@b.c"], "url": image, "arguments": arguments}
    changed, _ = await without_secrets(tree | {"broken": {"arguments": "{a@b.c"}}, patterns, taken=())
    assert changed == tree | {
        "arguments": json.dumps({"name": "<EMAIL_1>", "n": [{"id": "<EMAIL_1>"}]}),
        "broken": {"arguments": "{<EMAIL_1>"},
    }


TEXT = "<EMAIL_1>, <PRIVATE_11> and <PRIVATE_1>; not <EMAIL_2>, <EMAIL_, < or <EMAIL_1"


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(TEXT)])
def test_the_restored_text_does_not_depend_on_how_it_arrives(size: int) -> None:
    stream = RestoredText(SECRETS)
    pieces = [stream.feed(TEXT[at : at + size]) for at in range(0, len(TEXT), size)]
    assert "".join([*pieces, stream.end()]) == restored(TEXT, SECRETS)
    assert restored(TEXT, SECRETS) == 'a@b.c, eleven and say "\\o/"; not <EMAIL_2>, <EMAIL_, < or <EMAIL_1'


def test_text_that_begins_no_placeholder_is_not_held_back() -> None:
    stream = RestoredText(SECRETS)
    assert [stream.feed(text) for text in ("1 < 2", " <E", "M>", "<EMAIL_1>")] == ["1 < 2", " ", "<EM>", "a@b.c"]


def test_thoughts_text_and_calls_are_restored_each_in_its_own_way() -> None:
    parts: list[Part] = [Thought("I see <EMA"), Thought("IL_1>, <EM"), Said("<PRIVATE_1"), Said(">, <"), Said("EM")]
    parts.append(ToolCall("mail", '{"to": "<PRIVATE_1>", "n": 1}'))
    answer = RestoredParts(SECRETS, in_json=True)
    made = [*answer.take(parts[:3]), *answer.take(parts[3:]), *answer.end()]
    assert "".join(part.text for part in made if isinstance(part, Thought)) == "I see a@b.c, <EM"
    assert "".join(part.text for part in made if isinstance(part, Said)) == r"say \"\\o/\", <EM"
    assert isinstance(made[-1], ToolCall) and json.loads(made[-1].arguments) == {"to": 'say "\\o/"', "n": 1}


def call_piece(text: str) -> dict[str, Any]:
    return {"index": 0, "delta": {"tool_calls": [{"index": 1, "function": {"arguments": text}}]}}


@pytest.mark.parametrize("escaped", [False, True])
def test_a_foreign_servers_stream_is_restored_in_text_thoughts_and_pieces_of_json(escaped: bool) -> None:
    words = RestoredEvents(SECRETS)
    arguments = '{"to": "<PRIVATE_1>", "at": "<EM'
    if escaped:
        arguments = arguments.replace("<", r"\u003c").replace(">", r"\u003e")
    given = [call_piece(arguments[at : at + 3]) for at in range(0, len(arguments), 3)]
    given += [{"index": 0, "delta": {"content": text}} for text in ("Hi <EMA", "IL_1>!", " <")]
    given += [{"index": 1, "delta": {"reasoning": "<EMAIL_1>"}}, {"index": 0, "delta": {}, "finish_reason": "stop"}]
    events = [words.take(one) for one in given]
    assert "".join(event["delta"].get("content") or "" for event in events) == "Hi a@b.c! <"
    calls = [call for event in events for call in event["delta"].get("tool_calls", ())]
    assert {call["index"] for call in calls} == {1}
    whole = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(whole + '"}') == {"to": 'say "\\o/"', "at": "<EM"}
    assert events[-2] == {"index": 1, "delta": {"reasoning": "a@b.c"}}


def test_a_whole_foreign_reply_is_restored() -> None:
    reply = {"choices": [{"message": {"content": "<EMAIL_1>", "tool_calls": [{"arguments": '{"a": "<PRIVATE_1>"}'}]}}]}
    (choice,) = restored_reply(reply, SECRETS)["choices"]
    assert choice["message"]["content"] == "a@b.c"
    assert json.loads(choice["message"]["tool_calls"][0]["arguments"]) == {"a": 'say "\\o/"'}


JSON_ANSWER = ['{"content": "<PRI', 'VATE_1>", "to": "\\u003cEMAIL', '_1\\u003e"}']


def test_a_foreign_answer_that_is_json_stays_json() -> None:
    whole = {"choices": [{"message": {"content": "".join(JSON_ANSWER), "reasoning": "<PRIVATE_1>"}}]}
    message = restored_reply(whole, SECRETS, in_json=True)["choices"][0]["message"]
    words = RestoredEvents(SECRETS, in_json=True)
    given = [{"delta": {"content": text}} for text in JSON_ANSWER] + [{"delta": {"reasoning": "<PRIVATE_1>"}}]
    events = [words.take(one)["delta"] for one in given]
    for said_json in (message["content"], "".join(event.get("content", "") for event in events)):
        assert json.loads(said_json) == {"content": 'say "\\o/"', "to": "a@b.c"}
    assert message["reasoning"] == events[-1]["reasoning"] == 'say "\\o/"', "thoughts are no JSON"
