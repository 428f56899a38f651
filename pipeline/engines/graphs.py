"""Each stage as one graph in PyTorch from prepared slices to its outputs: for other programs, and for OpenVINO where
`pipeline.engines.built` does not know the architecture."""

from __future__ import annotations

import warnings
from pathlib import Path

import openvino
import torch
from torch import nn

from tumorlens.data.preprocessing.normalization import Normalization
from tumorlens.pipeline.engines.built import INPUT, OUTPUTS


class _Graph(nn.Module):
    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.model = model
        mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (normalization.mean, normalization.std))
        # One multiplication and one sum: in bfloat16 each step rounds, and a slice has only 8 bits to lose.
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def _normalized(self, images_nhw: torch.Tensor) -> torch.Tensor:
        return images_nhw.float()[:, None] * self.scale + self.shift


class ClassifierGraph(_Graph):
    """Prepared slices ``(n, size, size)`` uint8 -> logits ``(n, outputs)`` and, if a layer is named, its pooled
    features ``(n, d)``."""

    def __init__(self, model: nn.Module, normalization: Normalization, layer: str | None) -> None:
        super().__init__(model, normalization)
        self.layer = layer
        self._features: list[torch.Tensor] = []
        if layer is not None:
            model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: self._features.append(output))

    def forward(self, images_nhw: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        self._features.clear()
        logits = self.model(self._normalized(images_nhw))
        if self.layer is None:
            return logits
        return logits, _pooled(self._features.pop())


class SegmenterGraph(_Graph):
    """Prepared slices ``(n, size, size)`` uint8 -> lesion probability of each pixel, uint8, 255 is certain:
    ``(n, c, size, size)`` with a channel for each kind of outline, or each region."""

    def forward(self, images_nhw: torch.Tensor) -> torch.Tensor:
        probability = self.model(self._normalized(images_nhw)).sigmoid()
        return (probability * 255).round().to(torch.uint8)


def _pooled(output: torch.Tensor) -> torch.Tensor:
    """`classification.network.pooled` in operations that every engine has."""
    mean = output.mean((2, 3))
    deviation = ((output - mean[:, :, None, None]) ** 2).mean((2, 3)).sqrt()
    return torch.cat([mean, deviation], dim=1)


def load_graph(path: Path, stage: str) -> tuple[nn.Module, int]:
    """The graph of a weight file, in evaluation mode on the CPU, and the side of its input in pixels.

    Args:
        path: A ``.safetensors`` file, with its card in the same folder.
        stage: ``classification`` or ``segmentation``.

    Raises:
        InputError: Files are missing, damaged, or of another stage or architecture.
    """
    from tumorlens.data.cards.card import read_card

    graph: nn.Module
    if stage == "classification":
        from tumorlens.classification.network import load_network

        classifier = load_network(path, "cpu")
        graph = ClassifierGraph(classifier.model, classifier.normalization, classifier.layer)
    else:
        from tumorlens.segmentation.network import load_network as load_segmenter

        segmenter = load_segmenter(path, "cpu")
        graph = SegmenterGraph(segmenter.model, segmenter.normalization)
    return graph.eval(), int(read_card(path)["input_size"])


def to_openvino(graph: nn.Module, size: int, stage: str) -> openvino.Model:
    """A graph as an OpenVINO model for any number of slices; OpenVINO's own errors pass through."""
    example = torch.zeros(2, size, size, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(graph, example_input=example, input=[openvino.PartialShape([-1, size, size])])
    model.inputs[0].set_names({INPUT})
    for output, name in zip(model.outputs, OUTPUTS[stage], strict=False):  # a classifier may have no features
        output.set_names({name})
    return model
