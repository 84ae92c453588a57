"""Draws the screenshots of docs/images from the real demo pair: python -m tests.console.screenshots

Needs a Chromium, and pngquant, which makes the pictures small; `make screenshots` installs both (Debian, as root).
"""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from playwright.async_api import async_playwright

from cli.args import run_program
from cli.demo import free_ports
from cli.server_process import ServerProcess
from common.errors import StartError
from common.files.installation import PROJECT
from tests.console.conftest import CHROMIUM, launched

IMAGES = PROJECT / "docs" / "images"
LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 800}},
    "dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True},
}
QUESTIONS = ["What is an operating system?", "What is a neural network?"]
TRAFFIC = ["What is recursion?", "What is the capital of Japan?", "What is encryption?", "What is a compiler?"]
PATIENCE = 300_000
"""Milliseconds that anything may take."""
Shoot = Callable[[str], Awaitable[None]]


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[str, ServerProcess]]:
    """The URL of a running edge, and the cloud, which can be stopped."""
    edge_port, cloud_port = free_ports(2)
    edge_url, cloud_url = f"http://127.0.0.1:{edge_port}", f"http://127.0.0.1:{cloud_port}"
    point = ["--set", f"communication.cloud_endpoint={cloud_url}"]
    logs = PROJECT / "logs"
    cloud = ServerProcess("cloud", "start_cloud.py", cloud_url, ["--port", str(cloud_port)], logs / "shots-cloud.log")
    edge = ServerProcess("edge", "start_edge.py", edge_url, ["--port", str(edge_port), *point], logs / "shots-edge.log")
    try:
        for server in (cloud, edge):
            await server.start()
            await server.wait_ready(print)
        yield edge_url, cloud
    finally:
        for server in (edge, cloud):
            await server.stop()


async def ask(page: Any, question: str) -> None:
    await page.fill("#prompt", question)
    await page.click("#send")
    await page.wait_for_selector(".turn:last-child .reply:not([data-state=running])")


async def chat(page: Any, shoot: Shoot) -> None:
    await page.evaluate("document.querySelector('#setting-temperature').value = 0")
    await page.dispatch_event("#setting-temperature", "input")
    for question in QUESTIONS:
        await ask(page, question)
    await page.locator(".turn:last-child .token.accepted").nth(2).hover()
    await shoot("chat")


async def compare(page: Any, shoot: Shoot) -> None:
    await page.evaluate("location.hash = 'compare'")
    await page.fill("#compare-prompt", "What is artificial intelligence?")
    await page.click("#compare-send")
    await page.wait_for_selector("#compare-send:visible")
    await shoot("compare")


async def live(page: Any, shoot: Shoot) -> None:
    other = await page.context.new_page()
    await other.goto(page.url.partition("#")[0])
    await page.evaluate("location.hash = 'live'")
    await page.bring_to_front()
    for question in TRAFFIC * 4:
        await ask(other, question)
        await asyncio.sleep(2)
    await other.close()
    await asyncio.sleep(4)
    await shoot("live")


async def lost(page: Any, shoot: Shoot, cloud: ServerProcess) -> None:
    await ask(page, QUESTIONS[0])
    await cloud.stop()
    await ask(page, QUESTIONS[1])
    await page.mouse.move(0, 0)
    await shoot("cloud-lost")


async def main() -> None:
    if CHROMIUM is None:
        raise StartError("no Chromium here: `make chromium` installs Debian's, or name one in the variable CHROMIUM")
    IMAGES.mkdir(exist_ok=True)
    async with async_playwright() as playwright, launched(playwright) as browser, pair() as (url, cloud):
        for name, options in LOOKS.items():
            context = await browser.new_context(**options)
            context.set_default_timeout(PATIENCE)
            page = await context.new_page()
            await page.goto(url)

            async def shoot(view: str, page: Any = page, name: str = name) -> None:
                await save(page, f"console-{view}-{name}")

            for view in (chat, compare, live):
                await view(page, shoot)
            await context.close()
        page = await browser.new_page(**LOOKS["desktop"])
        page.set_default_timeout(PATIENCE)
        await page.goto(url)
        await lost(page, lambda view: save(page, f"console-{view}"), cloud)


async def save(page: Any, name: str) -> None:
    path = IMAGES / f"{name}.png"
    await page.screenshot(path=path)
    await asyncio.to_thread(subprocess.run, ["pngquant", "--force", "--strip", "--ext", ".png", str(path)], check=True)
    print(f"{path.relative_to(PROJECT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    raise SystemExit(run_program(main()))
