"""Continuous batching: each step decodes a part of every job in one llama.cpp call and draws the next tokens.

Jobs join and leave between steps. A step has room for CHUNK tokens, shared out so that a job that needs few (one that
draws needs one) never waits for a job that needs many.
"""

import asyncio
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import EngineError, FrameworkError, GrammarError
from common.protocol.prefix_hash import common_prefix
from edge.engine.jobs import DecodeJob, Generation, Scoring
from edge.engine.worker import StepScheduler
from edge.kv.prefix_store import PrefixStore
from edge.kv.tenant_counters import TenantCounters
from edge.llama.batch import SequenceTokens
from edge.llama.grammar import AnswerGrammar
from edge.llama.model import CHUNK, Llama
from edge.llama.sampling import Logits

Floats = NDArray[np.floating[Any]]
Confidence = Callable[[Logits, NDArray[np.intp]], tuple[Floats, Floats]]
"""From a step's logits, [B, V], and the tokens drawn from them, [B], to the tokens' probabilities and confidences."""
ROW_BLOCK = 1 << 18
"""Logits whose confidences are computed together: more of them leave the CPU cache between two passes."""
MAX_SCORING_LOGITS = 1 << 22
"""Logits that scoring may request from one step."""
LONG_PROMPT = 32
"""Tokens to read that are worth a further step, if that spares another request to read them."""


class Release(NamedTuple):
    """The end of a lease. `reuse`: other requests may reuse what its sequence holds."""

    sequence: int
    reuse: bool


