"""Damage to the content of a file that knows its format: checksums, lengths and compression around it stay whole."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sqlite3
import struct
import tempfile
import zipfile
import zlib
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.elements import damaged_dicom
from tests.fuzz.mutations import TEXTS, Mutation, mutate, number, put

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, 2**31, 2**63, 10**400, -(2**63), 1e308),
    *(float("nan"), float("inf"), float("-inf"), [], {}, "", [[]], [None], {"": None}, [1, "a", None]),
    {"a": {"b": []}},
)  # fmt: skip
_DEEP = 20_000  # levels: more than any parser that calls itself can take


def structured(random: Random, data: bytes, name: str = "") -> bytes:
    """The file with damaged content if its format is one of those known here, else with damaged bytes."""
    for is_kind, damage in _KINDS:
        if is_kind(data, name):
            try:
                return damage(random, data)
            except Exception:  # damaged before
                break
    return mutate(random, data)


def _png(random: Random, data: bytes) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    index = random.randrange(len(chunks))
    kind, content = chunks[index]
    action = random.random()
    if action < 0.1:
        del chunks[index]
    elif action < 0.2:
        chunks.insert(random.randrange(len(chunks) + 1), (kind, content))
    elif action < 0.35:
        added = random.choice(
            (b"tRNS", b"PLTE", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iTXt", b"gAMA")
        )
        chunks.insert(random.randrange(1, len(chunks)), (added, random.randbytes(random.choice((0, 1, 6, 26, 300)))))
    elif kind == b"IHDR" and action < 0.8:
        chunks[index] = (
            kind,
            put(
                content,
                *random.choice(
                    (
                        (0, number(random, ">I")),
                        (4, number(random, ">I")),
                        (random.randrange(8, 13), number(random, ">B")),
                    )
                ),
            ),
        )
    elif kind == b"IDAT" and action < 0.8:
        chunks[index] = kind, zlib.compress(mutate(random, zlib.decompress(content)))
    else:
        chunks[index] = kind, mutate(random, content)
    return data[:8] + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )


def _gzip(random: Random, data: bytes) -> bytes:
    return gzip.compress(either(random, gzip.decompress(data)), 1, mtime=0)


def _zip(random: Random, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    index = random.randrange(len(entries))
    name, content = entries[index]
    action = random.random()
    if action < 0.4:
        entries[index] = name, either(random, content)
    elif action < 0.7:
        entries[index] = random.choice((*TEXTS, "../a", "C:/a", "a/../../b", "a" * 5000, "a/", "a//b", "con")), content
    elif action < 0.8:
        entries.append(random.choice(entries))
    elif action < 0.9:
        entries[index] = "inner.zip", data
    else:
        del entries[index]
    packed = io.BytesIO()
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return packed.getvalue()


def _json(random: Random, data: bytes) -> bytes:
    content = json.loads(data)
    holder, key = _any_place(random, content)
    old = holder[key]
    action = random.random()
    if action < 0.6:
        holder[key] = random.choice((*_VALUES, *TEXTS))
    elif action < 0.7:
        del holder[key]
    elif action < 0.8:
        holder[key] = random.choice(([old], {"a": old}, str(old), [old, old], [old] * 300))
    elif action < 0.9 and isinstance(old, int | float):
        holder[key] = random.choice((-old, old * 1000, old + 1, old + 0.5, old - 1))
    elif action < 0.95:
        other, other_key = _any_place(random, content)
        holder[key] = other[other_key] if other is not holder else None
    else:
        holder[key] = "DEEP"
    text = json.dumps(content)
    return text.replace(
        '"DEEP"', random.choice(("[" * _DEEP + "]" * _DEEP, '{"a":' * _DEEP + "0" + "}" * _DEEP))
    ).encode()


def _any_place(random: Random, content: Any) -> tuple[Any, Any]:
    """A container in a JSON content, and one of its keys; mostly deep inside."""
    holder, key = {"": content}, ""
    while isinstance(holder[key], dict | list) and holder[key] and random.random() < 0.85:
        holder = holder[key]
        key = random.choice(list(holder)) if isinstance(holder, dict) else random.randrange(len(holder))
    if key == "":
        holder, key = (
            content,
            random.choice(list(content)) if isinstance(content, dict) else random.randrange(len(content)),
        )
    return holder, key


def _csv(random: Random, data: bytes) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode())))
    row = random.choice(rows)
    column = random.randrange(len(row))
    action = random.random()
    if action < 0.7:
        row[column] = random.choice((*TEXTS, "\n", "a\r\nb", '"', "a,b", random.choice(random.choice(rows))))
    elif action < 0.8:
        del row[column]
    elif action < 0.85:
        row.insert(column, row[column])
    elif action < 0.9:
        for other in rows:
            del other[column : column + 1]
    elif action < 0.95:
        rows += [row] * random.choice((1, 100))
    else:
        row[column] = "a" * 200_000  # more than the csv module takes
    written = io.StringIO()
    csv.writer(written, escapechar="\\").writerows(rows)
    return written.getvalue().encode(random.choice(("utf-8", "utf-8", "utf-16", "latin-1")), "replace")


_FIELDS = (
    *("byte skip: -1", "byte skip: 9999", "line skip: 3", "encoding: gzip", "encoding: bzip2", "encoding: hex"),
    *("kinds: list domain domain", "space: scanner-xyz", "space dimension: 3", "data file: a.raw", "data file: LIST"),
    *("datafile: a%03d.raw 1 3 1", 'units: ""', "CompressedData = True", "HeaderSize = -1", "CompressedDataSize = -5"),
    *("NDims = 4", "ElementNumberOfChannels = 3", "ElementType = MET_DOUBLE", "BinaryDataByteOrderMSB = True"),
    "TransformMatrix = 1 0 0 0 1 0 0 0 0",
)  # fmt: skip


def _text_header(random: Random, data: bytes) -> bytes:
    """NRRD and MetaImage: lines of ``name: value`` or ``name = value``, then the voxels."""
    end = re.search(rb"\n\n|ElementDataFile[^\n]*\n|$", data).end()
    lines = data[:end].decode("latin-1").split("\n")
    index = random.randrange(1, len(lines)) if random.random() < 0.95 else 0
    name, sign, value = re.match(r"([^:=]*)([:=]*)(.*)", lines[index]).groups()
    words = value.split(" ")
    word = random.randrange(len(words))
    words[word] = random.choice((*TEXTS, *words, "-" + words[word], words[word] + "0", " " * 50_000 + "x"))
    damaged = f"{name}{sign}{' '.join(words)}"
    extra = random.choice(_FIELDS)
    lines[index : index + 1] = random.choice(([damaged],) * 5 + ([], [lines[index]] * 2, [extra, lines[index]]))
    return "\n".join(lines).encode("utf-8", "surrogateescape" if random.random() < 0.5 else "replace") + data[end:]


_NIFTI1 = ((0, "i"), *((at, "h") for at in range(40, 76, 2)), *((at, "f") for at in range(76, 120, 4)), (123, "B"))
_NIFTI1 = (
    *_NIFTI1,
    (252, "h"),
    (254, "h"),
    *((at, "f") for at in range(256, 328, 4)),
    (344, "I"),
    (348, "I"),
    (352, "I"),
)
_NIFTI2 = (
    (0, "i"),
    (12, "h"),
    (14, "h"),
    *((at, "q") for at in range(16, 80, 8)),
    *((at, "d") for at in range(104, 168, 8)),
)
_NIFTI2 = (
    *_NIFTI2,
    (168, "q"),
    (176, "d"),
    (184, "d"),
    (344, "i"),
    (348, "i"),
    *((at, "d") for at in range(352, 496, 8)),
)
_MGH = (*((at, "i") for at in range(0, 28, 4)), (28, "h"), *((at, "f") for at in range(30, 90, 4)))
_BMP = (*((at, "I") for at in range(2, 26, 4)), (26, "H"), (28, "H"), *((at, "I") for at in range(30, 54, 4)))


def _fields(order: str, *fields: tuple[int, str]) -> Mutation:
    """A mutation that sets one of a header's fields, given as offsets and `struct` letters."""

    def damage(random: Random, data: bytes) -> bytes:
        at, kind = random.choice(fields)
        small = struct.pack(order + kind, random.choice((0, 1, 2, 3, 4, 5, 8, 16, 64, 100)))
        return put(data, at, small if random.random() < 0.4 else number(random, order + kind))

    return damage


