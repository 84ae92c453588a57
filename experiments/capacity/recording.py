"""Records answers of a real pair, as the pipeline makes them, so that simulated edges can repeat them."""

from collections.abc import Sequence
from dataclasses import replace

from common.cloud_client.pool import CloudPool
from common.cloud_client.verifier import CloudVerifier, EdgeDrafter
from common.config_schema import Config
from common.decoding import policy
from common.decoding.estimates import Estimates
from common.decoding.pipeline import Pipeline
from common.decoding.request import DecodingRequest
from common.http.client import HTTPClient
from common.protocol.openai import Message
from common.protocol.tokenization import TokenizeReply, TokenizeRequest
from common.types import GREEDY, Sampling, Verdict, VerificationMode
from experiments.fleet.load import DraftedAnswer, DraftedRound


class RecordingVerifier(CloudVerifier):
    """A verifier that keeps what it was asked, and the verdicts, round by round."""

    def __init__(self, clouds: CloudPool, prompt: Sequence[int]) -> None:
        super().__init__(clouds)
        self.rounds: list[DraftedRound] = []
        self._recorded = len(prompt)

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        verdict = await super().verify(token_ids, draft, sampling, max_tokens)
        kept = list(token_ids[self._recorded :])
        self.rounds.append(DraftedRound(list(draft), verdict.token_ids, kept, max_tokens))
        self._recorded = len(token_ids) + len(verdict.token_ids)
        return verdict

    def completed(self, committed: Sequence[int]) -> list[DraftedRound]:
        """All rounds of an answer that committed these tokens, the prompt's included."""
        rest = list(committed[self._recorded :])
        return [*self.rounds, DraftedRound([], [], rest)] if rest else self.rounds


class PairRecorder:
    """Asks a real pair. `estimates`: what it has learned of it, and how long the edge takes for a token."""

    def __init__(self, edge: HTTPClient, clouds: CloudPool, config: Config) -> None:
        self._edge, self._clouds = edge, clouds
        self._plan = replace(
            policy.default_plan(config), verification_mode=VerificationMode.ROUNDS, draft_ahead=False, fallback=False
        )
        self.estimates = Estimates()

    async def record(self, questions: Sequence[str], gated: bool, max_tokens: int) -> list[DraftedAnswer]:
        """Greedy answers, one after another, in rounds without drafting ahead: an edge's draft is not hidden."""
        plan = replace(self._plan, use_confidence_check=gated)
        return [await self._answer(question, plan, max_tokens) for question in questions]

    async def _answer(self, question: str, plan: policy.Plan, max_tokens: int) -> DraftedAnswer:
        asked = TokenizeRequest(messages=[Message(role="user", content=question)])
        prompt = (await self._edge.post("/tokenize", asked, TokenizeReply)).tokens
        verifier = RecordingVerifier(self._clouds, prompt)
        request = DecodingRequest(prompt, max_tokens, GREEDY, plan)
        pipeline = Pipeline(request, EdgeDrafter(self._edge), verifier, self.estimates)
        async for _ in pipeline.run():
            pass
        return DraftedAnswer(prompt, verifier.completed(pipeline.answer.committed))
