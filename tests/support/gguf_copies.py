"""Copies a GGUF file with other metadata: special tokens for filling in, a way of pooling."""

from pathlib import Path
from typing import Any

import gguf

from common.files.installation import PROJECT

DEMO = PROJECT / "models" / "demo-edge.gguf"
FILL_IN = {"fim_pre": 4090, "fim_suf": 4091, "fim_mid": 4092, "fim_pad": 4093, "fim_rep": 4094, "fim_sep": 4095}
"""Rare tokens of the demo models' vocabulary, in a role that these were not trained for."""


def copy(path: Path, source: Path = DEMO, **more: Any) -> Path:
    """`source` with other metadata, whole numbers and texts; returns `path`."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or field.name in more:
            continue
        inner = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for name, value in more.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_fill_in(path: Path) -> Path:
    """The demo edge's model with tokens for filling in; returns `path`."""
    return copy(path, **{f"tokenizer.ggml.{name}_token_id": token for name, token in FILL_IN.items()})
