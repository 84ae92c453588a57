"""Loads one segment of a split model, as its manifest says, with the head and the translator of its exit."""

from pathlib import Path

from msgspec.structs import replace

from common.config_edge import EdgeModelConfig
from common.protocol.split_manifest import SplitManifest
from edge.llama.segment import LlamaSegment, SegmentShape
from edge.split.translator import Translator


def load_segment(
    manifest: SplitManifest, folder: Path, number: int, model: EdgeModelConfig, shows_states: bool = True
) -> LlamaSegment:
    """Segment `number`, counted from 0, from its files in `folder`; `model` says how to run it.

    Raises StartError and ConfigError as `LlamaSegment` and `Translator` do; hashes are not checked.
    """
    part, files = manifest.segments[number], manifest.segment_files(folder, number)
    shape = SegmentShape(part.last - part.first + 1, manifest.hidden, manifest.vocab_size)
    translator = Translator(files.translator, manifest.hidden) if files.translator else None
    config = replace(model, path=str(files.own))
    return LlamaSegment(
        config, shape, first=number == 0, shows_states=shows_states, shared=files.shared, translator=translator
    )
