"""`/v1/files`: what batches read and write. Kept under `--data-dir`; one server, one circle of trust."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from octavo_server.api.endpoint import Answer, Endpoint, json_answer
from octavo_server.api.error_response import ApiError
from octavo_server.api.generation import ignored_headers
from octavo_server.api.json_schema import integer, obj, one_of, optional, record, text
from octavo_server.api.listing import page, page_parameters, page_schema
from octavo_server.api.state import STATE
from octavo_server.api.upload_body import read_chunks, read_parts, read_text
from octavo_server.batch.disk import disk_errors
from octavo_server.errors import InvalidRequestError, NotStoredError

if TYPE_CHECKING:
    import aiohttp

    from octavo_server.api.batch_service import BatchService
    from octavo_server.api.endpoint import Schema
    from octavo_server.batch.storage import Upload

MAX_PAGE = 10_000
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 2_592_000
"""OpenAI's range of `expires_after`."""
MAX_FILENAME_CHARS = 255
WRITE_BYTES = 2**20
READ_BYTES = 2**18


def service_of(http: web.Request, *, accepts: bool = False) -> BatchService:
    """Files and batches of this server; `accepts`: for something new.

    Raises:
        ApiError: 404 where it keeps none, 503 where it takes nothing new.
    """
    state = http.app[STATE]
    if state.batches is None:
        message = "this server keeps no files and batches; start it with --data-dir DIR"
        raise ApiError(404, message, code="not_enabled")
    if accepts and state.draining:
        raise ApiError(503, "the server is shutting down; ask another one", code="draining", close=True)
    return state.batches


async def upload_file(http: web.Request) -> web.Response:
    """Takes one file; its parts may come in any order."""
    store = service_of(http, accepts=True).store
    with await asyncio.to_thread(store.upload, f"file-{http.app[STATE].new_id()}") as upload:
        form = _Form()
        async for part in read_parts(http):
            await form.take(part, upload)
        form.check(upload.num_bytes)
        record_ = await asyncio.to_thread(
            upload.commit, purpose=form.purpose, filename=form.filename, max_age_s=form.max_age_s
        )
    return web.json_response(record_.as_json(), headers=ignored_headers(sorted(form.ignored)))


class _Form:
    """The fields of an upload as they come."""

    def __init__(self) -> None:
        self.purpose = ""
        self.filename = ""
        self.has_file = False
        self.ignored: list[str] = []
        self._anchor: str | None = None
        self._seconds: str | None = None

    async def take(self, part: aiohttp.BodyPartReader, upload: Upload) -> None:
        """Reads one part."""
        if part.name == "file":
            if self.has_file:
                raise InvalidRequestError("file is there twice; send one file a request", param="file")
            self.has_file = True
            self.filename = _filename(part.filename)
            await _write(part, upload)
        elif part.name == "purpose":
            self.purpose = await read_text(part)
        elif part.name == "expires_after[anchor]":
            self._anchor = await read_text(part)
        elif part.name == "expires_after[seconds]":
            self._seconds = await read_text(part)
        else:
            self.ignored.append((part.name or "")[:100])
            await read_text(part)

    @property
    def max_age_s(self) -> int:
        return MAX_EXPIRY_S if self._seconds is None else int(self._seconds)

    def check(self, num_bytes: int) -> None:
        """Raises InvalidRequestError naming the field."""
        if not self.has_file:
            raise InvalidRequestError("file is missing", param="file")
        if self.purpose != "batch":
            message = f"purpose must be batch, the one that is served here, got {self.purpose[:40]!r}"
            raise InvalidRequestError(message, param="purpose")
        if not num_bytes:
            raise InvalidRequestError("the file is empty", param="file")
        if (self._anchor, self._seconds) != (None, None):
            _check_expiry(self._anchor, self._seconds)


def _check_expiry(anchor: str | None, seconds: str | None) -> None:
    if anchor != "created_at":
        raise InvalidRequestError(
            f"expires_after[anchor] must be created_at, got {(anchor or '')[:40]!r}", param="expires_after[anchor]"
        )
    is_number = seconds is not None and seconds.isascii() and seconds.isdigit() and len(seconds) < 10
    if seconds is None or not is_number or not MIN_EXPIRY_S <= int(seconds) <= MAX_EXPIRY_S:
        raise InvalidRequestError(
            f"expires_after[seconds] must be a whole number from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}, "
            f"got {(seconds or '')[:40]!r}",
            param="expires_after[seconds]",
        )


