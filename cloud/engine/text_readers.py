"""Reads texts (tokenizing, templates) in two threads, so that short ones do not wait for another client's megabytes."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

LONG = 32_768
"""Characters, or token ids: a tenth of a second at most."""


class TextReaders(Executor):
    """In place of the one thread in which vLLM tokenizes for all its routes; its tokenizer is made for several."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(1, "short-texts")
        self._long = ThreadPoolExecutor(1, "long-texts")

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        given = (fn.args, fn.keywords) if isinstance(fn, partial) else ()
        pool = self._long if size((given, args, kwargs)) > LONG else self._short
        return pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in (self._short, self._long):
            pool.shutdown(wait, cancel_futures=cancel_futures)


def size(value: object) -> int:
    """Characters and list items in a value and the containers that it is made of."""
    total, pending = 0, [value]
    while pending:
        match pending.pop():
            case str() | bytes() as text:
                total += len(text)
            case list() as ids if ids and isinstance(ids[0], int):
                total += len(ids)
            case Mapping() as fields:
                pending += fields.values()
            case list() | tuple() as items:
                total += len(items)
                pending += items
    return total
