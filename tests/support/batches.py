"""Inputs and targets of batches: a target that answers in this process as it is told."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Raw

from common.batch.lines import BatchLine, BatchReply
from common.batch.runner import Attempt

ROUTE = "/v1/completions"


def row(custom_id: str, prompt: str = "What is AI?", url: str = ROUTE, **fields: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 2, "temperature": 0} | fields
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows))
    return path


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def attempt(status: int = 200, body: bytes = b"{}", retry_after: float = 0.0) -> Attempt:
    return Attempt(BatchReply(status, "r", Raw(body)), retry_after)


class ScriptedTarget:
    """Answers each line with what `script` returns, or raises it; `asked` has the custom_id of each time."""

    def __init__(self, script: Callable[[BatchLine], Attempt | Exception]) -> None:
        self._script = script
        self.asked: list[str] = []
        self.in_flight = self.most = self.waits = 0

    async def ask(self, line: BatchLine) -> Attempt:
        self.asked.append(line.custom_id)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            for _ in range(1 + len(self.asked) % 5):  # so that lines end in another order than they began
                await asyncio.sleep(0)
            came = self._script(line)
        finally:
            self.in_flight -= 1
        if isinstance(came, Exception):
            raise came
        return came

    async def wait_until_back(self) -> None:
        self.waits += 1
