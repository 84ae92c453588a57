"""The edge's embedding model: a thread that turns the texts of all requests into vectors, step by step."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

from common.config_edge import EmbeddingsConfig
from common.errors import EngineError, OverloadedError
from edge.engine.jobs import EngineJob
from edge.engine.loop_waker import LoopWaker
from edge.engine.worker import EngineThread, StepScheduler
from edge.llama.embedder import TEXTS, Embedder, Vector

MAX_REQUESTS = 32
"""Requests at once; more are refused."""


class EmbeddingJob(EngineJob):
    """The texts of one request."""

    def __init__(self, texts: Sequence[list[int]]) -> None:
        super().__init__()
        self.texts = texts
        self.vectors: list[Vector] = []

    def add(self, vectors: list[Vector]) -> None:
        self.vectors += vectors
        self.done = len(self.vectors) == len(self.texts)


class EmbeddingScheduler(StepScheduler[EmbeddingJob]):
    """Fills each step with texts of all requests in turn, so that a long list delays nobody's single text."""

    def __init__(
        self, embedder: Embedder, inbox: SimpleQueue[Any], wake: Callable[[list[asyncio.Future[None]]], None]
    ) -> None:
        super().__init__(inbox, wake)
        self._embedder = embedder

    def abort(self) -> None:
        self._embedder.abort(True)

    def free(self) -> None:
        self._embedder.free()

    def _receive(self, message: EmbeddingJob) -> None:
        if not message.cancelled:
            self._active.append(message)

    def _step(self) -> None:
        self._guarded(self._embed, self._active)

    def _embed(self, jobs: list[EmbeddingJob]) -> None:
        counts = share_out([job.texts[len(job.vectors) :] for job in jobs], self._embedder.context_length)
        texts = [
            text
            for job, count in zip(jobs, counts, strict=True)
            for text in job.texts[len(job.vectors) : len(job.vectors) + count]
        ]
        self._embedder.abort(False)
        self._in_step, self.step_tokens = jobs, sum(map(len, texts))
        self._wake()
        vectors = None if all(job.cancelled for job in jobs) else self._embedder.embed(texts)
        self._in_step = []
        for job, count in zip(jobs, counts, strict=True) if vectors else ():
            job.add([(vectors or []).pop(0) for _ in range(count)])


def share_out(waiting: Sequence[Sequence[list[int]]], room: int) -> list[int]:
    """How many texts of each request go into a step of `room` tokens and TEXTS texts: one of each in turn."""
    counts = [0] * len(waiting)
    open_ = list(range(len(waiting)))
    while open_ and sum(counts) < TEXTS:
        at = open_.pop(0)
        size = len(waiting[at][counts[at]]) if counts[at] < len(waiting[at]) else room + 1
        if size <= room:
            room -= size
            counts[at] += 1
            open_.append(at)
    return counts


class EmbeddingEngine:
    """`async with` loads the model, in a thread of its own; raises StartError if it cannot be loaded."""

    def __init__(self, config: EmbeddingsConfig) -> None:
        self._path = config.path
        self._embedder: Embedder | None = None
        self._inbox: SimpleQueue[EmbeddingJob | None] = SimpleQueue()
        self._requests = 0

        def load(waker: LoopWaker) -> EmbeddingScheduler:
            self._embedder = Embedder(config.path, config.context_length, config.gpu_layers)
            return EmbeddingScheduler(self._embedder, self._inbox, waker.wake)

        self._thread = EngineThread("edge-embeddings", self._inbox, load)

    async def __aenter__(self) -> Self:
        await self._thread.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._thread.close()

    @property
    def alive(self) -> bool:
        return self._thread.alive

    @property
    def model(self) -> Embedder:
        """For its vocabulary and sizes; raises EngineError if it is not running."""
        if self._embedder is None or self._thread.closing:
            raise EngineError("the embedding model is not running")
        return self._embedder

    @property
    def model_name(self) -> str:
        """The name in the file's header, else the file's own name."""
        return self.model.vocabulary.meta("general.name") or Path(self._path).stem

    async def embed(self, texts: Sequence[list[int]]) -> list[Vector]:
        """The vectors of these texts, each of 1 to `context_length` tokens; cancelling it ends the work on them."""
        if self._requests >= MAX_REQUESTS:
            raise OverloadedError(f"{self._requests} requests for embeddings are waiting already")
        job = EmbeddingJob(texts)
        self._requests += 1
        try:
            self._inbox.put(job)
            await job.wait(self._thread.works_on)
        finally:
            self._requests -= 1
            if not job.done:
                job.cancelled = True
                if self._thread.scheduler is not None:
                    self._thread.scheduler.abort_unwanted_step()
        return job.vectors
