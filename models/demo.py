"""The demo models' files, and the tables about them in models/README.md."""

from pathlib import Path

MODELS = Path(__file__).parent
CHECKPOINTS = MODELS / "checkpoints"
"""What training leaves, before export."""
CLOUD = MODELS / "demo-cloud"
EXITS = MODELS / "demo-cloud-exits.safetensors"
"""Beside the cloud model's folder, because vLLM loads every safetensors file in it."""
EDGE = MODELS / "demo-edge.gguf"
EDGE_OTHER = MODELS / "demo-edge-other.gguf"
README = MODELS / "README.md"
MARKS = "<!-- evaluation of {} -->\n", "<!-- end of evaluation -->\n"
"""The lines around the tables of a model."""


def write_tables(model: str, tables: str, path: Path = README) -> None:
    """Replaces the tables of `model` between their marks."""
    begin, end = MARKS[0].format(model), MARKS[1]
    before, _, rest = path.read_text().partition(begin)
    path.write_text(before + begin + tables + end + rest.partition(end)[2])
