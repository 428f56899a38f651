"""What native decoders do to a process, for tests of `data.workers`, which call these by their names."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from tumorlens.data.errors import InputError
from tumorlens.data.scan import Annotation, Scan


def double(value):
    return value * 2


def same(*values):
    return values


def process_id():
    return os.getpid()


def abort():
    os.write(2, b"terminate called after throwing an instance of 'std::string'\n")
    os.abort()


def fall(name):
    os.kill(os.getpid(), getattr(signal, name))


def leave(status):
    os._exit(status)


def die_once(mark):
    """Die the first time, as on memory that an earlier file has damaged."""
    if not Path(mark).exists():
        Path(mark).write_text("")
        os.abort()
    return os.getpid()


def spin():
    while True:
        pass


def sleep(seconds):
    time.sleep(seconds)
    return os.getpid()


def take_memory(gib):
    return len(np.zeros(int(gib * 2**30), np.uint8))


def make_object():
    return object()


def print_much():
    print("what a library thinks of the file", flush=True)
    os.write(1, b"x" * 100_000)
    sys.stderr.write("and its warnings")
    return "done"


def fail(kind):
    if kind == "FileNotFoundError":
        Path("/no/such/file").read_bytes()
    if kind == "UnicodeDecodeError":
        b"\xff".decode()
    raise {"InputError": InputError, "OddError": _OddError, "NotImplementedError": NotImplementedError}[kind](
        "the text"
    )


class _OddError(Exception):
    pass


def annotated_scan(path):
    mask = np.eye(3, 5, dtype=np.uint8)
    annotation = Annotation(mask, "glioma", "p7")
    voxels = np.arange(15, dtype=">i2").reshape(3, 5)
    return Scan(
        voxels,
        spacing_mm=(0.5, float("inf")),
        path=path,
        format="matlab",
        source_shape=(3, 5),
        annotation=annotation,
        notes=("a note", "a\udce9b"),
        windows=((1.5, 2.5), None),
        assumed_affine=np.diag([1.0, 2, 3, 1]),
        x_first=True,
    )
