"""Regret: how much longer a plan takes than the best fixed (mode, length) in hindsight, and than an oracle."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.table import Table

from benchmarks.policy.replay import ReplayedTime, ReplaySetting, replay
from benchmarks.policy.trace import AnswerTrace
from benchmarks.policy.virtual_time import simulate
from common.decoding.estimates import Estimates
from common.decoding.policy import Plan
from common.types import NEVER, Mode, VerificationMode
from experiments.harness.load import in_turns

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)
LOSSLESS = Plan(use_confidence_check=False)
CLOUD_ONLY = Plan(mode=Mode.CLOUD_ONLY)
ANSWERS = 3
"""Of each of several clients, about: the last ones are answered with fewer beside them."""


@dataclass(frozen=True)
class RegretCell:
    """Seconds of all answers of one `kind` over one network.

    `policy`: as the policy chooses, after it has answered everything once. `fixed`: of each mode and draft length, and
    of the cloud alone, by name. `oracle`: of a stream whose steps verify exactly what is right, drafted in no time.
    `gated`: with the default gate; `gated_computed`: tokens that the cloud then computes for each of the answers'.
    """

    kind: str
    round_trip: float
    tokens: int
    policy: float
    fixed: dict[str, float]
    oracle: float
    gated: float
    gated_computed: float

    @property
    def best(self) -> str:
        """The fastest fixed choice."""
        return min(self.fixed, key=self.fixed.__getitem__)

    @property
    def regret(self) -> float:
        """The policy's time over the best fixed choice's, minus 1; below 0 the policy is faster."""
        return self.policy / self.fixed[self.best] - 1

    @property
    def over_cloud_only(self) -> float:
        """The policy's speed over the cloud alone."""
        return self.fixed["cloud only"] / self.policy

    @property
    def gated_over_cloud_only(self) -> float:
        """The speed of gated answers over the cloud alone."""
        return self.fixed["cloud only"] / self.gated


def fixed_plans() -> dict[str, Plan]:
    """The cloud alone, and each mode with drafts of each length, whatever the confidence."""
    modes = (VerificationMode.ROUNDS, VerificationMode.CONTINUOUS)
    drafting = {
        f"{mode.value} of {length}": replace(
            LOSSLESS, verification_mode=mode, max_draft_tokens=length, draft_stop=NEVER
        )
        for mode in modes
        for length in LENGTHS
    }
    return {"cloud only": CLOUD_ONLY} | drafting


def cells(traces: Sequence[AnswerTrace], setting: ReplaySetting) -> list[RegretCell]:
    """A cell for each kind of text, whose answers several clients have at the same time.

    The policy has met all kinds in turn, and is not told which kind an answer is.
    """
    if setting.clients == 1:
        return _cells(traces, traces, setting)
    found = []
    for kind in dict.fromkeys(trace.kind for trace in traces):
        own = [trace for trace in traces if trace.kind == kind]
        found += _cells(traces, own * -(-ANSWERS * setting.clients // len(own)), setting)
    return found


def _cells(known: Sequence[AnswerTrace], traces: Sequence[AnswerTrace], setting: ReplaySetting) -> list[RegretCell]:
    policy, gated = (settled(known, traces, setting, plan) for plan in (LOSSLESS, Plan()))
    fixed = {name: replay(traces, setting, plan) for name, plan in fixed_plans().items()}
    ideal = oracle(traces, setting)
    found = []
    for kind in dict.fromkeys(trace.kind for trace in traces):
        own = [n for n, trace in enumerate(traces) if trace.kind == kind]
        tokens = sum(len(traces[n].agrees) for n in own)
        found.append(
            RegretCell(
                kind=kind,
                round_trip=setting.round_trip,
                tokens=tokens,
                policy=seconds(policy[n] for n in own),
                fixed={name: seconds(times[n] for n in own) for name, times in fixed.items()},
                oracle=sum(ideal[n] for n in own),
                gated=seconds(gated[n] for n in own),
                gated_computed=sum(gated[n].computed for n in own) / tokens,
            )
        )
    return found


def settled(
    known: Sequence[AnswerTrace], traces: Sequence[AnswerTrace], setting: ReplaySetting, plan: Plan
) -> list[ReplayedTime]:
    """All answers by an edge that has already answered those of `known` once."""
    estimates = Estimates()
    replay(known, setting, plan, estimates)
    return replay(traces, setting, plan, estimates)


def seconds(answers: Iterable[ReplayedTime]) -> float:
    return sum(answer.seconds for answer in answers)


def oracle(traces: Sequence[AnswerTrace], setting: ReplaySetting) -> list[float]:
    """Seconds of each answer: a step verifies what is right up to the next mistake, drafted and sent in no time."""
    pair = setting.pair()

    async def one(number: int) -> float:
        trace, at, clock = traces[number], 0, asyncio.get_running_loop()
        began, read = clock.time(), setting.times.cloud_read * traces[number].prompt_tokens
        await asyncio.sleep(setting.round_trip)
        while at < len(trace.agrees):
            verified = min(trace.run(at), len(trace.agrees) - at - 1, LOSSLESS.max_draft_tokens)
            await pair.cloud.run(verified + 1, read)
            at, read = at + verified + 1, 0.0
        return clock.time() - began

    return simulate(in_turns(setting.clients, one, range(len(traces))))


def table(found: Sequence[RegretCell], name: str, clients: int) -> Table:
    """One line for each cell; `ms` is the round trip."""
    each = f" for each of {clients} clients" if clients > 1 else ""
    title = f"Tokens per second{each}, replayed with the times of the pair {name}"
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for head in ("text", "ms", "cloud", "policy", "best", "fixed", "regret", "oracle", "gated", "computed"):
        result.add_column(head, justify="left" if head in ("text", "fixed") else "right", no_wrap=head != "text")
    for cell in found:
        speeds = {name: cell.tokens / spent for name, spent in cell.fixed.items()}
        result.add_row(
            cell.kind,
            f"{cell.round_trip * 1e3:g}",
            f"{speeds['cloud only']:.1f}",
            f"{cell.tokens / cell.policy:.1f}",
            f"{speeds[cell.best]:.1f}",
            cell.best,
            f"{cell.regret:+.1%}",
            f"{cell.tokens / cell.oracle:.1f}",
            f"{cell.tokens / cell.gated:.1f}",
            f"{cell.gated_computed:.2f}",
        )
    return result
