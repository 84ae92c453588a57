"""What is kept of one API key's prompts is invisible to the others: live KV, snapshots, figures, the cloud's cache."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.fake_cloud import FakeCloud, serving
from common.config_edge import EdgeModelConfig
from common.config_values import Secret
from common.http.client import HTTPClient
from common.http.request_context import current_tenant
from edge.engine.engine import EdgeEngine
from edge.kv_cache import MIN_TOKENS, LlamaCppKVCache
from tests.edge.test_kv_cache import FakeLlama, prompt
from tests.support.edge_in_process import edge_of

KEYS = "edge.server.api_keys=[key-of-ann, key-of-bob]"
ASK: dict[str, Any] = {"prompt": "word " * 60, "max_tokens": 2, "temperature": 0, "mode": "edge_only"}


# The store


def displace(cache: LlamaCppKVCache, llama: FakeLlama) -> None:
    """Another tenant's short prompts take every sequence, so that nothing of the prompts before is live."""
    for sequence in range(len(llama.held)):
        llama.serve(cache, sequence, prompt(99, MIN_TOKENS - 1), "eve")


@pytest.mark.parametrize("tier", ["live", "ram", "disk"])
def test_a_tenant_finds_its_own_prompts_and_nobody_elses(tmp_path: Path, tier: str) -> None:
    llama, asked, halves = FakeLlama(), prompt(1), dict[str, int]()
    llama.unified = False  # else live sequences move to RAM
    ram = 0 if tier == "disk" else 1 << 20
    cache = LlamaCppKVCache(directory=tmp_path if tier == "disk" else None, ram_bytes=ram)
    llama.serve(cache, 0, asked, "ann")
    if tier != "live":
        displace(cache, llama)
    if tier == "disk":
        cache.close()
        cache = LlamaCppKVCache(directory=tmp_path, ram_bytes=ram)
    for tenant in ("bob", "", "ann"):
        halves[tenant] = llama.serve(cache, 1, asked[:50], tenant)
    assert halves == {"ann": 50, "bob": 0, "": 0}
    assert cache.stats("ann")[f"{tier}_hits"] == 1
    cache.close()


def test_a_longer_prompt_of_another_tenant_does_not_hide_ones_own() -> None:
    cache, llama = LlamaCppKVCache(), FakeLlama()
    llama.serve(cache, 0, prompt(1)[:40], "ann")
    llama.serve(cache, 1, prompt(1), "bob")
    assert llama.serve(cache, 2, prompt(1), "ann") == 40


def test_a_tenants_figures_do_not_move_with_what_others_ask() -> None:
    cache, llama = LlamaCppKVCache(), FakeLlama()
    llama.serve(cache, 0, prompt(1), "ann")
    before = cache.stats("ann")
    for _ in range(2):
        llama.serve(cache, 1, prompt(2), "bob")
        displace(cache, llama)
    assert cache.stats("ann") == before | {
        "live_tokens": 0,
        "ram_entries": 1,
        "ram_bytes": cache.stats("ann")["ram_bytes"],
    }
    assert cache.stats("bob")["ram_hits"] == 1
    assert cache.stats()["hits"] == sum(cache.stats(tenant)["hits"] for tenant in ("ann", "bob", "eve"))


def test_a_snapshot_under_another_tenants_name_is_not_loaded(tmp_path: Path) -> None:
    cache, llama = LlamaCppKVCache(directory=tmp_path), FakeLlama()
    llama.serve(cache, 0, prompt(1), "ann")
    displace(cache, llama)
    assert cache.export("taken", prompt(1), tenant="ann") == 100
    cache.close()
    (file,) = tmp_path.glob("*/ann-*.kv")
    file.rename(file.with_name(file.name.replace("ann", "bob")))
    cache = LlamaCppKVCache(directory=tmp_path)
    assert llama.serve(cache, 1, prompt(1), "bob") == 0 and llama.loaded == []
    assert cache.stats("bob")["dropped"] == 1
    with pytest.raises(Exception, match="another key"):
        cache.import_("taken", tenant="bob")
    assert cache.import_("taken", tenant="ann") == 100
    cache.close()


