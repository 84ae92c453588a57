"""The interactive mode: several turns, commands, completion, and answers that are stopped or fail."""

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from cli.ask import QuestionSettings
from cli.comparison import differing
from cli.interactive import CommandCompleter, InteractiveChat, repl
from common import config
from common.errors import EndpointError
from common.protocol.openai import ChatRequest, Message
from common.protocol.openai_responses import ChatChunk, ChunkChoice, Delta
from common.types import Collaboration, Mode, Provenance


class ScriptedClient:
    """Answers "Yes, N" to the Nth question; the cloud alone says "No"."""

    def __init__(self) -> None:
        self.asked: list[ChatRequest] = []
        self.fails = False
        self.stands_still = False

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatChunk]:
        self.asked.append(request)
        words = "No" if request.mode is Mode.CLOUD_ONLY else "Yes"
        yield chunk(words, Provenance.ACCEPTED)
        if self.stands_still:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        if self.fails:
            raise EndpointError("the edge is gone")
        yield chunk(f", {len(self.asked)}", Provenance.EDGE)
        tokens = {str(source): 0 for source in Provenance} | {"accepted": 1, "edge": 2}
        yield ChatChunk(choices=[], collaboration=Collaboration(tokens=tokens, lossless=False))


def chunk(text: str, source: Provenance) -> ChatChunk:
    return ChatChunk(choices=[ChunkChoice(delta=Delta(content=text), provenance=source)])


@pytest.fixture
def client() -> ScriptedClient:
    return ScriptedClient()


Talk = Callable[..., Any]


