"""What a replay needs of one recorded answer and of one pair of servers, and the file that keeps both."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from common.errors import ConfigError


class PairTimes(Struct, frozen=True, tag="pair", forbid_unknown_fields=True):
    """Times of a pair without any network, in seconds.

    `draft`, `edge_read`: the edge's for each token drafted and each prompt token; `drafted`: for one of every other
    answer in the same step, 0 where each answer has an edge of its own. `step`: the cloud's for a token of its own;
    `verified`: for each token more in that step, of drafts and of other answers; `cloud_read`: for each prompt token.
    `overhead`: what a round takes besides, in both servers' software.
    """

    name: str
    draft: float
    step: float
    verified: float
    drafted: float = 0.0
    edge_read: float = 0.0
    cloud_read: float = 0.0
    overhead: float = 0.0


class AnswerTrace(Struct, frozen=True, tag="answer", forbid_unknown_fields=True):
    """The cloud's answer to one prompt, and what the edge drafts at each of its positions.

    After the first i tokens of the answer, the edge's own greedy token has confidence `confidences[i]`, and `agrees[i]`
    says whether it is the cloud's. Where it is not, `astray[i]` holds the confidences of the tokens that the edge would
    draft after it. `ended`: the answer's last token ends it, else it was cut off.
    """

    kind: str
    prompt_tokens: int
    confidences: list[float]
    agrees: list[bool]
    astray: dict[int, list[float]]
    temperature: float = 0.0
    ended: bool = False

    def __post_init__(self) -> None:
        if not len(self.confidences) == len(self.agrees) > 0:
            raise ValueError("confidences and agrees must have the answer's length, which is above 0")

    def kept_from(self, threshold: float) -> "AnswerTrace":
        """As if the cloud agreed with each token of at least this confidence: what a gate keeps is never contradicted.

        The text would go on otherwise than recorded from there on, by tokens about as hard to guess.
        """
        agrees = [a or c >= threshold for a, c in zip(self.agrees, self.confidences, strict=True)]
        return msgspec.structs.replace(self, agrees=agrees)

    def run(self, at: int) -> int:
        """How many of the edge's tokens from position `at` on are the cloud's."""
        end = at
        while end < len(self.agrees) and self.agrees[end]:
            end += 1
        return end - at


def write(file: Path, times: PairTimes, traces: Iterable[AnswerTrace]) -> None:
    """Writes JSON lines: the pair's times, then the answers."""
    file.write_bytes(msgspec.json.Encoder().encode_lines([times, *traces]))


def read(file: Path) -> tuple[PairTimes, list[AnswerTrace]]:
    """Raises ConfigError for a file that cannot be read or is not one of these."""
    try:
        lines = msgspec.json.Decoder(PairTimes | AnswerTrace).decode_lines(file.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    times = [line for line in lines if isinstance(line, PairTimes)]
    traces = [line for line in lines if isinstance(line, AnswerTrace)]
    if len(times) != 1 or not traces:
        raise ConfigError(f"{file}: needs one line with the pair's times and at least one answer")
    return times[0], traces
