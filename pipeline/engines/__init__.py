"""What computes the two networks: PyTorch, or OpenVINO where there is no accelerator.

OpenVINO sends usage events through the package openvino_telemetry where that can be imported, and does without where it
cannot. This module makes sure that it cannot, before any engine imports OpenVINO: nothing leaves the user's machine.
"""

from __future__ import annotations

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_modules.setdefault("openvino_telemetry", None)  # an import of None is an ImportError
