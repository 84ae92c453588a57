"""Compiles one grammar on trial, in a process of its own that may be killed. Imports only llguidance.

Some schemas take minutes, and nothing within a process can stop llguidance. Read from stdin: a JSON object with the
grammar (`text`) and the `limits` of its parser. Written to stdout: why it is refused; nothing if it is not.
"""

import json
import resource
import signal
import sys

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MEMORY_LIMIT = 2**30
"""Bytes of address space."""
STACK_LIMIT = 2**20
"""Bytes of stack: llguidance recurses, and the threads that compile what has passed have 2 MiB at least."""


def main(seconds: float) -> None:
    """Ends with SIGPROF after `seconds` of processor time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches this process too; its owner ends it
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_LIMIT, STACK_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    request = json.load(sys.stdin)
    limits = LLParserLimits(**request["limits"])
    # A vocabulary of single bytes: what is expensive about a schema does not depend on the vocabulary.
    matcher = LLMatcher(LLTokenizer("byte"), request["text"], log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    sys.stdout.write(matcher.get_error())


if __name__ == "__main__":
    main(float(sys.argv[1]))
