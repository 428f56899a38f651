"""Small untrained networks as weight files, and slices for them: enough where only the flow matters."""

from __future__ import annotations

import numpy as np
import torch

from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.model import build_classifier
from tumorlens.data.cards.weights import save_weights
from tumorlens.data.labels import CLASSES
from tumorlens.data.masks.regions import NO_REGIONS
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.engines.engine import Engine
from tumorlens.segmentation.model import build_segmenter

OPENVINO_FP32 = Engine("openvino", "cpu", "fp32")


def save_classifier(path, name="cnn", size=64):
    torch.manual_seed(0)
    model = build_classifier(find_architecture(name), size)
    card = {"stage": "classification", "architecture": name, "classes": list(CLASSES), "input_size": size}
    save_weights(model.state_dict(), path, card | {"operating_point": {"tumor_threshold": 0.5}})
    return path


def save_segmenter(path, outlines=(), regions=NO_REGIONS):
    torch.manual_seed(0)
    channels = [16, 16, 16, 16, 16]
    model = build_segmenter("unet", "resnet18", tuple(channels), max(1, len(outlines), len(regions)))
    card = {"stage": "segmentation", "architecture": "unet", "encoder": "resnet18", "decoder_channels": channels}
    point = {"mask_threshold": 0.5, "min_lesion_px": 0}
    card |= {"outlines": list(outlines)} if outlines else regions.to_card()
    save_weights(model.state_dict(), path, card | {"input_size": 64, "operating_point": point})
    return path


def slices(size=64, n=3):
    """Prepared phantoms, ``(n, size, size)``."""
    preprocess = Preprocess(size)
    return np.stack([preprocess(phantom_slice(seed, "glioma").image).image for seed in range(n)])