def _tiff(random: Random, data: bytes) -> bytes:
    order, big = "<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+")
    at = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, at)[0]
    at += 8 if big else 2
    entry = at + random.randrange(count) * (20 if big else 12)
    place = random.choice((0, 2, 4, 8 if not big else 12, 8 if not big else 12))
    kind = "H" if place < 4 else "Q" if big else "I"
    tags = (
        254,
        256,
        257,
        258,
        259,
        262,
        273,
        274,
        277,
        278,
        279,
        282,
        284,
        317,
        320,
        322,
        323,
        324,
        330,
        338,
        339,
        347,
        34665,
    )
    codes = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 32, 64, 32773, 32946, 34712, 50000, *tags)
    return put(
        data,
        entry + place,
        struct.pack(order + kind, random.choice(codes)) if random.random() < 0.6 else number(random, order + kind),
    )


def _jpeg(random: Random, data: bytes) -> bytes:
    segments, at = [], 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at : at + 2], data[at + 4 : at + 2 + length]))
        at += 2 + length
    index = random.randrange(len(segments))
    marker, content = segments[index]
    action = random.random()
    if action < 0.7:
        segments[index] = marker, mutate(random, content)
    elif action < 0.8:
        del segments[index]
    elif action < 0.9:
        segments.insert(random.randrange(len(segments) + 1), (marker, content))
    else:
        segments[index] = (
            b"\xff" + random.choice((b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\xc9", b"\xe1", b"\xe2", b"\xee", b"\xdd")),
            content,
        )
    return data[:2] + b"".join(m + struct.pack(">H", (len(c) + 2) & 0xFFFF) + c for m, c in segments) + data[at:]


def _riff(random: Random, data: bytes) -> bytes:
    chunks, at = [], 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        chunks.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    index = random.randrange(len(chunks))
    kind, content = chunks[index]
    chunks[index : index + 1] = random.choice(([(kind, mutate(random, content))],) * 4 + ([], [(kind, content)] * 2))
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(c)) + c + bytes(len(c) % 2) for k, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _matlab(random: Random, data: bytes) -> bytes:
    kind, length = struct.unpack_from("<II", data, 128)
    content = data[136 : 136 + length]
    if kind == 15:  # compressed
        content = zlib.compress(mutate(random, zlib.decompress(content)), 1)
        return data[:128] + struct.pack("<II", kind, len(content)) + content
    return data[:136] + mutate(random, data[136:])


def _safetensors(random: Random, data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    header = _json(random, data[8:end])
    return struct.pack("<Q", len(header)) + header + data[end:]


def _cell(random: Random, old: Any) -> Any:
    """A value for a cell of a database."""
    text = random.choice(TEXTS).encode("utf-8", "replace")
    part = mutate(random, old if isinstance(old, bytes) else str(old).encode())
    return random.choice(
        (text, text.decode(), part, part.decode("latin-1"), -1, 2**62, float("inf"), random.randbytes(20))
    )


def _sqlite(random: Random, data: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.sqlite"
        path.write_bytes(data)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            names = {
                kind: [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = ?", (kind,))]
                for kind in ("table", "trigger")
            }
            for name in names["trigger"]:
                db.execute(f"DROP TRIGGER {name}")
            table = random.choice(names["table"])
            column = random.choice([row[1] for row in db.execute(f"PRAGMA table_info({table})")])
            row, old = random.choice(db.execute(f"SELECT rowid, {column} FROM {table}").fetchall() or [(0, b"a")])
            new = _cell(random, old)
            action = random.random()
            if action < 0.9:
                db.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE rowid = ?", (new, row))
            elif action < 0.95:
                db.execute(
                    random.choice(
                        (f"DROP TABLE {table}", f"DELETE FROM {table}", f"ALTER TABLE {table} RENAME TO other")
                    )
                )
            else:
                db.execute(f"PRAGMA user_version = {random.choice((-1, 0, 2, 2**31 - 1))}")
        return path.read_bytes()


def _is_text_header(data: bytes, name: str) -> bool:
    return data.startswith(b"NRRD") or b"NDims" in data[:200]


_KINDS = (
    (lambda data, name: data.startswith(b"\x89PNG"), _png),
    (lambda data, name: data.startswith(b"\x1f\x8b"), _gzip),
    (lambda data, name: data.startswith(b"PK\x03\x04"), _zip),
    (lambda data, name: data.startswith(b"SQLite format 3"), _sqlite),
    (lambda data, name: data[128:132] == b"DICM", damaged_dicom),
    (lambda data, name: data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")), _tiff),
    (lambda data, name: data.startswith(b"\xff\xd8"), _jpeg),
    (lambda data, name: data.startswith(b"RIFF"), _riff),
    (lambda data, name: data.startswith(b"BM"), _fields("<", *_BMP)),
    (lambda data, name: data[:4] == b"\x5c\x01\0\0", _fields("<", *_NIFTI1)),
    (lambda data, name: data[:4] == b"\0\0\x01\x5c", _fields(">", *_NIFTI1)),
    (lambda data, name: data[:4] == b"\x1c\x02\0\0", _fields("<", *_NIFTI2)),
    (lambda data, name: data[:4] == b"\0\0\0\x01" and len(data) > 284, _fields(">", *_MGH)),
    (lambda data, name: data.startswith(b"MATLAB 5.0"), _matlab),
    (_is_text_header, _text_header),
    (lambda data, name: name.endswith(".safetensors"), _safetensors),
    (lambda data, name: name.endswith(".csv"), _csv),
    (lambda data, name: data[:1] in (b"{", b"["), _json),
)


def either(random: Random, data: bytes, name: str = "") -> bytes:
    """The file with damaged content, or with damaged bytes."""
    return structured(random, data, name) if random.random() < 0.6 else mutate(random, data)
