"""Runs the passes of a network sweep: sets the network, warms the caches, asks the questions in every answer mode."""

import time
from collections.abc import Callable, Sequence

from common.cloud_client.openai_client import OpenAIClient
from common.config_schema import HttpClientConfig
from common.http.client import HTTPClient
from experiments.counters.cloud import counted
from experiments.harness.load import TimedAnswer, load
from experiments.harness.servers import PEERS, AskedServer, Site
from experiments.network.answer_modes import ANSWER_MODES, AnswerMode
from experiments.network.passes import Block, NetworkCell, Pass, PassResult, SweepPlan
from experiments.questions.workload import Question

SETTLE_QUESTIONS = 4
"""Questions that each mode answers, uncounted, after a change of the network."""
UNFILTERED = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""Peers have filters of their own where a request says nothing."""
CLIENT = HttpClientConfig(timeout=600.0, max_retries=0, connection_pool_size=1000)


class NetworkSweep:
    """Runs passes, one after another, on one site. Owns the connections of the clients."""

    def __init__(self, plan: SweepPlan, asked: Sequence[Question], servers: Site) -> None:
        self._plan = plan
        self._prompts = [question.prompt for question in asked]
        self._site = servers
        self._clients = {
            server: (OpenAIClient if server in PEERS else HTTPClient)(url, CLIENT)
            for server, url in servers.urls.items()
        }
        self._clouds = {cloud.url: OpenAIClient(cloud.url, CLIENT) for cloud in servers.clouds}
        self._network: tuple[float, float] | None = None
        self._sampling = {"temperature": plan.temperature} | (UNFILTERED if plan.temperature else {})

    async def aclose(self) -> None:
        for client in (*self._clouds.values(), *self._clients.values()):
            await client.close()

    async def run_pass(self, what: Pass, describe: Callable[[str], None]) -> PassResult:
        """Asks the questions of a pass in every mode; `describe` receives each step in words."""
        prompts = self._prompts[what.first : what.last]
        await self._change_network(what.cell, describe)
        describe(f"{what.cell.title}: warming caches")
        await self._warm(prompts)
        blocks = {}
        for mode in what.order(self._plan.modes, self._plan.seed):
            describe(f"{what.cell.title}: {mode.title}")
            blocks[mode.name] = await self._block(mode, prompts, what.cell.clients)
        return PassResult(what, [blocks[name] for name in self._plan.ways])

    async def _change_network(self, cell: NetworkCell, describe: Callable[[str], None]) -> None:
        wanted = cell.round_trip, cell.uplink
        if wanted == self._network:
            return
        for cloud in self._site.clouds:
            cloud.network.delay = cell.round_trip / 2000
            cloud.network.bandwidth = cell.uplink * 1e6 / 8
        for mode in self._plan.modes:
            describe(f"{cell.title}: settling, {mode.title}")
            await self._ask(mode, self._prompts[:SETTLE_QUESTIONS], SETTLE_QUESTIONS)
        self._network = wanted

    async def _warm(self, prompts: Sequence[str]) -> None:
        for cloud in self._clouds.values():
            await load(cloud, prompts, SETTLE_QUESTIONS, {}, max_tokens=1)
        for server, client in self._clients.items():
            if server in (AskedServer.EDGE, AskedServer.PLAIN_EDGE):
                await load(client, prompts, SETTLE_QUESTIONS, ANSWER_MODES["edge"].fields, max_tokens=1)

    async def _block(self, mode: AnswerMode, prompts: Sequence[str], clients: int) -> Block:
        url, network = self._site.behind(mode.server)
        cloud = self._clouds[url]
        before, up, down = await counted(cloud), network.up.bytes, network.down.bytes
        began = time.perf_counter()
        answers = await self._ask(mode, prompts, clients)
        seconds = time.perf_counter() - began
        return Block(
            way=mode.name,
            seconds=seconds,
            answers=answers,
            counts=await counted(cloud) - before,
            bytes_up=network.up.bytes - up,
            bytes_down=network.down.bytes - down,
        )

    async def _ask(self, mode: AnswerMode, prompts: Sequence[str], clients: int) -> list[TimedAnswer]:
        fields = {**mode.fields, **self._sampling}
        return await load(self._clients[mode.server], prompts, clients, fields, self._plan.max_tokens)