def _filename(given: str | None) -> str:
    """For show alone: nothing on the disk is called so."""
    name = (given or "upload.jsonl").encode("utf-8", "replace").decode()
    return name[-MAX_FILENAME_CHARS:]


async def _write(part: aiohttp.BodyPartReader, upload: Upload) -> None:
    pending = bytearray()
    async for chunk in read_chunks(part):
        pending += chunk
        if len(pending) >= WRITE_BYTES:
            await asyncio.to_thread(upload.write, bytes(pending))
            pending.clear()
    await asyncio.to_thread(upload.write, bytes(pending))


async def list_files(http: web.Request) -> web.Response:
    """Newest first unless asked otherwise."""
    files = service_of(http).store.files()
    purpose = http.query.get("purpose")
    shown = [item.as_json() for item in files if purpose in (None, "", item.purpose)]
    return web.json_response(page(http, shown, max_limit=MAX_PAGE, limit=MAX_PAGE))


async def get_file(http: web.Request) -> web.Response:
    """One file's record."""
    return web.json_response(service_of(http).store.file(http.match_info["id"]).as_json())


async def delete_file(http: web.Request) -> web.Response:
    """Removes a file that no running batch reads."""
    file_id = http.match_info["id"]
    await asyncio.to_thread(service_of(http).store.delete_file, file_id)
    return web.json_response({"id": file_id, "object": "file", "deleted": True})


async def get_content(http: web.Request) -> web.StreamResponse:
    """Its bytes."""
    store = service_of(http).store
    found = store.file(http.match_info["id"])
    try:
        with disk_errors():
            file = store.path(found).open("rb")
    except FileNotFoundError as error:
        raise NotStoredError(f"there is no file {found.file_id!r} any more") from error
    with file:
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "application/octet-stream"})
        response.content_length = found.num_bytes
        await response.prepare(http)
        if http.method != hdrs.METH_HEAD:
            while data := await asyncio.to_thread(file.read, READ_BYTES):
                await response.write(data)
        await response.write_eof()
    return response


_FILE = record(
    {
        "id": text(),
        "object": one_of("file"),
        "bytes": integer(0),
        "created_at": integer(0),
        "expires_at": integer(0),
        "filename": text(),
        "purpose": text(),
        "status": text(),
        "status_details": optional(text()),
    }
)
_UPLOAD = obj(
    {
        "purpose": one_of("batch"),
        "file": text(format="binary"),
        "expires_after[anchor]": one_of("created_at"),
        "expires_after[seconds]": integer(MIN_EXPIRY_S, MAX_EXPIRY_S),
    },
    required=("purpose", "file"),
)

_ID: Schema = {"name": "id", "in": "path", "required": True, "schema": text(pattern="^file-[0-9a-z-]{1,100}$")}

ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/files",
        handler=upload_file,
        tag="batch",
        summary="Stores a file for a batch",
        body_content={"multipart/form-data": _UPLOAD},
        answers=json_answer("The file.", _FILE),
        errors=(404, 503, 507),
        needs_engine=False,
    ),
    Endpoint(
        method="GET",
        path="/v1/files",
        handler=list_files,
        tag="batch",
        summary="The files that are stored",
        answers=json_answer("A page of them.", page_schema(_FILE)),
        parameters=(*page_parameters(MAX_PAGE), {"name": "purpose", "in": "query", "schema": text()}),
        errors=(404,),
        needs_engine=False,
    ),
    Endpoint(
        method="GET",
        path="/v1/files/{id}",
        handler=get_file,
        tag="batch",
        parameters=(_ID,),
        summary="One file's record",
        answers=json_answer("The file.", _FILE),
        errors=(404,),
        needs_engine=False,
    ),
    Endpoint(
        method="DELETE",
        path="/v1/files/{id}",
        handler=delete_file,
        tag="batch",
        parameters=(_ID,),
        summary="Removes a file",
        answers=json_answer("It is gone.", record({"id": text(), "object": one_of("file"), "deleted": one_of(True)})),
        errors=(404, 409, 507),
        needs_engine=False,
    ),
    Endpoint(
        method="GET",
        path="/v1/files/{id}/content",
        handler=get_content,
        tag="batch",
        parameters=(_ID,),
        summary="A file's bytes",
        answers={200: Answer(description="As they are.", content={"application/octet-stream": text(format="binary")})},
        errors=(404, 507),
        needs_engine=False,
    ),
)
