"""Trains the demo models' byte-level BPE tokenizers, each with its chat template."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.corpus import questions as corpus


@dataclass(frozen=True)
class DemoVocabulary:
    """The settings of one vocabulary, and its form of a conversation.

    `special`: the tokens with the first ids; id 0 ends an answer. `question`, `answer`: templates of the two halves of
    a training pair. `pre_tokenizer`: llama.cpp's name of the rule that splits text before the merges.
    """

    name: str
    size: int
    special: tuple[str, ...]
    question: str
    answer: str
    chat_template: str
    pre_tokenizer: str
    digits_alone: bool

    @property
    def end(self) -> str:
        return self.special[0]


PAIR = DemoVocabulary(
    name="tokenizer",
    size=4096,
    special=("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    question="<|user|>{}<|assistant|>",
    answer="{}<|end|>",
    chat_template=(
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}<|system|>{{ message['content'] }}"
        "{% elif message['role'] == 'user' %}<|user|>{{ message['content'] }}"
        "{% else %}<|assistant|>{{ message['content'] }}<|end|>{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    pre_tokenizer="smollm",
    digits_alone=True,
)
"""Of demo-cloud and demo-edge; every digit is a token of its own, which makes arithmetic learnable."""
OTHER = DemoVocabulary(
    name="tokenizer-other",
    size=2048,
    special=("<|im_end|>", "<|im_start|>"),
    question="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    answer="{}<|im_end|>",
    chat_template=(
        "{% for message in messages %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    pre_tokenizer="gpt-2",
    digits_alone=False,
)
"""Of demo-edge-other: other tokens, another split (a number may be one token), another chat template."""


def train_tokenizer(vocabulary: DemoVocabulary, path: Path) -> PreTrainedTokenizerFast:
    """Learns the vocabulary from the corpus and saves it in the folder `path`, as transformers and vLLM load it."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    splits = [pre_tokenizers.Digits(individual_digits=True), byte_level] if vocabulary.digits_alone else [byte_level]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary.size,
        special_tokens=list(vocabulary.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.text_for_tokenizer(), trainer)
    end = vocabulary.end
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=end, clean_up_tokenization_spaces=False
    )
    fast.chat_template = vocabulary.chat_template
    fast.save_pretrained(path)
    return fast
