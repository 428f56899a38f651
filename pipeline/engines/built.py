"""ResNets, and U-Nets on them, as OpenVINO models: built from a weight file, without PyTorch.

The shipped networks are of these architectures. Tensors have torchvision's and segmentation-models-pytorch's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

from tumorlens.data.cards.card import checked_card
from tumorlens.data.cards.weights import checked_arrays
from tumorlens.data.errors import InputError
from tumorlens.data.labels import ClassList
from tumorlens.data.preprocessing.normalization import IMAGENET, normalization_of

INPUT = "images"
OUTPUTS = {"classification": ("logits", "features"), "segmentation": ("map",)}
CLASS_MAPS = "class_maps"
RESNETS = {  # blocks of each stage; K. He et al., CVPR 2016
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
_BASIC = ("resnet18", "resnet34")  # two convolutions a block; the others have three
_EPSILON = 1e-5  # of batch normalization in PyTorch
_HEADS = ("refusal.", "sequence.")  # of a classifier, computed outside of the network


def build_model(path: Path, stage: str) -> openvino.Model | None:
    """The model of a weight file; None for an architecture that is not one of these.

    It takes prepared slices ``images`` ``(n, size, size)`` uint8. It returns for classification ``logits``
    ``(n, outputs)``, ``features`` ``(n, d)`` of the layer that the refusal reads, if there is one, and ``class_maps``
    ``(n, outputs, h, w)``, what each place of the last feature maps adds to each logit. For segmentation it returns
    ``map`` ``(n, c, size, size)`` uint8, 255 is certain, with a channel for each of the card's regions or outlines.

    Args:
        path: A ``.safetensors`` file, with its card in the same folder.
        stage: ``classification`` or ``segmentation``.

    Raises:
        InputError: Files are missing, damaged, or of another stage or architecture.
    """
    card = checked_card(path, stage)
    layer = card["refusal"]["layer"] if "refusal" in card else None
    if stage == "classification":
        name, fits = card["architecture"], layer is None or layer in _STAGES
    else:
        name, fits = card["encoder"], card["architecture"] == "unet"
    if name not in RESNETS or not fits:
        return None
    weights = _Weights({n: a for n, a in checked_arrays(path, card).items() if not n.startswith(_HEADS)})
    size = int(card["input_size"])
    images = ops.parameter([-1, size, size], np.uint8, name=INPUT)
    batch = _normalized(images, card)
    try:
        if stage == "classification":
            outputs = _classifier(weights, batch, name, layer, n_outputs(card))
        else:
            outputs = _segmenter(weights, batch, name, len(card["decoder_channels"]), n_outputs(card))
        weights.check_all_used()
    except (_WrongTensorError, RuntimeError) as error:  # OpenVINO refuses shapes that do not go together
        reason = str(error) if isinstance(error, _WrongTensorError) else "shapes that do not go together"
        raise InputError(f"{path}: the checkpoint is of another architecture than {name} ({reason})") from None
    model = openvino.Model(list(outputs.values()), [images], stage)
    model.inputs[0].set_names({INPUT})
    for output, output_name in zip(model.outputs, outputs, strict=True):
        output.set_names({output_name})
    return model


def n_outputs(card: dict[str, Any]) -> int:
    """The number of a card's classes that its network tells apart, or of the channels that it draws."""
    if card["stage"] == "classification":
        return len(ClassList.from_card(card).outputs)
    return len(card.get("regions") or card.get("outlines") or (None,))


_STAGES = ("layer1", "layer2", "layer3", "layer4")


class _WrongTensorError(Exception):
    """A tensor is missing, or one too many."""


