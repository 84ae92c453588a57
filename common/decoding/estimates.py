"""What an edge server has learned from its answers about its network, its own speed and its cloud."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from common.decoding.acceptance import Acceptance, TextAcceptance
from common.decoding.fading import Gain, LinearEstimate, Mean
from common.types import Draft, Verdict, VerificationMode

TOKEN_STEPS = 0.06
"""Until it is measured: what verifying one more token costs, in steps without drafts."""
QUEUED_STEPS = 0.5
"""What a round beside other answers waits for the step before its own, in steps; a stream is in every step."""


def _unmeasured_step() -> LinearEstimate:
    return LinearEstimate(TOKEN_STEPS, largest=1.0)


@dataclass(slots=True)
class Estimates:
    """Learned from every answer of one edge server, read by the policy; belongs to one event loop. Times in seconds.

    The `observe_...` methods are the only way in.
    """

    network: LinearEstimate = field(default_factory=LinearEstimate)
    """Round trip without payload, and seconds per byte (both directions together)."""
    draft: Mean = field(default_factory=Mean)
    """Per token drafted."""
    verify: LinearEstimate = field(default_factory=_unmeasured_step)
    """One step of the cloud that has no other answer in it, by the number of draft tokens."""
    acceptance: Acceptance | TextAcceptance = field(default_factory=Acceptance)
    active: int = 0
    """Answers under way that the cloud takes part in."""
    bytes_per_round: Mean = field(default_factory=Mean)
    gains: dict[VerificationMode, Gain] = field(
        default_factory=lambda: {VerificationMode.ROUNDS: Gain(), VerificationMode.CONTINUOUS: Gain()}
    )
    """Of lossless answers: their speed over the one that `throughput` expects."""
    waits: Mean = field(default_factory=Mean)
    """Of steps while other answers are active: seconds over those expected."""
    _guessed: bool = False
    """Whether `verify` rests on a step that others were in."""

    @contextmanager
    def answer_under_way(self) -> Iterator["ActiveAnswer"]:
        """Counts an answer as active until it ends, or the edge goes on with it alone."""
        answer = ActiveAnswer(self)
        self.active += 1
        try:
            yield answer
        finally:
            answer.leave_cloud()

    def observe_draft(self, draft: Draft, drawn_before: int) -> None:
        """A draft for an answer for which the edge had drawn `drawn_before` tokens.

        The first draft of an answer is left out: its time includes the prefill of the prompt.
        """
        if drawn_before and draft.token_ids:
            self.draft.add(draft.latency_ms / 1e3 / len(draft.token_ids))

    def observe_round(
        self, proposed: Draft, verdict: Verdict, payload: int, rounds_before: int, active: float = 1.0
    ) -> None:
        """A verify of `proposed`, with `payload` bytes up and down, after `rounds_before` others of its answer.

        The times of an answer's first round are left out: they include the prefill of the prompt. `active`: answers
        under way meanwhile, this one included.
        """
        self.acceptance.add(proposed.confidences, verdict.accepted)
        if rounds_before and verdict.cloud_ms and proposed.token_ids:
            latency, cloud = verdict.latency_ms / 1e3, verdict.cloud_ms / 1e3
            self.network.add(payload, max(0.0, latency - cloud))
            self.bytes_per_round.add(payload)
            self._observe_step(len(proposed.token_ids), cloud / self._queued(active), active)

    def observe_handshakes(self, seconds: float) -> None:
        """The TCP and WebSocket handshakes of a stream, two round trips; 0 where it had an open connection."""
        if seconds:
            self.network.add(0, seconds / 2)

    def observe_stream_draft(self, confidences: Sequence[float], accepted: int, run: int) -> None:
        """Draft tokens that a stream has reached: the first `accepted` are right, after `run` right ones before."""
        self.acceptance.add(confidences, accepted, run)

    def observe_stream(self, steps: int, drafted: int, seconds: float, active: float) -> None:
        """A whole stream: engine steps, draft tokens verified in them, seconds from its first to its last token.

        `active`: answers under way meanwhile, this one included.
        """
        if steps > 1:
            self._observe_step(drafted / steps, seconds / (steps - 1), active)

    def _observe_step(self, drafted: float, seconds: float, active: float) -> None:
        """Beside other answers, what a draft token costs is not seen: their drafts are in the same step."""
        if active <= 1:
            if self._guessed:
                self.verify, self._guessed = _unmeasured_step(), False
            self.verify.add(drafted, seconds)
        elif not self.verify.measured:
            self.verify.add(0.0, seconds / self._shared(drafted, active))
            self._guessed = True
        else:
            self.waits.add(seconds / max(1e-9, self.verify.at(0.0) * self._shared(drafted, active)))

    def _shared(self, drafted: float, active: float) -> float:
        """A step in which each active answer has so many draft tokens, in steps for the token of one answer."""
        base = self.verify.at(0.0)
        token = self.verify.slope / base if base > 0 else TOKEN_STEPS
        return 1.0 + token * (max(1.0, active) * (1.0 + drafted) - 1.0)

    @staticmethod
    def _queued(active: float) -> float:
        """The time that a verify takes in the cloud, in steps."""
        return 1.0 + QUEUED_STEPS if active > 1 else 1.0

    def observe_speed(self, mode: VerificationMode, tokens: int, expected: float) -> None:
        """An answer's tokens, and how many were expected in the same time."""
        other = VerificationMode.CONTINUOUS if mode is VerificationMode.ROUNDS else VerificationMode.ROUNDS
        self.gains[mode].add(tokens, expected)
        self.gains[other].forget()

    @property
    def round_trip(self) -> float:
        """Network time of a verify, in seconds."""
        return self.network.at(self.bytes_per_round.value or 0.0) if self.network.measured else 0.0

    @property
    def draft_seconds(self) -> float:
        return self.draft.value or 0.0

    @property
    def step_seconds(self) -> float:
        """One step of the cloud without drafts, in seconds, now."""
        waits = (self.waits.value or 1.0) if self.active > 1 else 1.0
        return self.verify.at(0.0) * self._shared(0.0, self.active) * waits

    @property
    def verify_seconds(self) -> float:
        """What a round waits for a verify without drafts, in seconds, now, the network's time left out."""
        return self.step_seconds * self._queued(self.active)

    @property
    def token_steps(self) -> float:
        """What one more draft token of every active answer adds to a step of the cloud, in steps without drafts."""
        return self._shared(1.0, self.active) / self._shared(0.0, self.active) - 1.0


@dataclass(slots=True)
class ActiveAnswer:
    """An answer that counts as active."""

    estimates: Estimates
    counts: bool = True

    def leave_cloud(self) -> None:
        """From here on the cloud takes no part in it."""
        self.estimates.active -= self.counts
        self.counts = False


class AnswerEstimates:
    """What one answer has shown of its own text, on top of what all answers have."""

    def __init__(self, everything: Estimates) -> None:
        assert isinstance(everything.acceptance, Acceptance), "the estimates of all answers"
        self._everything = everything
        self.acceptance = TextAcceptance(everything.acceptance)

    def current(self) -> Estimates:
        """The estimates for this answer, now."""
        return replace(self._everything, acceptance=self.acceptance)
