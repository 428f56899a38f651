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
done = keep_freed_memory() if sys.argv[1] == "kept" else True
for _ in range(3):
    np.ones(64 * 1024**2, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(64 * 1024**2, np.uint8)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept():
    """Page faults of one allocation after another, with and without."""
    applied, faults = {}, {}
    for how in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        answer, number = done.stdout.split()
        applied[how], faults[how] = answer == "True", int(number)
    if not applied["kept"]:
        pytest.skip("another C library")
    assert faults["kept"] < 100
    assert faults["given back"] > 200  # ten times 32 huge pages, or 16 384 small ones


def test_bf16_only_where_the_processor_has_it(monkeypatch):
    for capabilities in ({}, {"avx512_bf16": True}, {"amx_bf16": True}):
        monkeypatch.setattr(devices, "_cpu_capabilities", lambda answer=capabilities: answer)
        assert devices.has_bf16(torch.device("cpu")) == bool(capabilities)


@pytest.mark.parametrize("wish", ["gpu", "cuda:99", "mps:1", "cpu:0x", "cpu:", "cuda:"])
def test_devices_that_are_not_there(wish):
    with pytest.raises(InputError, match="device"):
        devices.pick_device(wish)
