"""The memory that glibc keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tumorlens.data import devices
from tumorlens.data.errors import InputError

FAULTS = """
import resource, sys
import numpy as np
from tumorlens.data.devices import keep_freed_memory
how, mib = sys.argv[1], int(sys.argv[2])
done = keep_freed_memory(how == "training") if how != "nothing" else True
for _ in range(3):
    np.ones(mib * 1024**2, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(mib * 1024**2, np.uint8)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
@pytest.mark.parametrize(
    ("how", "mib", "kept"),
    [("training", 64, True), ("scans", 8, True), ("scans", 64, False), ("nothing", 64, False)],
)
def test_freed_memory_is_kept(how, mib, kept):
    """Page faults of one allocation after another."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how, str(mib)], capture_output=True, text=True, check=True)
    applied, faults = done.stdout.split()
    if applied != "True":
        pytest.skip("another C library")
    assert (int(faults) < 100) if kept else (int(faults) > 200)  # ten times 32 huge pages, or 16 384 small ones


def test_bf16_only_where_the_processor_has_it(monkeypatch):
    for capabilities in ({}, {"avx512_bf16": True}, {"amx_bf16": True}):
        monkeypatch.setattr(devices, "_cpu_capabilities", lambda answer=capabilities: answer)
        assert devices.has_bf16(torch.device("cpu")) == bool(capabilities)


@pytest.mark.parametrize("wish", ["gpu", "cuda:99", "mps:1", "cpu:0x", "cpu:", "cuda:"])
def test_devices_that_are_not_there(wish):
    with pytest.raises(InputError, match="device"):
        devices.pick_device(wish)


def test_an_unknown_device_is_named_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="device 'banana' is not one of auto, cpu, cuda, cuda:N, mps"):
        devices.pick_device("banana")
