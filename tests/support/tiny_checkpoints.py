"""Makes small checkpoints with random weights and small tokenizers, in the formats of real ones."""

import shutil
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from models.corpus import questions as corpus
from models.partition.gguf_vocabulary import PRE_TOKENIZERS

DEMO = Path(__file__).parents[2] / "models" / "demo-cloud"
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GEMMA_LAYERS = ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 2


def llama(folder: Path, shard: str = "5GB", **changes: Any) -> Path:
    return _saved(LlamaForCausalLM(LlamaConfig(**SHAPE | changes)), folder, shard)


def qwen2(folder: Path, shard: str = "5GB", **changes: Any) -> Path:
    return _saved(Qwen2ForCausalLM(Qwen2Config(**SHAPE | changes)), folder, shard)


def qwen3(folder: Path, **changes: Any) -> Path:
    """Its heads together are larger than its hidden size, as those of small models of this family."""
    return _saved(Qwen3ForCausalLM(Qwen3Config(**SHAPE | {"head_dim": 32} | changes)), folder)


def mistral(folder: Path, **changes: Any) -> Path:
    return _saved(MistralForCausalLM(MistralConfig(**SHAPE | {"sliding_window": None} | changes)), folder)


def gemma3(folder: Path, **changes: Any) -> Path:
    """Of five layers the first two and the last two see 24 positions."""
    shape = {"head_dim": 32, "sliding_window": 24, "layer_types": GEMMA_LAYERS, "query_pre_attn_scalar": 20}
    return _saved(Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE | shape | changes)), folder)


def phi3(folder: Path, **changes: Any) -> Path:
    return _saved(Phi3ForCausalLM(Phi3Config(**SHAPE | {"sliding_window": None} | changes)), folder)


def _saved(model: torch.nn.Module, folder: Path, shard: str = "5GB") -> Path:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith(".bias"):  # transformers initialises them with ones and zeros
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder, max_shard_size=shard)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(DEMO / name, folder / name)
    return folder


def give_byte_level_tokenizer(folder: Path, pre_tokenizer: str) -> None:
    """Replaces the tokenizer by a small BPE one that splits text as `pre_tokenizer` (llama.cpp's name) does."""
    (rule,) = (rule for rule, name in PRE_TOKENIZERS.items() if name == pre_tokenizer)
    pattern = Regex(rule[0].removeprefix("Split "))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([fact.answer for fact in corpus.facts()[:200]], trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    (folder / "chat_template.jinja").unlink()
    fast.save_pretrained(folder)


def give_sentence_pieces(folder: Path, scratch: Path) -> None:
    """Replaces the tokenizer by a small SentencePiece one like that of Llama 2."""
    text = scratch / "text"
    text.write_text("\n".join(fact.answer for fact in corpus.facts()[:400]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(scratch / "pieces"), model_type="bpe", vocab_size=600, byte_fallback=True,
        character_coverage=0.9995, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, minloglevel=2,
    )  # fmt: skip
    shutil.copyfile(scratch / "pieces.model", folder / "tokenizer.model")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).unlink()
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "bos_token": "<s>", "eos_token": "</s>",'
        ' "unk_token": "<unk>", "legacy": true}'
    )
