"""Brain tumors in MRI, in two stages: `Pipeline` takes a scan and returns a `Result` with label, mask and measurements.

`RunOptions` says how a scan is read and whether the answer is explained.

Example:
    >>> from tumorlens import Pipeline
    >>> pipeline = Pipeline.load()
    >>> result = pipeline.run("scan.nii.gz")
    >>> result.label, result.confidence
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tumorlens.pipeline.options import RunOptions
    from tumorlens.pipeline.pipeline import Pipeline
    from tumorlens.pipeline.result import Result

__all__ = ["Pipeline", "Result", "RunOptions"]

_MODULES = {"Pipeline": "pipeline.pipeline", "Result": "pipeline.result", "RunOptions": "pipeline.options"}


def __getattr__(name: str) -> Any:  # `tumorlens --help` must not wait for NumPy and OpenVINO
    if name in _MODULES:
        return getattr(import_module(f"tumorlens.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'tumorlens' has no attribute {name!r}")
