"""Damage to DICOM files, element by element, also within sequences and the fragments of compressed pixels."""

from __future__ import annotations

import re
import struct
import zlib
from random import Random

from tests.fuzz.mutations import TEXTS, mutate, number

_LONG = (b"OB", b"OW", b"OF", b"OD", b"SQ", b"UT", b"UN", b"UC", b"UR", b"OL", b"OV", b"SV", b"UV")
_VRS = (*_LONG, b"DS", b"IS", b"US", b"SS", b"UL", b"FD", b"CS", b"UI", b"LO", b"PN", b"AT", b"ZZ")
_UNDEFINED = 0xFFFFFFFF
_Element = tuple[bytes, bytes, bytes, int]  # tag, VR, value, length (the value's own, or a false one)


def damaged_dicom(random: Random, data: bytes) -> bytes:
    """Damage one element, perhaps in a sequence; the lengths around it are right."""
    end = 144 + int.from_bytes(data[140:144], "little")
    meta, body = data[132:end], data[end:]
    if random.random() < 0.05:
        return data[:132] + _elements(random, meta) + body
    if b"1.2.840.10008.1.2.1.99" in meta:
        inflated = zlib.decompress(body, -zlib.MAX_WBITS)
        packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        return data[:end] + packer.compress(_elements(random, inflated)) + packer.flush()
    if re.search(rb"1\.2\.840\.10008\.1\.2(\.2)?\0", meta):  # implicit VR, or big endian
        return data[:end] + mutate(random, body)
    return data[:end] + _elements(random, body)


def _elements(random: Random, body: bytes) -> bytes:
    elements, at = [], 0
    while at + 8 <= len(body):
        tag, vr = body[at : at + 4], body[at + 4 : at + 6]
        start = at + (12 if vr in _LONG else 8)
        length = int.from_bytes(body[at + 8 : start] if vr in _LONG else body[at + 6 : at + 8], "little")
        at = start + length if length != _UNDEFINED else len(body)
        elements.append((tag, vr, body[start:at], length))
    index = random.randrange(len(elements))
    if random.random() < 0.3:  # what is deep inside has its share
        index = random.choice([i for i, e in enumerate(elements) if e[1] == b"SQ" or e[3] == _UNDEFINED] or [index])
    tag, vr, value, length = elements[index]
    action = random.random()
    if (vr == b"SQ" or length == _UNDEFINED) and action < 0.8:
        new = [(tag, vr, _items(random, value, vr == b"SQ"), length if length == _UNDEFINED else -1)]
    elif action < 0.5:
        text = random.choice(TEXTS).encode("utf-8", "replace")
        values = (
            text,
            text,
            value.replace(b"1", text[:20]),
            value + b"\\" + text,
            number(random) * random.choice((1, 2, 3)),
            mutate(random, value),
        )
        new = [(tag, vr, random.choice(values), -1)]
    elif action < 0.6:
        new = [(tag, vr, value, int.from_bytes(number(random, "<I"), "little"))]
    elif action < 0.7:
        new = [(tag, random.choice(_VRS), value, -1)]
    elif action < 0.8:
        new = []
    elif action < 0.9:
        new = [(random.choice(elements)[0], vr, value, -1)]
    else:
        new = [elements[index]] * 2
    elements[index : index + 1] = new
    return b"".join(map(_packed, elements))


def _packed(element: _Element) -> bytes:
    tag, vr, value, length = element
    if length == -1:
        value += b" " * (len(value) % 2)
        length = len(value)
    size = struct.pack("<HI", 0, length) if vr in _LONG else struct.pack("<H", length & 0xFFFF)
    return tag + vr + size + value


def _items(random: Random, value: bytes, is_sequence: bool) -> bytes:
    """Damage one of the items of a sequence, or one of the fragments of compressed pixels."""
    items, at = [], 0
    while value[at : at + 4] == b"\xfe\xff\x00\xe0" and at + 8 <= len(value):
        length = int.from_bytes(value[at + 4 : at + 8], "little")
        items.append(value[at + 8 : at + 8 + length])
        at += 8 + length
    index = random.randrange(len(items))
    action = random.random()
    if action < 0.85:
        items[index] = _elements(random, items[index]) if is_sequence else mutate(random, items[index])
    elif action < 0.9:
        del items[index]
    elif action < 0.95:
        items.append(items[index])
    else:
        items[index] = b""
    return b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item for item in items) + value[at:]
