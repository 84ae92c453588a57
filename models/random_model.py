"""Makes a model with random weights, as large as a benchmark needs; its answers have no meaning and no end."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from models.demo import CLOUD

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@contextmanager
def random_model(width: int = 512, layers: int = 8, context: int = 1024) -> Iterator[Path]:
    """A temporary folder with a Llama model and the demo's tokenizer; 28M parameters by default."""
    disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 0.0  # the end token's logit is then always 0, never the largest
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name in TOKENIZER:
            shutil.copy(CLOUD / name, folder)
        yield Path(folder)
