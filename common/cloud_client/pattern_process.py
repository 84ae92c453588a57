"""Searches regular expressions in a process of its own, which may be killed. Imports only the standard library.

A frame is a length in 4 bytes (big-endian), then text. On stdin: first the patterns as JSON, then questions: `?` and a
prompt, answered by 1 or 0 (it is searched as it is, and with its escapes read); `*` and a JSON list of texts, answered
by the private parts of each as JSON, or null where they cannot be replaced. Exceeding the processor time of one search,
or the memory, ends the process.
"""

import json
import re
import resource
import signal
import sys
from collections.abc import Iterable, Sequence

MEMORY_LIMIT = 512 * 2**20
"""Bytes of address space."""
MAX_SECRETS = 256
"""Different private texts that are told apart in one request."""
READINGS = 5
"""So often escapes are read as what they stand for: JSON may be a text within JSON."""
UNNAMED = "PRIVATE"
"""What is found by a pattern without a named group."""

ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}

Span = tuple[int, int, str]
"""Start and end in characters, and what kind of text it is."""


def _read() -> str | None:
    """The next frame's text; None when the pipe is closed."""
    size = sys.stdin.buffer.read(4)
    return sys.stdin.buffer.read(int.from_bytes(size, "big")).decode(errors="surrogatepass") if size else None


def _write(text: str) -> None:
    data = text.encode()
    sys.stdout.buffer.write(len(data).to_bytes(4, "big") + data)
    sys.stdout.buffer.flush()


def readings(text: str) -> list[str]:
    """The text, and what it says to whoever reads the escapes of JSON in it, level by level."""
    made = [text]
    while len(made) <= READINGS:
        read = ESCAPE.sub(lambda hit: chr(int(hit[1], 16)) if hit[1] else LETTERS.get(hit[2], hit[2]), made[-1])
        if read == made[-1]:
            break
        made.append(read.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass"))  # joins pairs
    return made


def kind_of(pattern: re.Pattern[str]) -> str:
    """The name of the pattern's first named group, in upper case: `(?P<email>...)` finds an EMAIL."""
    name = min(pattern.groupindex, key=pattern.groupindex.__getitem__, default="").upper()
    return name if name.isascii() and name else UNNAMED


def private_parts(patterns: Sequence[re.Pattern[str]], texts: Sequence[str]) -> list[list[Span]] | None:
    """What the patterns find in each text, and where else the same words are; no two parts of a text overlap.

    None for what cannot be replaced: more than MAX_SECRETS, or nothing at all.
    """
    found = [
        [(*hit.span(), kind_of(pattern)) for pattern in patterns for hit in pattern.finditer(text)] for text in texts
    ]
    kinds = {text[start:end]: kind for text, own in zip(texts, found, strict=True) for start, end, kind in own}
    if len(kinds) > MAX_SECRETS or "" in kinds:
        return None
    if kinds:  # a pattern may look at what surrounds a secret, which also stands elsewhere
        words = "|".join(map(re.escape, sorted(kinds, key=len, reverse=True)))
        anywhere = re.compile(f"(?=({words}))")
        for text, own in zip(texts, found, strict=True):
            own += [(hit.start(), hit.end(1), kinds[hit[1]]) for hit in anywhere.finditer(text)]
    return [_joined(own) for own in found]


def _joined(spans: Iterable[Span]) -> list[Span]:
    joined = list[Span]()
    for start, end, kind in sorted(spans):
        if joined and start < joined[-1][1]:
            first, last, kind = joined[-1]
            joined[-1] = (first, max(last, end), kind)
        else:
            joined.append((start, end, kind))
    return joined


def main(seconds: float) -> None:
    """Serves frames, with `seconds` of processor time for each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches this process too; its owner ends it
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    patterns = [re.compile(pattern) for pattern in json.loads(_read() or "[]")]
    while (question := _read()) is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process even within a search
        if question.startswith("?"):
            texts = readings(question[1:])
            reply = "1" if any(pattern.search(text) for text in texts for pattern in patterns) else "0"
        else:
            reply = json.dumps(private_parts(patterns, json.loads(question[1:])))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(reply)


if __name__ == "__main__":
    main(float(sys.argv[1]))
