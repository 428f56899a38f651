"""The engines that compute the two networks: PyTorch, or OpenVINO where there is no accelerator.

OpenVINO sends usage events through the package openvino_telemetry if it can import it. This module blocks that import
before any engine imports OpenVINO, so nothing leaves your machine.
"""

from __future__ import annotations

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_modules.setdefault("openvino_telemetry", None)  # an import of None is an ImportError
