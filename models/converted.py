"""Models in each other's formats: an edge's GGUF file as safetensors for vLLM, a cloud's safetensors as a GGUF file.

What a benchmark runs in place of a pair reads both models in one format. Each conversion is kept, by the source's name,
size and time.
"""

import shutil
from pathlib import Path

import gguf
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from models.partition import gguf_export, gguf_vocabulary
from models.partition.checkpoint import Checkpoint


def as_safetensors(source: Path, dtype: str, folder: Path) -> Path:
    """A folder in Hugging Face form with the weights of a GGUF file, in `dtype` of torch; no tokenizer."""
    target = folder / f"{_key(source)}-{dtype}"
    if not target.exists():
        partial, number_format = _partial(target), getattr(torch, dtype)
        config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name, dtype=number_format)
        with torch.device("meta"):  # for the names of its tensors
            model = AutoModelForCausalLM.from_config(config)
        tensors = load_gguf_checkpoint(str(source), True, model, number_format)["tensors"]
        config.architectures = [type(model).__name__]
        config.save_pretrained(partial)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / "model.safetensors")
        partial.rename(target)
    return target


def as_gguf(source: Path, quantization: str, folder: Path) -> Path:
    """A GGUF file with weights, tokenizer and chat template of a folder in Hugging Face form.

    `quantization` is one of `gguf_export.QUANTIZATIONS`.
    """
    weights = Checkpoint(source)
    target = folder / f"{_key(weights.weight_files[0])}-{quantization}.gguf"
    if not target.exists():
        partial = _partial(target)
        writer = gguf.GGUFWriter(None, weights.config.architecture)
        writer.add_name(source.name)
        gguf_export.add_shape(writer, weights.config, range(weights.layers), quantization)
        gguf_vocabulary.add(writer, weights.tokenizer, weights.config.vocab_size)
        gguf_export.write(writer, partial, gguf_export.model_entries(weights), quantization)
        partial.rename(target)
    return target


def _key(source: Path) -> str:
    found = source.stat()
    return f"{source.parent.name}-{source.stem}-{found.st_size}-{found.st_mtime_ns}"


def _partial(target: Path) -> Path:
    """Where a conversion is written before it is complete, free of what an interrupted one left."""
    partial = target.with_name(target.name + ".part")
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.unlink(missing_ok=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    return partial
