"""The same picture in other colors, file formats, frames and sizes, none of which may change a label."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def picture_variants(image_hw: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """A slice in other colors, bit depths, file formats, frames, aspects and sizes, by name."""
    jpeg = cv2.imdecode(cv2.imencode(".jpg", image_hw, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_GRAYSCALE)
    rows, columns = image_hw.shape
    return {
        "colour": np.repeat(image_hw[..., None], 3, axis=2),
        "jpeg": np.asarray(jpeg),
        "16 bit": image_hw.astype(np.uint16) * 101 + 40,
        "float": image_hw.astype(np.float64) / 1e6,
        "wide": np.pad(image_hw, ((0, 0), (200, 90))),
        "tall": np.pad(image_hw, ((300, 10), (0, 0))),
        "white frame": np.pad(np.pad(image_hw, 20), 15, constant_values=255),
        "grey frame": np.pad(image_hw, 30, constant_values=90),
        "half": cv2.resize(image_hw, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "double": cv2.resize(image_hw, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR),
        "lettered": cv2.putText(image_hw.copy(), "R 12", (4, 22), cv2.FONT_HERSHEY_PLAIN, 1.0, 255, 1),
        "boxed": cv2.rectangle(image_hw.copy(), (2, 2), (columns - 3, rows - 3), 255, 1),
    }
