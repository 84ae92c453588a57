"""Tokenizes long runs of characters with the vocabulary of a GGUF file: a program, because llama.cpp may end it."""

import ctypes
import json
import sys

import llama_cpp as c

from common.errors import RequestError
from edge.llama.vocabulary import LlamaVocabulary

UNITS = ("a", "A", "aB", "1", " ", " \n", ".", "/", "中", "é", "\u0301", "👍", "a ", "ab1")


def main(path: str, length: int, wanted: list[str]) -> None:
    """Prints, for each unit, the number of tokens of a run of so many characters; null if it is refused."""
    settings = c.llama_model_default_params()
    settings.vocab_only = True
    silence = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(silence, ctypes.c_void_p(None))
    vocabulary = LlamaVocabulary(c.llama_model_load_from_file(path.encode(), settings))
    print(json.dumps({unit: _count(vocabulary, (unit * length)[:length]) for unit in wanted or UNITS}))


def _count(vocabulary: LlamaVocabulary, text: str) -> int | None:
    try:
        return len(vocabulary.tokenize(text.encode(), add_special=False, parse_special=True))
    except RequestError:
        return None


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