# The engine without a store


async def test_live_sequences_are_shared_within_a_tenant_only() -> None:
    ids, reused = list(range(300, 360)), []
    async with EdgeEngine(EdgeModelConfig(path="models/demo-edge.gguf", threads=1)) as engine:
        for tenant in ("ann", "bob", "ann"):
            current_tenant.set(tenant)
            before = engine.stats(tenant)["reused_prompt_tokens"]
            async with engine.sequence(ids) as sequence:
                await sequence.draft(ids, 1)
            reused.append(engine.stats(tenant)["reused_prompt_tokens"] - before)
        current_tenant.set("")
    assert reused == [0, 0, len(ids) - 1]


# Over HTTP


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cloud() -> AsyncIterator[FakeCloud]:
    async with serving() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def clients(cloud: FakeCloud) -> AsyncIterator[list[HTTPClient]]:
    async with (
        edge_of(cloud.url, KEYS) as keyless,
        HTTPClient(keyless.base_url, api_key=Secret("key-of-ann")) as ann,
        HTTPClient(keyless.base_url, api_key=Secret("key-of-bob")) as bob,
    ):
        yield [ann, bob]


async def figures(client: HTTPClient) -> dict[str, Any]:
    stats: dict[str, Any] = await client.get("/stats", dict)
    assert stats.keys() == {"engine", "confidence", "router", "costs", "quotas"}, (
        "the figures of all would show what the others ask"
    )
    of_keys = [*stats["costs"].values(), stats["quotas"]]
    assert all(len(one) == 1 for one in of_keys), "each key sees its own costs and limits"
    return stats["engine"] | stats["costs"]


async def test_a_key_cannot_tell_what_another_key_has_asked(clients: list[HTTPClient]) -> None:
    ann, bob = clients
    unused = await figures(bob)
    for _ in range(2):
        await ann.post("/v1/completions", ASK, dict)
    assert (await figures(ann))["reused_prompt_tokens"] > 0
    assert await figures(bob) == unused
    await bob.post("/v1/completions", ASK, dict)
    await bob.post("/draft", {"prompt": ASK["prompt"] + "more", "max_tokens": 1}, dict)
    reused = (await figures(bob))["reused_prompt_tokens"]
    assert 0 < reused < (await figures(bob))["prompt_tokens"] / 2, "only its second request found the first one's KV"


@pytest.mark.parametrize("fields", [{"way": "rounds"}, {"mode": "cloud_only"}])
async def test_the_cloud_is_told_which_tenant_asks(
    clients: list[HTTPClient], cloud: FakeCloud, fields: dict[str, Any]
) -> None:
    rounds, starts, told = len(cloud.asked), len(cloud.starts), []
    ask = ASK | {"mode": "collaborative", "use_confidence_check": False, "max_tokens": 4} | fields
    for client in clients:
        await client.post("/v1/completions", ask, dict)
        names = {one.tenant for one in [*cloud.asked[rounds:], *cloud.starts[starts:]]}
        rounds, starts = len(cloud.asked), len(cloud.starts)
        told.append(names)
    assert [len(names) for names in told] == [1, 1]
    assert "" not in told[0] | told[1] and told[0] != told[1]


@pytest.mark.parametrize("fields", [{"way": "rounds"}, {"mode": "cloud_only"}])
async def test_the_cloud_is_told_of_batches_and_of_no_other_priority(
    clients: list[HTTPClient], cloud: FakeCloud, fields: dict[str, Any]
) -> None:
    told = []
    for priority in ({"priority": 5}, {"service_tier": "flex"}, {"priority": -5}, {}):
        rounds, starts = len(cloud.asked), len(cloud.starts)
        ask = ASK | {"mode": "collaborative", "use_confidence_check": False, "max_tokens": 4} | fields | priority
        await clients[0].post("/v1/completions", ask, dict)
        told.append({one.priority for one in [*cloud.asked[rounds:], *cloud.starts[starts:]]})
    assert told == [{1}, {1}, {0}, {0}]
