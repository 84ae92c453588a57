"""The routes of `/v1/files` and `/v1/batches`."""

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, TypeVar

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from common.config_edge import BatchesConfig
from common.errors import RequestError, StorageError
from common.http.messages import BODY_SECONDS, TENANT, read, reply
from edge.api.context import ServerContext
from edge.batches.file_store import FileStore
from edge.batches.jobs import BatchJobs
from edge.batches.objects import DeletedFile, FileList, FileObject, JobList, NewJob
from edge.dialects.response_store import ResponseStore
from edge.privacy.private_requests import HEADER, kept_by_caller

log = logging.getLogger(__name__)
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Those of an OSError that blame the disk, and not, for example, the client's connection."""
JOBS = web.AppKey("JOBS", BatchJobs)
FIELD_BYTES = 1024
"""Of a field of the form beside the file."""
RECHECK_BYTES = 1 << 20
"""After so many bytes of a file the room is looked at anew: other uploads take some of it, too."""
MAX_PAGE = 100
"""Batches in one reply of GET /v1/batches."""


def add_routes(app: web.Application) -> None:
    app.router.add_post("/v1/files", _stored(_upload))
    app.router.add_get("/v1/files", _files)
    app.router.add_get("/v1/files/{id}", _file)
    app.router.add_delete("/v1/files/{id}", _stored(_delete))
    app.router.add_get("/v1/files/{id}/content", _content)
    app.router.add_post("/v1/batches", _stored(_create))
    app.router.add_get("/v1/batches", _jobs)
    app.router.add_get("/v1/batches/{id}", _job)
    app.router.add_post("/v1/batches/{id}/cancel", _stored(_cancel))


def _stored(handler: Handler) -> Handler:
    """A route that writes: where the disk does not take it, the reply says so."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            log.error("batches cannot be kept: %s", error.strerror)
            raise StorageError(f"the edge cannot keep it: {error.strerror}") from error

    return handle


def opened(config: BatchesConfig) -> AbstractContextManager[FileStore | None]:
    """The folder of batches, if the config has one; raises ConfigError for one that cannot be used."""
    if not config.directory:
        return nullcontext()
    return FileStore(Path(config.directory).expanduser(), config.disk_bytes)


@asynccontextmanager
async def running(
    app: web.Application, store: FileStore | None, context: ServerContext, kept: ResponseStore
) -> AsyncIterator[None]:
    """Runs the jobs of `store`, if there is one, while the server runs."""
    if store is None:
        yield
        return
    async with BatchJobs(store, context, kept) as app[JOBS]:
        yield


async def _upload(request: web.Request) -> web.Response:
    if not request.content_type.startswith("multipart/"):
        raise RequestError("send the file as multipart/form-data")
    store, tenant = request.app[JOBS].store, request[TENANT]
    request.app[JOBS].room(tenant)
    id, file = store.begin(tenant)
    try:
        with file:
            filename = await _form(request, file)
        return reply(request, store.keep(tenant, id, filename))
    except (ValueError, HttpProcessingError) as error:  # aiohttp's, of a form that is malformed
        raise RequestError("the form is malformed") from error
    finally:
        store.drop(tenant, id)


async def _form(request: web.Request, file: BinaryIO) -> str:
    """Writes the form's file and returns its name; raises RequestError unless it is a batch's, and fits."""
    purpose, filename = "", None
    form = await request.multipart()
    while (part := await _in_time(form.next())) is not None:
        if not isinstance(part, BodyPartReader):
            raise RequestError("the form is malformed")
        if part.name == "file":
            if filename is not None:
                raise RequestError("is given twice", param="file")
            filename = (part.filename or "file.jsonl")[:255]
            await _write(part, file, request.app[JOBS].store, request[TENANT])
        else:
            value = bytes(await _in_time(part.read_chunk(FIELD_BYTES)))
            if not part.at_eof() and len(await _in_time(part.read_chunk(FIELD_BYTES))):
                raise RequestError("is too long", param=part.name)
            purpose = value.decode(errors="replace") if part.name == "purpose" else purpose
    if purpose != "batch":
        raise RequestError('must be "batch"', param="purpose")
    if filename is None:
        raise RequestError("is missing", param="file")
    return filename


async def _write(part: BodyPartReader, file: BinaryIO, store: FileStore, tenant: str) -> None:
    """Raises RequestError when the tenant has no room for more."""
    room, unchecked = store.room(tenant), 0
    while chunk := await _in_time(part.read_chunk(1 << 16)):
        if unchecked >= RECHECK_BYTES:
            file.flush()
            room, unchecked = store.room(tenant), 0
        if len(chunk) > room:
            raise RequestError("the file does not fit the room that is left for your files", param="file")
        room, unchecked = room - len(chunk), unchecked + len(chunk)
        file.write(chunk)


async def _in_time(waited: Awaitable[T]) -> T:
    """The next part of a body; 408 if it takes longer than BODY_SECONDS."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await waited
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error


async def _files(request: web.Request) -> web.Response:
    return reply(request, FileList(data=await asyncio.to_thread(request.app[JOBS].store.files, request[TENANT])))


async def _file(request: web.Request) -> web.Response:
    return reply(request, _found(request))


async def _delete(request: web.Request) -> web.Response:
    id = _found(request).id
    request.app[JOBS].delete_file(request[TENANT], id)
    return reply(request, DeletedFile(id=id))


async def _content(request: web.Request) -> web.StreamResponse:
    path = request.app[JOBS].store.content(request[TENANT], request.match_info["id"])
    return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})


def _found(request: web.Request) -> FileObject:
    return request.app[JOBS].store.file(request[TENANT], request.match_info["id"])


async def _create(request: web.Request) -> web.Response:
    if kept_by_caller() == HEADER:  # which is not kept with the job
        raise RequestError("a batch is private line by line: by a field of each", param=HEADER)
    wanted = await read(request, NewJob)
    return reply(request, request.app[JOBS].create(request[TENANT], wanted, private=bool(kept_by_caller())))


async def _jobs(request: web.Request) -> web.Response:
    """A page of batches, the newest first: `limit` of them, after the one that `after` names."""
    limit, after = request.query.get("limit", "20"), request.query.get("after")
    if not limit.isdecimal() or len(limit) > len(str(MAX_PAGE)) or not 1 <= int(limit) <= MAX_PAGE:
        raise RequestError(f"must be from 1 to {MAX_PAGE}", param="limit")
    page, more = await asyncio.to_thread(request.app[JOBS].page, request[TENANT], int(limit), after)
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    return reply(request, JobList(data=page, first_id=first, last_id=last, has_more=more))


async def _job(request: web.Request) -> web.Response:
    return reply(request, request.app[JOBS].job(request[TENANT], request.match_info["id"]))


async def _cancel(request: web.Request) -> web.Response:
    return reply(request, request.app[JOBS].cancel(request[TENANT], request.match_info["id"]))
