"""Values that travel between processes: they arrive as they left, and nothing but plain values travels."""

from __future__ import annotations

import io
import struct
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from tests.scans.decoders import annotated_scan
from tumorlens.data.scan import Scan
from tumorlens.data.workers.messages import receive, send


class Pipe(io.BytesIO):
    """Memory that passes on 1000 bytes at a time, as a pipe may."""

    def write(self, data):
        return super().write(data[:1000])

    def readinto(self, target):
        return super().readinto(memoryview(target).cast("B")[:1000])


def sent(value):
    pipe = Pipe()
    send(pipe, value)
    pipe.seek(0)
    arrived = receive(pipe)
    assert pipe.read() == b""
    return arrived


@pytest.mark.parametrize(
    "value",
    [
        None,
        (True, -7, 2.5, float("-inf"), "umlaut ä", "not UTF-8 \udce9", b"", bytes(range(256)) * 20),
        Path("a b/ä\udce9.mat"),
        {"rows": 5, "inner": {"a": (1, (2,)), "data": b"12"}},
        np.float64(0.1),
    ],
)
def test_plain_values(value):
    assert sent(value) == value


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3000, dtype=np.int32).reshape(10, 300),
        np.arange(30, dtype=">u2").reshape(5, 6).T,
        np.arange(30.0).reshape(5, 6)[::-1, ::2],
        np.array(7, np.uint8),
        np.empty((0, 4), np.float32),
        np.array([[True, False]]),
        np.array(["glioma", "A7"]),
        np.array([], "U1"),
        np.array([1 + 2j, -3j]),
        np.array([1.5, np.inf], np.float16),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays(array):
    arrived = sent([array])[0]
    assert (arrived.dtype, arrived.shape) == (array.dtype, array.shape)
    assert np.array_equal(arrived, array) and arrived.flags.writeable
    assert arrived.flags.forc and (not array.flags.forc or arrived.strides == array.strides)


def test_a_scan_with_its_annotation(tmp_path):
    scan = annotated_scan(tmp_path)
    arrived = sent(scan)
    for field in fields(Scan):
        before, after = getattr(scan, field.name), getattr(arrived, field.name)
        if isinstance(before, np.ndarray):
            assert np.array_equal(before, after) and before.dtype == after.dtype
        elif field.name == "annotation":
            assert np.array_equal(before.mask, after.mask)
            assert (before.label, before.patient) == (after.label, after.patient)
        else:
            assert before == after, field.name


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([None]), np.zeros(2, "V4"), [print], np.int64(4)])
def test_other_values_are_refused_before_anything_is_written(value):
    pipe = Pipe()
    with pytest.raises(TypeError, match="cannot be sent"):
        send(pipe, [b"first", value])
    assert pipe.getvalue() == b""


def message(head):
    return Pipe(struct.pack("<Q", len(head)) + head)


@pytest.mark.parametrize(
    "pipe",
    [
        message(b'{"array": ["|O", [3], "C"]}'),
        message(b'{"array": ["|V8", [3], "C"]}'),
        message(b'{"Popen": {"args": "true"}}'),
        message(b"not JSON"),
        message(b'{"array": ["<i4", [-3], "C"]}'),
        message(b"{}"),
        Pipe(b"terminate called after throwing"),
    ],
)
def test_strange_bytes_are_refused(pipe):
    with pytest.raises(ValueError):
        receive(pipe)


@pytest.mark.parametrize("n_bytes", [0, 5, 30])
def test_the_end_of_the_other_process(n_bytes):
    pipe = Pipe()
    send(pipe, [np.arange(100)])
    with pytest.raises(EOFError):
        receive(Pipe(pipe.getvalue()[:n_bytes]))