@pytest.fixture
def talk(client: ScriptedClient) -> Iterator[Talk]:
    """Types lines and returns the chat after them, and all that was printed."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):

        async def typed(*lines: str) -> tuple[InteractiveChat, str]:
            shown = io.StringIO()
            console = Console(file=shown, width=200, highlight=False, markup=False, force_terminal=True)
            loaded = config.load(flags=[], environment={})
            chat = InteractiveChat(client, loaded, QuestionSettings(), console)  # type: ignore[arg-type]
            keys.send_text("".join(f"{line}\r" for line in lines) + "/quit\r")
            await chat.run()
            return chat, shown.getvalue()

        yield typed


def contents(request: ChatRequest) -> list[str]:
    return [message.text for message in request.messages]


async def test_a_question_brings_the_turns_before_it(client: ScriptedClient, talk: Talk) -> None:
    await talk("/system Be brief.", "First?", "Second?", "/new", "Third?")
    assert contents(client.asked[1]) == ["Be brief.", "First?", "Yes, 1", "Second?"]
    assert contents(client.asked[2]) == ["Be brief.", "Third?"]


async def test_text_has_the_colour_of_its_provenance_while_it_arrives(talk: Talk) -> None:
    _, shown = await talk("First?")
    assert "\x1b[36mYes\x1b[0m" in shown and "\x1b[32m, 1\x1b[0m" in shown
    assert "accepted 1" in shown and "lossy" in shown


@pytest.mark.parametrize(
    ("name", "mode", "check"),
    [
        ("gated", Mode.COLLABORATIVE, True),
        ("lossless", Mode.COLLABORATIVE, False),
        ("edge", Mode.EDGE_ONLY, None),
        ("cloud", Mode.CLOUD_ONLY, None),
        ("route", Mode.ROUTE, None),
    ],
)
async def test_mode_and_threshold_hold_for_the_next_questions(
    client: ScriptedClient, talk: Talk, name: str, mode: Mode, check: bool | None
) -> None:
    chat, _ = await talk(f"/mode {name}", "/threshold 0.6", "Now?", "/threshold", "And now?")
    assert (client.asked[0].mode, client.asked[0].use_confidence_check) == (mode, check)
    assert [request.confidence_threshold for request in client.asked] == [0.6, None]
    assert chat.conversation.mode == name


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/mode fast", "/mode takes one of gated"),
        ("/threshold 2", "from 0 to 1"),
        ("/threshold nan", "from 0 to 1"),
        ("/wrong", "no command /wrong"),
        ("/report", "no complete answer yet"),
        ("/compare", "takes a question"),
        ("/save", "takes the name of a file"),
        ("/save /nowhere/at/all", "cannot write"),
    ],
)
async def test_a_wrong_command_is_answered_in_a_line_and_the_chat_goes_on(
    client: ScriptedClient, talk: Talk, line: str, said: str
) -> None:
    _, shown = await talk(line, "Still there?")
    assert said in shown
    assert contents(client.asked[0]) == ["Still there?"]


async def test_a_failed_answer_is_no_turn(client: ScriptedClient, talk: Talk) -> None:
    client.fails = True
    chat, shown = await talk("First?")
    assert "error: the edge is gone" in shown and chat.conversation.turns == []


async def test_ctrl_c_stops_the_answer_and_keeps_what_arrived(client: ScriptedClient, talk: Talk) -> None:
    client.stands_still = True
    chat, shown = await talk("First?")
    assert "stopped" in shown
    assert [turn.content for turn in chat.conversation.turns] == ["First?", "Yes"]


async def test_a_saved_conversation_has_its_turns_and_is_never_overwritten(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    _, shown = await talk("/system Be brief.", "First?", f"/save {file}", f"/save {file}")
    saved = json.loads(file.read_text())
    assert saved["system"] == "Be brief." and saved["last_report"]["tokens"]["edge"] == 2
    assert [turn["content"] for turn in saved["turns"]] == ["First?", "Yes, 1"]
    assert "File exists" in shown


async def test_comparing_asks_each_mode_the_last_question_and_underlines_what_differs(
    client: ScriptedClient, talk: Talk
) -> None:
    _, shown = await talk("First?", "Second?", "/compare")
    asked = client.asked[2:]
    assert [contents(request) for request in asked] == [["First?", "Yes, 1", "Second?"]] * 4
    assert {request.temperature for request in asked} == {0}
    assert "\x1b[4;36mYes" in shown and "\x1b[36mNo" in shown and "2 of 3" not in shown and "0 of 3" in shown


async def test_comparing_says_which_mode_failed(client: ScriptedClient, talk: Talk) -> None:
    client.fails = True
    _, shown = await talk("/compare Why?")
    assert shown.count("error: the edge is gone") == 4


async def test_the_words_of_before_still_do(client: ScriptedClient, talk: Talk) -> None:
    _, shown = await talk("First?", "stats", "config", "quit", "never reached")
    assert "answers" in shown and "edge:" in shown and len(client.asked) == 1


async def test_commands_modes_and_files_are_completed(talk: Talk, tmp_path: Path) -> None:
    chat, _ = await talk()

    def completed(text: str) -> set[str]:
        found = CommandCompleter(chat.commands).get_completions(Document(text), CompleteEvent())
        return {text[: len(text) + one.start_position] + one.text for one in found}

    assert completed("/m") == {"/mode"}
    assert completed("/mode l") == {"/mode lossless"}
    (tmp_path / "chat.json").touch()
    assert completed(f"/save {tmp_path}/ch") == {f"/save {tmp_path}/chat.json"}
    assert completed("What is /mode?") == completed("What") == completed("/report x") == set()
    assert {"/mode", "/threshold", "/compare", "/save", "/system"} <= completed("/")


async def test_a_stop_from_outside_ends_the_chat_and_not_just_the_answer(client: ScriptedClient, talk: Talk) -> None:
    async def still(request: ChatRequest) -> AsyncIterator[ChatChunk]:
        yield chunk("Yes", Provenance.EDGE)
        started.set()
        await asyncio.sleep(60)

    started, client.stream = asyncio.Event(), still  # type: ignore[method-assign]
    running = asyncio.create_task(talk("First?"))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_words_that_differ() -> None:
    text = "Water boils at 90 degrees."
    assert [text[start:end] for start, end in differing(text, "Water boils at 100 degrees.")] == ["90"]
    assert differing(text, text) == []


def test_a_request_names_the_message_last() -> None:
    request = QuestionSettings().request("b", [Message(role="user", content="a")])
    assert contents(request) == ["a", "b"]


async def test_lines_of_a_file_are_answered_one_by_one(
    client: ScriptedClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "lines"
    file.write_text("What is AI?\n/mode lossless\nAnd ML?\n")
    shown = io.StringIO()
    with file.open() as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        await repl(client, config.load(environment={}), QuestionSettings(), Console(file=shown, width=40))  # type: ignore[arg-type]
    assert [request.messages[-1].text for request in client.asked] == ["What is AI?", "And ML?"]
    assert "Yes, 1" in shown.getvalue() and "\r" not in shown.getvalue() and ">" not in shown.getvalue()