class BatchScheduler(StepScheduler[DecodeJob]):
    """Decodes the jobs of all sequences of `llama`, which it owns; `store` keeps and restores their KV."""

    def __init__(
        self,
        llama: Llama,
        store: PrefixStore,
        confidence: Confidence,
        inbox: SimpleQueue[DecodeJob | Release | None],
        wake: Callable[[list[asyncio.Future[None]]], None],
    ) -> None:
        super().__init__(inbox, wake)
        self._llama = llama
        self._store = store
        self._confidence = confidence
        self._leased: set[int] = set()
        """Sequences whose current lease has had a job."""
        self._grammars: dict[int, AnswerGrammar] = {}
        """Of the sequences whose current lease has one."""
        self.counters = TenantCounters(
            "drafts", "drafted_tokens", "prompt_tokens", "reused_prompt_tokens", "steps", "decoded_tokens"
        )
        """Steps, which are of all tenants together, count for none."""

    def serve(self) -> None:
        super().serve()
        self._guarded(lambda _: self._store.close(self._llama), [])

    def abort(self) -> None:
        self._llama.abort(True)

    def free(self) -> None:
        self._llama.free()

    def _receive(self, message: DecodeJob | Release) -> None:
        if isinstance(message, Release):
            self._release(message)
        elif not message.cancelled:
            self._active.append(message)
            self._guarded(self._begin, [message])
            self._collect_waiters()

    def _step(self) -> None:
        self._guarded(self._decode, self._active)

    def _begin(self, jobs: list[DecodeJob]) -> None:
        """Brings as much as possible of each job's tokens into its sequence, without decoding."""
        for job in jobs:
            if isinstance(job, Generation):
                job.grammar = self._grammar(job)
            kept = self._restore(job)
            job.begin(kept)
            if not all(0 <= token < self._llama.vocabulary.size for token in job.pending):
                raise EngineError(f"a token id is outside the vocabulary of {self._llama.vocabulary.size} tokens")
            self.counters.add(job.tenant, prompt_tokens=len(job.token_ids), reused_prompt_tokens=kept)

    def _restore(self, job: DecodeJob) -> int:
        """How many of the job's tokens need no decoding; the last one always does, because its logits are needed."""
        llama, sequence = self._llama, job.sequence
        first = sequence not in self._leased
        self._leased.add(sequence)
        if not job.reuse or isinstance(job, Scoring):
            if first and llama.held[sequence]:
                self._store.save(llama, sequence)
            llama.owners[sequence] = job.tenant
            return llama.rewind(sequence, 0)
        wanted = job.token_ids[:-1]
        if first:
            self._store.restore(llama, sequence, wanted, job.tenant)
            llama.owners[sequence] = job.tenant
        return llama.rewind(sequence, common_prefix(llama.held[sequence], wanted))

    def _release(self, lease: Release) -> None:
        if lease.sequence not in self._leased:
            return
        self._leased.discard(lease.sequence)
        self._grammars.pop(lease.sequence, None)
        if lease.reuse:
            self._guarded(lambda _: self._store.release(self._llama, lease.sequence), [])
        else:
            self._llama.rewind(lease.sequence, 0)

    def _grammar(self, job: Generation) -> AnswerGrammar | None:
        """The job's grammar at the end of the answer so far; raises GrammarError if the answer does not match it."""
        start, spec = job.options.grammar_start, job.sampling.grammar
        if start is None or spec is None:
            return None
        grammar = self._grammars.pop(job.sequence, None)
        if grammar is None or grammar.spec != spec:
            grammar = AnswerGrammar(spec, start, self._llama.vocabulary)
        begin = job.sampling.prompt_tokens
        if not grammar.follow([] if begin is None else job.token_ids[begin:]):
            raise GrammarError(f"the answer so far does not match {spec.noun}", param=spec.param)
        self._grammars[job.sequence] = grammar
        return grammar

    def _decode(self, jobs: list[DecodeJob]) -> None:
        """Decodes a part of each job in one call, and draws for the jobs whose tokens are all decoded."""
        portions = share_out(jobs, MAX_SCORING_LOGITS // self._llama.vocabulary.size)
        if self._llama.takes_checkpoints:
            portions = [(job, without_last(job, count)) for job, count in portions]
        pieces = [SequenceTokens(job.sequence, job.pending[:count], job.rows(count)) for job, count in portions]
        self._llama.abort(False)
        self._in_step, self.step_tokens = jobs, sum(count for _, count in portions)
        self._wake()
        rows = None if all(job.cancelled for job in jobs) else self._llama.decode(pieces)
        self._in_step = []
        if rows is None:
            return
        self.counters.add("", steps=1)
        begin = 0
        drawing: list[Generation] = []
        for (job, count), piece in zip(portions, pieces, strict=True):
            del job.pending[:count]
            self.counters.add(job.tenant, decoded_tokens=count)
            if self._llama.takes_checkpoints:
                self._checkpoint(job)
            if isinstance(job, Scoring):
                self._score(job, rows[begin : begin + piece.rows])
            elif isinstance(job, Generation) and piece.rows:
                drawing.append(job)
            begin += piece.rows
        if drawing:
            self._draw(drawing, rows[: len(drawing)])
        if any(isinstance(job.error, EngineError) for job in jobs):
            self._forget_numbers(jobs)

    def _forget_numbers(self, jobs: list[DecodeJob]) -> None:
        """After a job met weights that are no numbers: nothing of it stays where other jobs may read it."""
        self._llama.clear()
        for job in jobs:
            if not job.done:
                job.begin_again()

    def _score(self, job: Scoring, rows: Logits) -> None:
        try:
            job.score(rows)
        except EngineError as error:  # the other jobs go on
            job.fail(error)

    def _checkpoint(self, job: DecodeJob) -> None:
        """Where drawing begins, because the draft may be rejected; and before a prompt's last token."""
        if isinstance(job, Generation) and len(job.pending) <= 1 and not job.has_drawn:
            self._llama.checkpoint(job.sequence, of_prompt=bool(job.pending))

    def _draw(self, jobs: list[Generation], rows: Logits) -> None:
        """Draws each job's next token from its row of `rows`, [B, V]."""
        likeliest, ends = rows.argmax(axis=-1), self._llama.vocabulary.end_tokens
        tokens = likeliest.copy()
        for i, job in enumerate(jobs):
            try:
                tokens[i] = job.choose(rows[i], int(likeliest[i]), ends)
            except FrameworkError as error:  # the other jobs go on
                self._grammars.pop(job.sequence, None)
                job.fail(error)
        if any(job.error for job in jobs):
            drawn_by = [i for i, job in enumerate(jobs) if job.error is None]
            jobs, rows, tokens = [jobs[i] for i in drawn_by], rows[drawn_by], tokens[drawn_by]
        block = max(1, ROW_BLOCK // rows.shape[1])
        for begin in range(0, len(jobs), block):
            some = slice(begin, begin + block)
            probs, confidences = self._confidence(rows[some], tokens[some])
            drawn = zip(
                jobs[some], tokens[some].tolist(), probs.tolist(), confidences.tolist(), rows[some], strict=True
            )
            for job, token, prob, confidence, row in drawn:
                job.append(token, prob, confidence, row, token in ends and not job.sampling.ignore_eos)
                self.counters.add(job.tenant, drafted_tokens=1, drafts=job.done)


def share_out(jobs: Sequence[DecodeJob], max_scored: int) -> list[tuple[DecodeJob, int]]:
    """How many pending tokens of each job go into a step of CHUNK: all of the small jobs, equal shares of the others.

    A scoring job gets at most `max_scored`. Jobs that draw come first, so that their logits are adjacent rows, in the
    order of their sequences: with one KV stream per sequence, llama.cpp decodes only neighbours together.
    """
    portions: list[tuple[DecodeJob, int]] = []
    room = CHUNK
    by_size = sorted(jobs, key=lambda job: len(job.pending))
    for at, job in enumerate(by_size):
        share = max(1, room // (len(by_size) - at))
        count = min(len(job.pending), share, max(1, max_scored) if isinstance(job, Scoring) else CHUNK)
        portions.append((job, count))
        room -= count
    return sorted(portions, key=lambda portion: (isinstance(portion[0], Scoring), portion[0].sequence))


def without_last(job: DecodeJob, count: int) -> int:
    """The portion `count`, which leaves the last token of a long prompt to the next step.

    A request with the same prompt then finds a checkpoint that lacks only this token, whose logits it needs anyway.
    """
    return count - 1 if isinstance(job, Generation) and count == len(job.pending) >= LONG_PROMPT else count
