"""Serves the console's page and its files from memory, with headers that keep all other code out of the page."""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ETag, hdrs, web

from common.errors import NotFoundError

FILES = Path(__file__).parent / "static"
PAGE, FILE = "/", "/console/{name:.+}"
ROUTES = (PAGE, "/console/{name}")
"""As `route_of` names them; the page itself needs no API key, what it asks the server for does."""
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""The media type of each kind of file that is served; files of any other kind are not."""
POLICY = "; ".join(
    [
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        *(f"{what} 'none'" for what in ("base-uri", "form-action", "frame-ancestors")),
        "require-trusted-types-for 'script'",  # no string becomes HTML or code
        "trusted-types 'none'",
    ]
)
PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class StaticFile:
    """One file's bytes as they are and compressed, its media type, and a tag that changes with its content."""

    data: bytes
    packed: bytes
    content_type: str
    tag: str


def add_console(app: web.Application) -> None:
    """Adds the routes of the console; its files are read once, here."""
    files = _read_files(FILES)

    async def page(request: web.Request) -> web.Response:
        response = _serve(request, files["index.html"])
        response.headers.update(PAGE_HEADERS)
        return response

    async def file(request: web.Request) -> web.Response:
        found = files.get(request.match_info["name"])
        if found is None or found.content_type == TYPES[".html"]:  # the page has one address, which sends its headers
            raise NotFoundError("the console has no such file")
        return _serve(request, found)

    app.router.add_get(PAGE, page)
    app.router.add_get(FILE, file)


def _read_files(folder: Path) -> dict[str, StaticFile]:
    """The files below `folder` by their paths."""
    paths = [path for path in folder.rglob("*") if path.suffix in TYPES]
    return {path.relative_to(folder).as_posix(): _read_file(path) for path in paths}


def _read_file(path: Path) -> StaticFile:
    data = path.read_bytes()
    return StaticFile(data, gzip.compress(data, mtime=0), TYPES[path.suffix], hashlib.sha256(data).hexdigest()[:32])


def _serve(request: web.Request, file: StaticFile) -> web.Response:
    """The file, or 304 for a browser that has it; browsers ask each time, so that they never mix two versions."""
    headers: dict[str, str] = {
        hdrs.CACHE_CONTROL: "no-cache",
        hdrs.VARY: hdrs.ACCEPT_ENCODING,
        hdrs.ETAG: f'"{file.tag}"',
    }
    if ETag(file.tag) in (request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    headers["X-Content-Type-Options"] = "nosniff"
    body = file.data
    if "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
        body, headers[hdrs.CONTENT_ENCODING] = file.packed, "gzip"
    return web.Response(body=body, headers=headers, content_type=file.content_type, charset="utf-8")
