"""Random and damaged bytes in every format that comes from outside: they are read, or refused by our own error."""

import contextlib
import itertools
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import ConfigError, RequestError, SnapshotError, StartError
from common.files.installation import PROJECT
from common.grammar.spec import GrammarKind, GrammarSpec
from common.protocol import codec, split_manifest
from common.protocol.hidden_states import PackedStates
from common.protocol.openai import ChatRequest, CompletionRequest, Message
from common.protocol.split_frames import AskFrame, CloudFrame, EdgeFrame, OpenFrame, StatesFrame
from common.protocol.stream_frames import ClientFrame, DraftFrame, ServerFrame, StartFrame
from common.types import DraftRequest, Sampling, StateEncoding, VerifyBatchRequest, VerifyRequest
from edge.kv import snapshot_format
from edge.llama.gguf_header import GgufHeader, read_header
from tests.fuzz.budget import examples
from tests.fuzz.mutations import JSON_VALUES, altered, damaged

SAMPLING = Sampling(temperature=0.5, seed=3, grammar=GrammarSpec(GrammarKind.JSON, "{}"))
BODIES: list[tuple[Any, Any]] = [
    (ChatRequest, ChatRequest(messages=[Message("user", "hello")], stop=["a"], temperature=0.0, metadata={"a": 1})),
    (CompletionRequest, CompletionRequest(prompt=[[1, 2], [3]], n=2, logprobs=1)),
    (DraftRequest, DraftRequest(prompt="hello", sampling=SAMPLING)),
    (VerifyRequest, VerifyRequest(session="s", new_token_ids=[1, 2], draft_token_ids=[3], sampling=SAMPLING)),
    (VerifyBatchRequest, VerifyBatchRequest([VerifyRequest(prompt="hello")])),
    (ClientFrame, StartFrame(token_ids=[1, 2], max_tokens=4, sampling=SAMPLING, stop=["a"])),
    (ClientFrame, DraftFrame(position=3, token_ids=[1, 2])),
    (EdgeFrame, OpenFrame(session="0" * 32, fingerprint="f", encoding=StateEncoding.FP16)),
    (EdgeFrame, StatesFrame(session="0" * 32, start=0, count=1, data=bytes(8))),
    (EdgeFrame, AskFrame(session="0" * 32, id=1, position=2, sampling=SAMPLING)),
]
"""The types of what comes over the network, and a valid value of each."""


@pytest.mark.parametrize(("type_", "valid"), BODIES, ids=lambda value: type(value).__name__)
@given(data=st.data())
@examples(40)
def test_a_damaged_body_is_read_or_refused(type_: Any, valid: Any, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from([codec.JSON, codec.MSGPACK]))
    body = data.draw(damaged(codec.encode(valid, content)) | st.binary(max_size=64))
    with contextlib.suppress(RequestError):
        value = codec.decode(body, cast(Any, type_), content)
        assert codec.decode(codec.encode(value, content), cast(Any, type_), content) == value or value != value


@pytest.mark.parametrize(("type_", "valid"), BODIES, ids=lambda value: type(value).__name__)
@given(data=st.data())
@examples(40)
def test_a_body_with_fields_of_other_types_is_read_or_refused(type_: Any, valid: Any, data: st.DataObject) -> None:
    fields = msgspec.json.decode(msgspec.json.encode(valid))
    changed = msgspec.msgpack.encode(_packable(data.draw(altered(fields))))
    with contextlib.suppress(RequestError):
        codec.decode(changed, cast(Any, type_), codec.MSGPACK)


@given(body=st.binary(max_size=200) | JSON_VALUES.map(lambda value: msgspec.msgpack.encode(_packable(value))))
@examples(100)
def test_a_body_without_a_schema_holds_only_what_json_can_say(body: bytes) -> None:
    for content in (codec.JSON, codec.MSGPACK):
        with contextlib.suppress(RequestError):
            value = codec.decode(body, dict[str, Any], content)
            assert msgspec.json.decode(msgspec.json.encode(value)) == value


@given(body=st.binary(max_size=200))
@examples(60)
def test_a_frame_of_a_server_is_read_or_refused(body: bytes) -> None:
    for type_ in (ServerFrame, CloudFrame):
        with contextlib.suppress(RequestError):
            codec.decode(body, cast(Any, type_), codec.MSGPACK)


def _packable(value: Any) -> Any:
    """MessagePack has no larger integers."""
    if isinstance(value, dict):
        return {name: _packable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_packable(inner) for inner in value]
    return value if not isinstance(value, int) or -(2**63) <= value < 2**64 else 0


# --- files

GGUF = (PROJECT / "models" / "demo-edge.gguf").read_bytes()
HEADER_BYTES = 200_000
"""The demo model's header ends before."""


@given(data=damaged(GGUF, HEADER_BYTES) | damaged(GGUF, 400) | st.binary(max_size=400).map(lambda tail: b"GGUF" + tail))
@example(data=b"")
@example(data=b"GGUF\x03\0\0\0" + b"\xff" * 16)
@examples(60)
def test_a_damaged_model_file_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with contextlib.suppress(StartError):
        assert isinstance(read_header(path), GgufHeader)


KEY = b"k" * snapshot_format.KEY_SIZE
SNAPSHOTS = [snapshot_format.seal(KEY, "model", [1, 2, 3], bytes(range(200)), compress) for compress in (False, True)]


@given(data=st.sampled_from(SNAPSHOTS).flatmap(damaged) | st.binary(max_size=200))
@examples(200)
def test_a_damaged_snapshot_is_refused(data: bytes) -> None:
    if data not in SNAPSHOTS:
        with pytest.raises(SnapshotError):
            snapshot_format.unseal(KEY, "model", data)


MANIFEST = split_manifest.SplitManifest(
    version=split_manifest.VERSION,
    model="demo",
    fingerprint="f",
    architecture="llama",
    layers=8,
    hidden=4,
    vocab_size=16,
    exits=[2, 4],
    segments=[split_manifest.Segment(f"{n}.gguf", "", *span, "f32") for n, span in enumerate([(0, 1), (2, 3)])],
    tail=split_manifest.TailManifest("tail", "", 2, 7),
    tokenizer="",
    temperatures=[1.0, 1.0],
    exits_trained="",
)
MANIFEST_JSON = msgspec.json.encode(MANIFEST)


@given(
    data=damaged(MANIFEST_JSON)
    | st.binary(max_size=100)
    | altered(msgspec.json.decode(MANIFEST_JSON)).map(msgspec.json.encode)
)
@examples(150)
def test_a_damaged_manifest_is_read_or_refused_and_names_no_file_elsewhere(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(data)
    with contextlib.suppress(ConfigError):
        manifest = split_manifest.read_manifest(path)
        files = [manifest.segment_files(tmp_path, number) for number in range(len(manifest.segments))]
        for file in (*itertools.chain(*files), tmp_path / manifest.tail.folder):
            assert file is None or file.parent == tmp_path


@given(
    encoding=st.sampled_from(StateEncoding),
    data=st.binary(max_size=64),
    scales=st.binary(max_size=16),
    count=st.integers(0, 4),
)
@examples(200)
def test_hidden_states_are_finite_or_refused(encoding: StateEncoding, data: bytes, scales: bytes, count: int) -> None:
    states = PackedStates(encoding, 4, data, scales)
    with contextlib.suppress(RequestError):
        states.check(count)
        assert np.isfinite(states.unpack()).all()
