"""Engines, devices and precisions: which are accepted, and which are refused."""

from __future__ import annotations

import pytest

from tumorlens.data.errors import InputError
from tumorlens.pipeline.engines import openvino_engine
from tumorlens.pipeline.engines.choice import choose_engine


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"engine": "tensorrt"}, "engine 'tensorrt' is not one of auto, torch, openvino"),
        ({"precision": "int8"}, "precision 'int8' is not one of auto, fp32, bf16"),
        ({"precision": "fp8"}, "precision 'fp8' is not one of auto, fp32, bf16"),
        ({"engine": "openvino", "device": "cuda"}, "engine openvino runs on the CPU, not on device 'cuda'"),
        ({"engine": "torch", "device": "cuda:99"}, "device 'cuda:99' is not there"),
        ({"threads": 0}, "threads 0 is less than 1"),
    ],
)
def test_impossible_engines_are_refused(arguments, reason):
    with pytest.raises(InputError, match=reason):
        choose_engine(**arguments)


def test_bf16_is_taken_only_where_the_processor_has_it(monkeypatch):
    for capable, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(openvino_engine, "computes_bf16", lambda capable=capable: capable)
        assert choose_engine("openvino").precision == expected
    with pytest.raises(InputError, match="precision bf16: cpu does not compute it in hardware"):
        choose_engine("openvino", precision="bf16")
