"""The console's files: how they are served, what keeps other code out, and that the libraries are the real ones."""

import gzip
import hashlib
import json
import re
from pathlib import Path

import aiohttp
import pytest

from common import config
from common.config_values import Secret, ServerConfig
from common.http_server import HTTPServer, make_app
from edge.console import pages
from edge.edge_server import build_app

LIBRARIES = json.loads((pages.FILES / "vendor" / "libraries.json").read_text())
OWN = [path for path in pages.FILES.rglob("*") if path.is_file() and path.parent.name != "vendor"]
USAGE = Path(__file__).parents[3] / "docs" / "USAGE.md"


async def served(path: str, **headers: str) -> tuple[int, aiohttp.typedefs.CIMultiDictProxy[str], bytes]:
    app = make_app(ServerConfig(host="127.0.0.1", api_keys=[Secret("key")]), public=pages.ROUTES)
    pages.add_console(app)
    server = HTTPServer(app, "127.0.0.1", 0, drain_seconds=0)
    await server.start()
    url = f"http://127.0.0.1:{server.port}"
    try:
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.get(url + path, headers={"Accept-Encoding": "identity"} | headers) as reply,
        ):
            return reply.status, reply.headers, await reply.read()
    finally:
        await server.stop()


async def test_the_page_needs_no_key_and_what_it_asks_for_does() -> None:
    assert (await served("/"))[0] == (await served("/console/js/main.js"))[0] == 200
    assert (await served("/metrics"))[0] == (await served("/console"))[0] == (await served("/stats"))[0] == 401


async def test_a_browser_that_has_a_file_gets_it_only_when_it_changed() -> None:
    _, headers, body = await served("/console/js/main.js")
    status, again, empty = await served("/console/js/main.js", **{"If-None-Match": headers["ETag"]})
    assert (status, empty) == (304, b"") and again["ETag"] == headers["ETag"] and body
    assert (await served("/console/js/main.js", **{"If-None-Match": '"other"'}))[0] == 200


async def test_files_travel_compressed() -> None:
    _, headers, packed = await served("/", **{"Accept-Encoding": "gzip, br"})
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == (await served("/"))[2]


async def test_only_files_of_the_console_are_served() -> None:
    for path in (
        "/console/index.html",
        "/console/nothing.js",
        "/console/../pages.py",
        "/console/%2e%2e/pages.py",
        "/console/vendor/libraries.json",
    ):
        assert (await served(path))[0] in (401, 404)


async def test_the_page_runs_no_code_but_its_own() -> None:
    _, headers, body = await served("/")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=", body.decode())
    assert "Content-Security-Policy" not in (await served("/console/js/main.js"))[1]


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_is_loaded_from_elsewhere_and_each_file_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert not re.findall(r"(?:src|href|url\(|from|import)[=( ]*[\"']?(?:https?:)?//", text)
    if path.suffix in (".js", ".css"):
        assert re.match(r"/\*\*? .+\. \*/\n\n|/\*\*? .+\. \*/\n", text)
        assert len(text.splitlines()) < 500


def test_each_library_is_the_file_that_its_package_holds_and_is_named_in_the_docs() -> None:
    vendored = {path.name for path in (pages.FILES / "vendor").iterdir()} - {"libraries.json"}
    assert vendored == {name for library in LIBRARIES for name in [*library["files"], library["licence_file"]]}
    for library in LIBRARIES:
        for name, digest in library["files"].items():
            assert hashlib.sha256((pages.FILES / "vendor" / name).read_bytes()).hexdigest() == digest
        assert library["licence"] == "MIT" and f"{library['name']} {library['version']}" in USAGE.read_text()


def test_screenshots_are_small_and_shown_in_the_docs() -> None:
    pictures = sorted((USAGE.parent / "images").glob("console-*.png"))
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < 150_000 and f"images/{picture.name}" in USAGE.read_text()


def test_a_key_of_the_config_switches_the_console_off() -> None:
    routes = {}
    for on in (True, False):
        app = build_app(config.load(flags=[f"edge.console={on}"], environment={}))
        routes[on] = {resource.canonical for resource in app.router.resources()} & set(pages.ROUTES)
    assert routes == {True: set(pages.ROUTES), False: set()}
