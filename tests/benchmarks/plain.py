"""The baseline of the benchmark: torchvision and SMP alone, eager, fp32, one slice at a time.

It loads the shipped weights, so that both sides compute the same networks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from tumorlens.data.labels import NO_TUMOR


class PlainTorch:
    """Both networks as their libraries build them."""

    def __init__(self, classifier: Path, segmenter: Path) -> None:
        from tumorlens.classification.network import load_network
        from tumorlens.segmentation.network import load_network as load_segmenter

        one, two = load_network(classifier, "cpu"), load_segmenter(segmenter, "cpu")
        self.classifier = one.model.to(memory_format=torch.contiguous_format)
        self.segmenter = two.model.to(memory_format=torch.contiguous_format)
        self.size = 192
        self.mean = torch.tensor(one.normalization.mean).view(1, 3, 1, 1)
        self.std = torch.tensor(one.normalization.std).view(1, 3, 1, 1)

    def judge(self, image_hw: NDArray[np.uint8]) -> tuple[int, NDArray[np.uint8]]:
        """Label and mask of one gray picture."""
        small = cv2.resize(image_hw, (self.size, self.size))
        batch = (torch.from_numpy(small).float().div(255)[None, None].repeat(1, 3, 1, 1) - self.mean) / self.std
        mask = np.zeros(image_hw.shape, np.uint8)
        with torch.no_grad():
            label = int(self.classifier(batch).argmax(1))
            if label != NO_TUMOR:
                lesion = torch.sigmoid(self.segmenter(batch))[0, 0].numpy()
                mask = (cv2.resize(lesion, image_hw.shape[::-1]) > 0.5).astype(np.uint8)
        return label, mask

    def run_file(self, source: Path, out: Path) -> int:
        """Label of a picture file; mask and overlay are written to `out`."""
        image: Any = cv2.imread(str(source), cv2.IMREAD_GRAYSCALE)
        label, mask = self.judge(image)
        overlay = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        overlay[mask > 0, 2] = 255
        out.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(out / "mask.png"), mask * 255)
        cv2.imwrite(str(out / "overlay.png"), overlay)
        return label

    def run_volume(self, voxels_hwd: NDArray[Any]) -> NDArray[np.uint8]:
        """Masks of the slices along the last axis, scaled to bytes."""
        low, high = np.percentile(voxels_hwd, (1, 99.5))
        gray = (np.clip((voxels_hwd - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        return np.stack([self.judge(np.ascontiguousarray(gray[..., k]))[1] for k in range(gray.shape[-1])], axis=-1)
