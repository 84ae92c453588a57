"""A cloud with two real engines, for drafts and for a tail; wrong parts and arguments are refused at start."""

import asyncio
import shutil
from pathlib import Path

import aiohttp
import pytest

from cloud.cloud_server import build_app
from cloud.engine.engine import CloudEngine
from cloud.engine.supervisor import SupervisorTiming
from cloud.routes.admission import Admission
from cloud.split.service import SplitService
from common.cloud_client.split_session import SplitCloud
from common.config_cloud import CloudConfig, CloudSplitConfig, EngineConfig
from common.errors import ConfigError
from common.http.client import HTTPClient
from common.http_server import HTTPServer
from common.protocol.split_manifest import read_manifest
from common.types import StateEncoding
from tests.cloud.test_cloud_server import Borrowed
from tests.support.split.split_parts import TAIL_ARGS, WholeModel, answer, cut_demo

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_demo(tmp_path_factory.mktemp("beside"))


async def test_one_cloud_verifies_drafts_and_runs_a_tail(cloud_engine: CloudEngine, split: Path) -> None:
    config = CloudConfig(
        split=CloudSplitConfig(manifest=str(split), engine_args=TAIL_ARGS), engine=EngineConfig(hang_seconds=60)
    )
    server = HTTPServer(build_app(Borrowed(cloud_engine), config), "127.0.0.1", 0)
    await server.start()
    whole = WholeModel()
    ids = whole.tokens("Explain quantum computing")
    try:
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as http,
            HTTPClient(f"http://127.0.0.1:{server.port}") as client,
            SplitCloud(client) as cloud,
            cloud.session(read_manifest(split).fingerprint, StateEncoding.FP32) as session,
        ):
            seen = set()
            while (status := (await http.get("/ready")).status) != 200:
                seen.add(status)
                await asyncio.sleep(0.05)
            assert seen == {503}  # until the tail is up, too
            body = {"new_token_ids": ids, "max_tokens": 3}
            verified, drawn = await asyncio.gather(http.post("/verify", json=body), answer(whole, session, ids, 3))
            assert [token.token_id for token in drawn] == (await verified.json())["token_ids"]
            stats = await (await http.get("/stats")).json()
            assert stats["split"]["computed"] == len(ids) + 2 and stats["model"] == cloud_engine.model
            page = await (await http.get("/metrics")).text()
            assert f"edgecloud_split_positions_computed_total {len(ids) + 2}.0" in page
            assert "edgecloud_split_sessions 1.0" in page
            assert 'vllm:num_requests_running{engine="0",model_name="demo-cloud"}' in page
    finally:
        await server.stop()


def service(manifest: Path, **engine_args: object) -> SplitService:
    config = CloudSplitConfig(manifest=str(manifest), engine_args=engine_args)
    return SplitService(config, SupervisorTiming(), Admission(1, 1).admit)


async def test_parts_that_do_not_fit_are_refused_at_start_with_the_reason(split: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        service(tmp_path / "nowhere.json")
    other = shutil.copytree(split, tmp_path / "other")
    weights = other / "tail" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ConfigError, match="another model or version"):
        service(other)
    (tmp_path / "mixed").mkdir()
    shutil.copy(split / "manifest.json", tmp_path / "mixed")
    with pytest.raises(ConfigError, match="tail"):
        service(tmp_path / "mixed" / "manifest.json")


async def test_arguments_of_the_tail_are_checked_by_their_names(split: Path) -> None:
    with pytest.raises(ConfigError, match=r"cloud\.split\.engine_args\.max_model_length: .*max_model_len"):
        service(split, max_model_length=3)
    with pytest.raises(ConfigError, match=r"cloud\.split\.engine_args\.enable_prompt_embeds: is set by this project"):
        service(split, enable_prompt_embeds=False)
