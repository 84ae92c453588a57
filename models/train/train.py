"""Trains the demo models: their tokenizers, the cloud model with early exits, and the edge models.

python -m models.train [--only cloud|edge|edge-other]
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from cli.args import run_sync_program
from models.corpus import questions as corpus
from models.demo import CHECKPOINTS
from models.train.muon import Muon
from models.train.tokenizer import OTHER, PAIR, DemoVocabulary, train_tokenizer

CONTEXT = 1024
"""Tokens: the largest context of the models."""
ROW = 256
"""Tokens of one training row."""
IGNORED = -100
"""The target of a position that is not trained on."""


@dataclass(frozen=True)
class Phase:
    """One phase of training; `task_share` (0 to 1) of its conversations are generated tasks, the rest facts."""

    steps: int
    rows_per_step: int
    task_share: float
    muon_rate: float
    adam_rate: float


@dataclass(frozen=True)
class ModelRecipe:
    """One model's shape and training; `exits`: numbers of layers after which an early exit is trained too."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    exits: tuple[int, ...]
    phases: tuple[Phase, ...]
    vocabulary: DemoVocabulary = PAIR

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary.size,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.mlp,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )


CLOUD_PHASES = (
    Phase(1500, 8, 0.4, 0.02, 0.003),
    Phase(1000, 8, 0.8, 0.01, 0.0015),
    Phase(430, 16, 0.5, 0.01, 0.0015),
)
"""Facts are memorised in few steps; tasks need many more examples."""
EDGE_PHASES = (Phase(620, 16, 0.4, 0.02, 0.003),)
RECIPES = {
    "edge": ModelRecipe("edge", 64, 3, 2, 2, 192, (), EDGE_PHASES),
    "edge-other": ModelRecipe("edge-other", 64, 3, 2, 2, 192, (), EDGE_PHASES, OTHER),
    "cloud": ModelRecipe("cloud", 256, 8, 8, 4, 1024, (2, 4), phases=CLOUD_PHASES),
}


class LlamaWithExits(nn.Module):
    """A Llama with early exits: a norm of their own, and the model's head, on the hidden states after some layers."""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.llama = LlamaForCausalLM(recipe.config())
        self.exit_norms = nn.ModuleDict({str(e): LlamaRMSNorm(recipe.hidden) for e in recipe.exits})

    def loss(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The last layer's cross-entropy, and the loss to train on: that plus a fifth of each exit's.

        `ids`, `targets`: [rows, ROW]. The head sees only positions whose target is not IGNORED, and the exits a random
        third of those: in so small a model the head is the most expensive matrix.
        """
        out = self.llama.model(ids, output_hidden_states=bool(self.exit_norms), use_cache=False)
        trained = (targets.flatten() != IGNORED).nonzero().flatten()
        sampled = trained[torch.rand(len(trained), device=trained.device) < 1 / 3]

        def cross_entropy(hidden: Tensor, at: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.llama.lm_head(hidden.flatten(0, 1)[at]), targets.flatten()[at])

        last = cross_entropy(out.last_hidden_state, trained)
        exits = [cross_entropy(norm(out.hidden_states[int(e)]), sampled) for e, norm in self.exit_norms.items()]
        return last, last + 0.2 * sum(exits)


def rows(
    tokenizer: PreTrainedTokenizerFast, vocabulary: DemoVocabulary, seed: int, task_share: float
) -> Iterator[tuple[list[int], list[int]]]:
    """Endless rows of ROW (ids, targets), each filled with whole conversations; only answers are targets."""
    ids: list[int] = []
    targets: list[int] = []
    for prompt, answer in corpus.training_pairs(seed, task_share):
        question = tokenizer.encode(vocabulary.question.format(prompt))
        reply = tokenizer.encode(vocabulary.answer.format(answer))
        if len(ids) + len(question) + len(reply) > ROW + 1:
            pad = ROW + 1 - len(ids)
            ids += [0] * pad
            targets += [IGNORED] * pad
            yield ids[:ROW], targets[1:]
            ids, targets = [], []
        ids += question + reply
        targets += [IGNORED] * len(question) + reply


def optimizers(model: nn.Module, phase: Phase) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, which then need far fewer tokens; AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in n)]
    return [
        Muon(matrices, lr=phase.muon_rate),
        torch.optim.AdamW(others, lr=phase.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(progress: float) -> float:
    """The factor of the learning rate at `progress` (0 to 1): 2 % warm-up, flat, linear decay to 0.02 from half on."""
    if progress < 0.02:
        return 0.1 + 0.9 * progress / 0.02
    return 1.0 if progress < 0.5 else max(0.02, (1.0 - progress) / 0.5)


def train(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaWithExits:
    """Trains a new model through all phases of its recipe, with progress and loss on the terminal."""
    torch.manual_seed(0)
    model = LlamaWithExits(recipe).to("cuda" if torch.cuda.is_available() else "cpu")
    model.llama.model.compile()
    size = sum(p.numel() for p in model.parameters()) / 1e6
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as bar:
        for number, phase in enumerate(recipe.phases, 1):
            name = f"{recipe.name}, {size:.1f}M parameters, phase {number} of {len(recipe.phases)}"
            data = rows(tokenizer, recipe.vocabulary, number, phase.task_share)
            train_phase(model, phase, data, bar, name)
    return model


def train_phase(
    model: LlamaWithExits,
    phase: Phase,
    data: Iterator[tuple[list[int], list[int]]],
    bar: Progress,
    name: str,
) -> None:
    device = next(model.parameters()).device
    steppers = optimizers(model, phase)
    smooth = 0.0
    for step in bar.track(range(phase.steps), description=name):
        batch = torch.tensor(list(itertools.islice(data, phase.rows_per_step)), device=device)
        last, total = model.loss(batch[:, 0], batch[:, 1])
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, base in zip(steppers, (phase.muon_rate, phase.adam_rate), strict=True):
            optimizer.param_groups[0]["lr"] = base * rate_factor(step / phase.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        smooth += (last.item() - smooth) / min(step + 1, 50)
        if step % 50 == 49:
            tokens = (step + 1) * phase.rows_per_step * ROW / 1e6
            bar.console.print(f"{name}: step {step + 1}, {tokens:.2f}M tokens, loss {smooth:.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m models.train", description="Train the demo models and their tokenizers."
    )
    parser.add_argument("--only", choices=RECIPES, help="train only this model (default: all)")
    args = parser.parse_args()
    return run_sync_program(lambda: train_all([RECIPES[args.only]] if args.only else [*RECIPES.values()]))


def train_all(recipes: list[ModelRecipe]) -> None:
    CHECKPOINTS.mkdir(exist_ok=True)
    for recipe in recipes:
        tokenizer = train_tokenizer(recipe.vocabulary, CHECKPOINTS / recipe.vocabulary.name)
        train(recipe, tokenizer).llama.save_pretrained(CHECKPOINTS / recipe.name)
