"""The lines of a private key's batch stay at the edge, although nobody's request is running then."""

from pathlib import Path

import openai
import pytest

from benchmarks.fake_cloud import FakeCloud
from tests.batch.test_batch_routes import ended, results, started
from tests.support.batches import row
from tests.support.edge_in_process import edge_of


async def test_a_batch_is_as_private_as_its_key(fake: FakeCloud, tmp_path: Path) -> None:
    keys = "edge.server.api_keys=[ann]", "edge.private_keys=[bob]"
    lossless = "inference.features.use_confidence_check=false"
    async with edge_of(fake.url, f"edge.batches.directory={tmp_path}", lossless, *keys) as edge:
        for key in ("bob", "ann", "bob"):
            before = len(fake.asked) + len(fake.starts)
            async with openai.AsyncOpenAI(base_url=f"{edge.base_url}/v1", api_key=key, max_retries=0) as client:
                job = await ended(client, await started(client, [row("a", max_tokens=4)]))
                (answer,) = await results(client, job.output_file_id)
                went_up = len(fake.asked) + len(fake.starts) > before
                mode = answer["response"]["body"]["collaboration"]["mode"]
                assert (mode, went_up) == (("edge_only", False) if key == "bob" else ("collaborative", True))


async def test_a_header_that_would_be_forgotten_is_refused(fake: FakeCloud, tmp_path: Path) -> None:
    async with (
        edge_of(fake.url, f"edge.batches.directory={tmp_path}") as edge,
        openai.AsyncOpenAI(
            base_url=f"{edge.base_url}/v1", api_key="any", max_retries=0, default_headers={"X-Private": "true"}
        ) as client,
    ):
        with pytest.raises(openai.BadRequestError, match="line by line"):
            await started(client, [row("a")])
