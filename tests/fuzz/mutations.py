"""Damage to the bytes of a file, whatever its format is."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

Mutation = Callable[[Random, bytes], bytes]

_LARGEST = 1 << 20  # bytes of a mutated file, so that a case stays quick
_NUMBERS = (0, 1, 2, 3, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_FLOATS = (0.0, -0.0, -1.0, 0.5, 1e-40, 1e9, 1e30, -1e38, float("inf"), float("-inf"), float("nan"))
# Texts that parsers of numbers, names and paths meet.
TEXTS = (
    *("", "0", "-1", "1", "2", "7", "32767", "65536", "2147483647", "4294967296", "99999999999999999999", "1" * 5000),
    *("1e400", "nan", "inf", "-inf", "1.5", "1,5", "1e-320", "0x10", "\u0663", "1_000", "½", "True", "None", "none"),
    *(" ", "\t", "\0", "a\0b", "\\", "a\\b\\c", "1\\2\\3\\4\\5\\6\\7", "1 2", "1 1 1 1 1", "[]", "(1,0,0)"),
    *("(nan,0,0) (0,1,0) (0,0,1)", "..", "../a", "/etc/passwd", "a" * 300, "%d", "%s%n", "%03d.raw 1 99999999 1"),
    *("LIST", "glioma", "é\ud800", "\ufeff", "'", '"'),
)  # fmt: skip
_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF, 0x0A, 0x20, 0x5C)


def place(random: Random, length: int) -> int:
    """An index below `length`: as often in the header as anywhere else, sometimes at the end."""
    kind = random.random()
    if kind < 0.5:
        return random.randrange(min(length, 600))
    if kind < 0.9:
        return random.randrange(length)
    return random.randrange(max(0, length - 64), length)


def number(random: Random, kind: str = "") -> bytes:
    """A number at the border of a type, packed as the `struct` format says, or as any."""
    kind = kind or random.choice("<>") + random.choice("BHHIIIQfd")
    if kind[-1] in "fd":
        value = random.choice(_FLOATS)
        return struct.pack(kind, value)
    size = struct.calcsize(kind)
    value = (random.choice(_NUMBERS) + random.choice((0, 0, 0, 1, -1))) % (1 << 8 * size)
    return struct.pack(kind[0] + kind[-1].upper(), value)


def put(data: bytes, at: int, new: bytes) -> bytes:
    """The data with other bytes at a place."""
    return data[:at] + new + data[at + len(new) :]


def _flip(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        changed[place(random, len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _set(random: Random, data: bytes) -> bytes:
    value = random.choice(_BYTES) if random.random() < 0.7 else random.randrange(256)
    return put(data, place(random, len(data)), bytes([value]) * random.choice((1, 1, 2, 4, 8)))[: len(data)]


def _set_number(random: Random, data: bytes) -> bytes:
    at = place(random, len(data)) & random.choice((-1, -2, -4))
    return put(data, at, number(random))[: len(data)]


def _cut_end(random: Random, data: bytes) -> bytes:
    return data[: place(random, len(data))]


def _cut_out(random: Random, data: bytes) -> bytes:
    at = place(random, len(data))
    return data[:at] + data[at + _length(random) :]


def _insert(random: Random, data: bytes) -> bytes:
    at, length = place(random, len(data)), _length(random)
    new = random.randbytes(length) if random.random() < 0.5 else bytes([random.choice(_BYTES)]) * length
    return data[:at] + new + data[at:]


def _repeat(random: Random, data: bytes) -> bytes:
    at = place(random, len(data))
    chunk = data[at : at + _length(random)]
    times = random.choice((1, 2, 3, 16, 256, 1 << 14))
    return (data[:at] + chunk * min(times, _LARGEST // len(chunk)) + data[at:])[:_LARGEST]


def _copy(random: Random, data: bytes) -> bytes:
    source, target = place(random, len(data)), place(random, len(data))
    return put(data, target, data[source : source + _length(random)])


def _length(random: Random) -> int:
    return random.choice((1, 2, 4, 8, 12, 16, 32, 100, 500, 4000))


_ALL: tuple[Mutation, ...] = (_flip, _flip, _set, _set, _set_number, _set_number, _cut_end, _cut_out, _insert, _repeat)
_ALL = (*_ALL, _copy)


def mutate(random: Random, data: bytes) -> bytes:
    """The data, damaged at one place."""
    return random.choice(_ALL)(random, data) if data else random.randbytes(8)


def splice(random: Random, data: bytes, other: bytes) -> bytes:
    """The begin of one file and the end of another, cut at the same place or at two places."""
    if not data or not other:
        return data or other
    at = place(random, len(data))
    return (data[:at] + other[at if random.random() < 0.5 else place(random, len(other)) :])[:_LARGEST]
