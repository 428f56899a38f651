"""The files of a request -> the folder of a job. They are written while they are read, and only up to the limits."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from tumorlens.pipeline.batch.job import split_extension
from tumorlens.pipeline.options import UploadLimits
from tumorlens.pipeline.services.uploads import new_file, safe_name

if TYPE_CHECKING:
    from tumorlens.pipeline.services.spool import Arrival

_FIELD = "file"
_OVERHEAD = 10_000  # bytes of the boundaries and headers of one file
_JSON_BYTES = 1_000_000


async def receive_files(request: Request, arrival: Arrival, limits: UploadLimits) -> None:
    """Write the files of a multipart form into the folder of a job.

    A single file is called ``scan`` there, with its extension: its name may be that of a patient. Several keep their
    names, because some formats consist of files that name each other.

    Raises:
        HTTPException: There is no file, more than the limits allow (413), or the form is damaged.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limits.n_bytes + limits.upload_files * _OVERHEAD:
        raise too_large(limits.refusal(1, int(announced)))
    body = _limited(request, limits)
    # One file more than the limit, so that the sentence about too many is ours.
    parser = MultiPartParser(request.headers, body, max_files=limits.upload_files + 1, max_fields=20)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise too_large(limits.refusal(limits.upload_files + 1, 0)) from None
        raise HTTPException(400, "the multipart form is damaged; send each file as a part named `file`") from None
    try:
        uploads = [upload for upload in form.getlist(_FIELD) if isinstance(upload, UploadFile)]
        n_bytes = sum(upload.size or 0 for upload in uploads)
        refusal = limits.refusal(len(uploads), n_bytes)
        if refusal:
            raise too_large(refusal)
        if not all(upload.size for upload in uploads) or not uploads:
            raise HTTPException(422, "the form has no file, or an empty one; send each file as a part named `file`")
        for upload in uploads:
            await asyncio.to_thread(_store, upload, arrival.folder, len(uploads) == 1)
    finally:
        await form.close()


async def read_json(request: Request) -> bytes:
    """The body of a request, if it is small enough for JSON.

    Raises:
        HTTPException: It is not (413).
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _JSON_BYTES:
            raise too_large(f"the JSON is larger than {_JSON_BYTES} bytes")
    return body


def too_large(sentence: str) -> HTTPException:
    """The answer to a request that sends too much. The connection closes, so that the rest of it is not read."""
    return HTTPException(413, sentence, headers={"Connection": "close"})


async def _limited(request: Request, limits: UploadLimits) -> AsyncGenerator[bytes, None]:
    n_bytes = 0
    async for chunk in request.stream():
        n_bytes += len(chunk)
        if n_bytes > limits.n_bytes + limits.upload_files * _OVERHEAD:
            raise too_large(limits.refusal(1, n_bytes))
        yield chunk


def _store(upload: UploadFile, folder: Path, is_alone: bool) -> None:
    name = safe_name(upload.filename or "")
    file = new_file(folder, f"scan{split_extension(name)[1].lower()}" if is_alone else name)
    with file.open("wb") as target:
        shutil.copyfileobj(upload.file, target, 1 << 20)
