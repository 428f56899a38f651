"""Values that travel between two processes of ours: JSON, and the raw bytes of arrays. Nothing in them can run.

That is why this is not pickle: a decoder that a hostile file has taken over could send anything.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import fields
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.scan import Annotation, Scan

_CLASSES: dict[str, Any] = {"Scan": Scan, "Annotation": Annotation}
_KINDS = "biufcSU"  # of arrays: plain values only, no references to objects
_LENGTH = struct.Struct("<Q")
_MAX_HEAD = 2**28


def send(stream: RawIOBase, value: Any) -> None:
    """Write a value: numbers, text, bytes, paths, arrays, scans, and sequences and dictionaries of them.

    Raises:
        TypeError: The value, or a part of it, is of another type. Nothing was written.
    """
    blocks: list[Any] = []
    head = json.dumps(_packed(value, blocks)).encode()
    for block in (_LENGTH.pack(len(head)) + head, *blocks):
        rest = memoryview(block)
        while rest:
            rest = rest[stream.write(rest) :]


def receive(stream: RawIOBase) -> Any:
    """Read a value that `send` wrote. Every sequence comes back as a tuple, and arrays are contiguous.

    Raises:
        EOFError: The other process has closed its end.
        ValueError: The bytes are not those of `send`.
    """
    (length,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    if length > _MAX_HEAD:
        raise ValueError("a message begins with an impossible length")
    return _unpacked(json.loads(_read(stream, length)), stream)


def _packed(value: Any, blocks: list[Any]) -> Any:
    """The value for JSON; the bytes that belong to it are appended to `blocks`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_packed(part, blocks) for part in value]
    if isinstance(value, bytes | bytearray):
        blocks.append(value)
        return {"bytes": len(value)}
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
        array = value if value.flags.forc else value.copy()
        blocks.append(_bytes_of(array))
        return {"array": [array.dtype.str, array.shape, "C" if array.flags.c_contiguous else "F"]}
    if isinstance(value, Path):
        return {"path": os.fspath(value)}
    if isinstance(value, dict):
        return {"dict": {key: _packed(part, blocks) for key, part in value.items()}}
    name = type(value).__name__
    if _CLASSES.get(name) is type(value):
        return {name: {field.name: _packed(getattr(value, field.name), blocks) for field in fields(value)}}
    raise TypeError(f"a {name} cannot be sent to another process")


def _unpacked(value: Any, stream: RawIOBase) -> Any:
    if isinstance(value, list):
        return tuple(_unpacked(part, stream) for part in value)
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "bytes":
        return bytes(_read(stream, content))
    if kind == "array":
        dtype = np.dtype(content[0])
        if dtype.kind not in _KINDS:
            raise ValueError(f"an array of {dtype} is not sent between processes")
        array = np.empty(content[1], dtype, content[2])
        _fill(stream, _bytes_of(array))
        return array
    if kind == "path":
        return Path(content)
    parts = {key: _unpacked(part, stream) for key, part in content.items()}
    if kind == "dict":
        return parts
    if kind not in _CLASSES:
        raise ValueError(f"a {kind} is not sent between processes")
    return _CLASSES[kind](**parts)


def _bytes_of(array: NDArray[Any]) -> Any:
    """The memory of an array that is contiguous in C order or in Fortran's, as MATLAB's are."""
    return array.ravel("K").view(np.uint8) if array.nbytes else b""


def _read(stream: RawIOBase, length: int) -> bytearray:
    content = bytearray(length)
    _fill(stream, content)
    return content


def _fill(stream: RawIOBase, target: Any) -> None:
    rest = memoryview(target)
    while rest:
        count = stream.readinto(rest)
        if not count:
            raise EOFError("the other process has ended")
        rest = rest[count:]
