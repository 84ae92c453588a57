"""What the edge's API needs of the model that drafts and answers at the edge, whether or not there is one."""

from abc import abstractmethod
from collections import abc
from contextlib import AbstractAsyncContextManager

from common.decoding.interfaces import LeasedDrafter
from common.grammar.spec import GrammarSpec
from common.hardware import Setting
from edge.engine.sequence import EdgeSequence
from edge.engine.text_model import TextModel


class EdgeModel(TextModel):
    """Base of the engine and of what stands in for it at an edge without a model."""

    computes = True
    """Whether the edge can compute tokens; if not, drafts are only looked up."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether it can be asked."""

    @abstractmethod
    async def until_idle(self) -> None:
        """Returns as soon as a sequence is free, for which nobody waits; lends none."""

    @abstractmethod
    def stats(self, tenant: str | None = None) -> dict[str, int]:
        """Counters since the start, of one tenant or (None) of all."""

    @abstractmethod
    def settings(self) -> dict[str, Setting]:
        """The settings that fit the machine, by name, and why."""

    @abstractmethod
    async def check_grammar(self, spec: GrammarSpec) -> None:
        """Raises GrammarError for a grammar that cannot be held; what only the cloud can check, the cloud refuses."""

    @abstractmethod
    def sequence(
        self, token_ids: abc.Sequence[int] = (), reuse: bool = True, admitted: bool = False
    ) -> AbstractAsyncContextManager[EdgeSequence]:
        """Lends a sequence to a request; raises RequestError where the edge has no model."""

    @abstractmethod
    def drafter(self, reuse: bool, admitted: bool, top_logprobs: int) -> AbstractAsyncContextManager[LeasedDrafter]:
        """The drafter of one answer, which holds nothing of the model before its first draft."""
