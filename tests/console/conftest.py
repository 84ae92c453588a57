"""A headless Chromium, and a page of the console on an edge whose answers the test writes."""

import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from tests.console.scripted_edge import ScriptedEdge, scripted_edge

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/console/" in item.path.as_posix():
            item.add_marker(pytest.mark.console)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: `make chromium` installs Debian's, or name one in the variable CHROMIUM")
    async_api = pytest.importorskip("playwright.async_api", reason="no Playwright here: run `make test-console`")
    async with async_api.async_playwright() as playwright, launched(playwright) as made:
        yield made


@asynccontextmanager
async def launched(playwright: Any) -> AsyncIterator[Any]:
    """A browser; its sandbox needs rights that root in a container does not have."""
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    made = await playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def visit(browser: Any, url: str, flawless: bool = True, **options: Any) -> AsyncIterator[Any]:
    """A page of its own on this address; `options` are of the browser's context. A `flawless` one reports no fault."""
    faults: list[str] = []
    context = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
    page = await context.new_page()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if is_fault(message) else None)
    await page.goto(url)
    try:
        yield page
    finally:
        await context.close()
    assert not (flawless and faults), faults


def is_fault(message: Any) -> bool:
    """What the page's own code or its policy complains of; a refused or broken request is the test's doing."""
    return message.type == "error" and "Failed to load resource" not in message.text


@pytest_asyncio.fixture(loop_scope="session")
async def edge() -> AsyncIterator[ScriptedEdge]:
    async with scripted_edge() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Any, edge: ScriptedEdge) -> AsyncIterator[Any]:
    async with visit(browser, edge.url) as made:
        yield made


Ask = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture
def ask(page: Any) -> Ask:
    """Asks a question and, unless told otherwise, waits for the end of the answer."""

    async def asked(question: str = "Why?", wait: bool = True) -> None:
        await page.fill("#prompt", question)
        await page.keyboard.press("Enter")
        if wait:
            await page.wait_for_selector(".turn:last-child .reply:not([data-state=running])")

    return asked