class _Weights:
    """The tensors of a file. Each is used once."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._arrays = {n: a for n, a in arrays.items() if not n.endswith("num_batches_tracked")}

    def take(self, name: str, *shape: int) -> openvino.Node:
        """A tensor as a constant in float32, in another shape if one is given; held in the precision of the file."""
        if name not in self._arrays:
            raise _WrongTensorError(f"it has no {name}")
        array = self._arrays.pop(name)
        return ops.convert(ops.constant(array.reshape(shape) if shape else array), np.float32)

    def has(self, name: str) -> bool:
        return name in self._arrays

    def check_all_used(self) -> None:
        if self._arrays:
            raise _WrongTensorError(f"{len(self._arrays)} tensors are left, such as {min(self._arrays)}")


def _normalized(images: openvino.Node, card: dict[str, Any]) -> openvino.Node:
    """Prepared slices -> three normalized channels."""
    normalization = normalization_of(card, IMAGENET)
    mean, std = (np.array(t, np.float32).reshape(1, 3, 1, 1) for t in (normalization.mean, normalization.std))
    # One multiplication and one sum: in bfloat16 each step rounds, and a slice has only 8 bits to lose.
    gray = ops.unsqueeze(ops.convert(images, np.float32), 1)
    return ops.add(ops.multiply(gray, 1 / (255 * std)), -mean / std)


def _convolution(weights: _Weights, x: openvino.Node, name: str, stride: int = 1, bias: bool = False) -> openvino.Node:
    kernel = weights.take(f"{name}.weight")
    pad = [side // 2 for side in list(kernel.shape)[2:]]
    x = ops.convolution(x, kernel, [stride, stride], pad, pad, [1, 1])
    return ops.add(x, weights.take(f"{name}.bias", 1, -1, 1, 1)) if bias else x


def _normed(weights: _Weights, x: openvino.Node, convolution: str, norm: str, stride: int = 1) -> openvino.Node:
    """A convolution and its batch normalization."""
    x = _convolution(weights, x, convolution, stride)
    scale, shift, mean, variance = (
        weights.take(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")
    )
    return ops.batch_norm_inference(x, scale, shift, mean, variance, _EPSILON)


def _block(weights: _Weights, x: openvino.Node, prefix: str, stride: int, depth: int) -> openvino.Node:
    """A residual block of `depth` convolutions; torchvision gives the stride to the first that is 3 by 3."""
    y = x
    for number in range(1, depth + 1):
        step = stride if number == depth - 1 else 1
        y = _normed(weights, y, f"{prefix}.conv{number}", f"{prefix}.bn{number}", step)
        y = ops.relu(y) if number < depth else y
    if weights.has(f"{prefix}.downsample.0.weight"):
        x = _normed(weights, x, f"{prefix}.downsample.0", f"{prefix}.downsample.1", stride)
    return ops.relu(ops.add(y, x))


def _resnet(weights: _Weights, batch: openvino.Node, name: str, prefix: str = "") -> list[openvino.Node]:
    """The feature maps of the stem and of the four stages."""
    stem = ops.relu(_normed(weights, batch, f"{prefix}conv1", f"{prefix}bn1", stride=2))
    maps = [stem]
    x = ops.max_pool(stem, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
    for stage, blocks in zip(_STAGES, RESNETS[name], strict=True):
        for block in range(blocks):
            stride = 2 if block == 0 and stage != "layer1" else 1
            x = _block(weights, x, f"{prefix}{stage}.{block}", stride, depth=2 if name in _BASIC else 3)
        maps.append(x)
    return maps


def _classifier(
    weights: _Weights, batch: openvino.Node, name: str, layer: str | None, n_outputs: int
) -> dict[str, openvino.Node]:
    maps = _resnet(weights, batch, name)
    last, kernel, bias = maps[-1], weights.take("fc.weight"), weights.take("fc.bias")
    if kernel.shape[0] != n_outputs:
        raise _WrongTensorError(f"fc.weight has {kernel.shape[0]} classes, the card {n_outputs}")
    pooled = ops.reduce_mean(last, [2, 3])
    outputs = {"logits": ops.add(ops.matmul(pooled, kernel, False, True), bias)}
    if layer is not None:
        outputs["features"] = _pooled(maps[1 + _STAGES.index(layer)])
    outputs[CLASS_MAPS] = ops.convolution(last, ops.unsqueeze(kernel, [2, 3]), [1, 1], [0, 0], [0, 0], [1, 1])
    return outputs


def _pooled(x: openvino.Node) -> openvino.Node:
    """`classification.network.pooled`: mean and standard deviation of each feature map over its pixels."""
    mean = ops.reduce_mean(x, [2, 3], keep_dims=True)
    deviation = ops.sqrt(ops.reduce_mean(ops.power(ops.subtract(x, mean), np.float32(2)), [2, 3]))
    return ops.concat([ops.squeeze(mean, [2, 3]), deviation], axis=1)


def _segmenter(
    weights: _Weights, batch: openvino.Node, name: str, levels: int, n_channels: int
) -> dict[str, openvino.Node]:
    *skips, x = [batch, *_resnet(weights, batch, name, "encoder.")]
    for level in range(levels):
        skip = skips.pop()
        x = _enlarged(x, [side.get_length() for side in list(skip.output(0).get_partial_shape())[2:]])
        x = ops.concat([x, skip], axis=1) if skips else x  # the last level joins no feature maps
        for part in ("conv1", "conv2"):
            block = f"decoder.blocks.{level}.{part}"
            x = ops.relu(_normed(weights, x, f"{block}.0", f"{block}.1"))
    logits = _convolution(weights, x, "segmentation_head.0", bias=True)
    drawn = list(logits.output(0).get_partial_shape())[1].get_length()
    if drawn != n_channels:
        raise _WrongTensorError(f"segmentation_head.0.weight has {drawn} channels, the card {n_channels}")
    levels_255 = ops.round(ops.multiply(ops.sigmoid(logits), np.float32(255)), "half_to_even")
    return {"map": ops.convert(levels_255, np.uint8)}


def _enlarged(x: openvino.Node, sides: Sequence[int]) -> openvino.Node:
    """Feature maps on a finer grid, each pixel repeated."""
    return ops.interpolate(
        x,
        list(sides),
        "nearest",
        "sizes",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        axes=[2, 3],
    )
