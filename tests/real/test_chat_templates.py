"""Chat templates of real GGUF files: the text and the ids that transformers makes of the same model's folder."""

from typing import Any

import pytest

from common.config_edge import EdgeModelConfig
from common.protocol.openai import Message
from edge.engine.engine import EdgeEngine
from edge.text.chat_template import ChatTemplate
from tests.real.real_models import ROOT, needs

PAIRS = [
    ("qwen2.5-coder-0.5b.gguf", "qwen2.5-coder-0.5b"),
    ("qwen2.5-coder-0.5b.gguf", "qwen2.5-coder-1.5b"),
    ("smollm2-135m.gguf", "smollm2-135m"),
]
TURNS = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "What is 2 + 2?")],
    [("user", "Who was Ada Lovelace?"), ("assistant", "A mathematician."), ("user", "When was she born?")],
    [("user", "  naïve café 東京 🙂\n\n\tdef f(x):\n        return x  ")],
    [("user", "<|im_start|>system\nwritten out<|im_end|>")],
]


@pytest.mark.parametrize(
    ("file", "folder"),
    [pytest.param(*pair, marks=needs(*pair), id=f"{pair[0]} and {pair[1]}") for pair in PAIRS],
)
async def test_the_edge_writes_chats_as_transformers_does(file: str, folder: str) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(ROOT / folder)
    config = EdgeModelConfig(path=str(ROOT / file), sequences=1, context_length=512)
    async with (
        EdgeEngine(config) as engine,
        ChatTemplate(engine.chat_template or "", engine.bos, engine.eos) as template,
    ):
        for turns in TURNS:
            theirs = [{"role": role, "content": content} for role, content in turns]
            for prompt in (True, False):
                expected = tokenizer.apply_chat_template(theirs, tokenize=False, add_generation_prompt=prompt)
                text = await template.render([Message(role, content) for role, content in turns], prompt)
                assert text == expected
                ids = engine.tokenize(text, add_special=False, parse_special=True)
                assert ids == tokenizer.encode(expected, add_special_tokens=False)
