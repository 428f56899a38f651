"""Both stages together: a scan goes in; label, mask and overlay come out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.pipeline import Pipeline
    from pipeline.result import Result

__all__ = ["Pipeline", "Result"]


def __getattr__(name: str) -> Any:  # the command line must answer --help without importing torch
    if name == "Pipeline":
        from pipeline.pipeline import Pipeline

        return Pipeline
    if name == "Result":
        from pipeline.result import Result

        return Result
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
