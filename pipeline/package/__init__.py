"""Brain tumors in MRI, in two stages: `Pipeline` takes a scan and returns a `Result` with label, mask and measurements.

Example:
    >>> from tumorlens import Pipeline
    >>> pipeline = Pipeline.load()
    >>> result = pipeline.run("scan.nii.gz")
    >>> result.label, result.confidence
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tumorlens.pipeline.pipeline import Pipeline
    from tumorlens.pipeline.result import Result

__all__ = ["Pipeline", "Result"]


def __getattr__(name: str) -> Any:  # `tumorlens --help` must not wait for NumPy and OpenVINO
    if name == "Pipeline":
        from tumorlens.pipeline.pipeline import Pipeline

        return Pipeline
    if name == "Result":
        from tumorlens.pipeline.result import Result

        return Result
    raise AttributeError(f"module 'tumorlens' has no attribute {name!r}")
