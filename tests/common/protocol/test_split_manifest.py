"""The manifest of a split model: incomplete manifests and files with another hash are refused."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.errors import ConfigError
from common.protocol import split_manifest
from common.protocol.split_manifest import (
    Segment,
    SegmentFiles,
    SplitManifest,
    TailManifest,
    file_hash,
    folder_hash,
    named_file,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that a manifest can name; their content matters only for their hashes."""
    (tmp_path / "segment-1.gguf").write_bytes(b"one")
    (tmp_path / "segment-2.gguf").write_bytes(b"two")
    (tmp_path / "vocabulary.gguf").write_bytes(b"head")
    (tmp_path / "translator-2.npy").write_bytes(b"map")
    (tmp_path / "tail").mkdir()
    (tmp_path / "tail" / "config.json").write_bytes(b"{}")
    (tmp_path / "tail" / "model.safetensors").write_bytes(b"rest")
    (tmp_path / "tokenizer.json").write_bytes(b"words")
    write_manifest(manifest(tmp_path), tmp_path)
    return tmp_path


def manifest(folder: Path) -> SplitManifest:
    return SplitManifest(
        version=2,
        model="toy",
        fingerprint="f" * 64,
        architecture="llama",
        layers=8,
        hidden=16,
        vocab_size=32,
        exits=[2, 4],
        segments=[
            Segment("segment-1.gguf", file_hash(folder / "segment-1.gguf"), 0, 1, "f32"),
            Segment(
                *("segment-2.gguf", file_hash(folder / "segment-2.gguf"), 2, 3, "f32"),
                shares_head=True,
                translator=named_file(folder / "translator-2.npy"),
            ),
        ],
        tail=TailManifest("tail", folder_hash(folder / "tail"), 2, 7),
        tokenizer=file_hash(folder / "tokenizer.json"),
        temperatures=[1.0, 0.9],
        exits_trained="",
        shared=named_file(folder / "vocabulary.gguf"),
    )


def rewritten(folder: Path, **changes: Any) -> Path:
    """The manifest's file with some fields changed, as if edited by hand."""
    path = folder / split_manifest.NAME
    tree = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(tree | changes))
    return path


def test_what_was_written_is_read_and_the_pieces_are_found(folder: Path) -> None:
    found = read_manifest(folder / split_manifest.NAME)
    assert found == manifest(folder) == read_manifest(folder)
    assert found.check_segments(folder) == [
        SegmentFiles(folder / "segment-1.gguf", None, None),
        SegmentFiles(folder / "segment-2.gguf", folder / "vocabulary.gguf", folder / "translator-2.npy"),
    ]
    assert found.check_tail(folder) == folder / "tail"
    found.check_tokenizer(folder / "tokenizer.json")


def test_a_manifest_of_version_1_has_no_shared_files(folder: Path) -> None:
    path = folder / split_manifest.NAME
    tree = msgspec.json.decode(path.read_bytes()) | {"version": 1}
    del tree["shared"], tree["segments"][1]["shares_head"], tree["segments"][1]["translator"]
    path.write_bytes(msgspec.json.encode(tree))
    assert read_manifest(folder).check_segments(folder)[1] == SegmentFiles(folder / "segment-2.gguf", None, None)


def test_an_edge_needs_no_tail_and_a_cloud_no_segments(folder: Path) -> None:
    found = read_manifest(folder)
    (folder / "tail").rename(folder / "elsewhere")
    found.check_segments(folder)
    (folder / "elsewhere").rename(folder / "tail")
    (folder / "segment-1.gguf").unlink()
    found.check_tail(folder)


@pytest.mark.parametrize("name", ["segment-1.gguf", "segment-2.gguf", "vocabulary.gguf", "translator-2.npy"])
def test_a_segment_of_another_model_or_version_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"another")
    with pytest.raises(ConfigError, match=f"{name}: not what its manifest names"):
        read_manifest(folder).check_segments(folder)


@pytest.mark.parametrize("change", ["content", "name", "more", "less"])
def test_a_tail_in_which_anything_differs_is_refused(folder: Path, change: str) -> None:
    weights = folder / "tail" / "model.safetensors"
    match change:
        case "content":
            weights.write_bytes(b"Rest")
        case "name":
            weights.rename(weights.with_name("other.safetensors"))
        case "more":
            (folder / "tail" / "more.safetensors").write_bytes(b"")
        case "less":
            weights.unlink()
    with pytest.raises(ConfigError, match="tail: not what its manifest names"):
        read_manifest(folder).check_tail(folder)


def test_a_missing_piece_and_a_tokenizer_that_does_not_fit_are_named(folder: Path) -> None:
    found = read_manifest(folder)
    (folder / "segment-2.gguf").unlink()
    (folder / "tokenizer.json").write_bytes(b"other words")
    with pytest.raises(ConfigError, match=r"segment-2\.gguf: No such file"):
        found.check_segments(folder)
    with pytest.raises(ConfigError, match=r"tokenizer\.json: not what its manifest names"):
        found.check_tokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "version 3"),
        ({"shared": None}, "a segment shares its head, but no file is shared"),
        ({"shared": {"file": "../vocabulary.gguf", "sha256": ""}}, "not the name of a file or folder beside"),
        ({"exits": []}, "no exits"),
        ({"exits": [4, 2]}, "exits 4,2 do not increase"),
        ({"exits": [2, 2]}, "exits 2,2 do not increase"),
        ({"exits": [0, 4]}, "not all within the model"),
        ({"exits": [2, 8]}, "not all within the model"),
        ({"exits": [2, 5]}, "segments do not end at the exits 2,5"),
        ({"segments": []}, "segments do not end"),
        ({"layers": 9}, "the tail does not go from the first exit to the last layer"),
        ({"temperatures": [1.0]}, "temperatures"),
        ({"temperatures": [1.0, 0.0]}, "temperatures"),
        ({"colour": "blue"}, "colour"),
        ({"hidden": "16"}, r"hidden"),
    ],
)
def test_a_manifest_that_is_not_whole_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_manifest(rewritten(folder, **changes))


@pytest.mark.parametrize("name", ["", ".", "..", "../segment-1.gguf", "/etc/passwd", "a/b"])
def test_pieces_lie_beside_their_manifest(folder: Path, name: str) -> None:
    tail = {"folder": name, "sha256": "", "first": 2, "last": 7}
    with pytest.raises(ConfigError, match="not the name of a file or folder beside"):
        read_manifest(rewritten(folder, tail=tail))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_anything_else_than_a_manifest_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / split_manifest.NAME).write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_manifest(tmp_path)
    assert "\n" not in refused.value.message
    with pytest.raises(ConfigError, match="No such file"):
        read_manifest(tmp_path / "nowhere.json")
