"""OpenVINO without its telemetry: nothing leaves the user's machine.

OpenVINO sends usage events by the package openvino_telemetry where that can be imported, and does without where it
cannot. Here it cannot. This has to happen before OpenVINO's own import, so everything imports it from here.
"""

from __future__ import annotations

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_modules.setdefault("openvino_telemetry", None)  # an import of None is an ImportError

import openvino  # noqa: E402

__all__ = ["openvino"]
