"""Grad-CAM: which parts of a slice speak for a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.visualize import GradCAM, ModelWithHooks
from numpy.typing import NDArray
from torch import nn

from tumorlens.data.errors import InputError


def grad_cam(
    model: nn.Module, batch_nchw: torch.Tensor, class_indices: Sequence[int] | NDArray[Any]
) -> NDArray[np.float32]:
    """Grad-CAM (R. Selvaraju et al., ICCV 2017) by MONAI: the parts of each slice that speak for a class.

    The output of `target_layer` is weighted. The network runs in evaluation mode, and its modes and parameters are
    restored.

    Args:
        model: Any convolutional network that gives logits ``(n, c)``.
        batch_nchw: From `data.preprocessing.normalization.to_batch`.
        class_indices: ``(n,)`` the class to explain in each slice.

    Returns:
        ``(n, h, w)`` on the batch's own grid, 0 .. 1: each map divided by its maximum, all 0 where nothing speaks for
        the class.

    Raises:
        InputError: The network has no feature maps to weight.
    """
    if not len(batch_nchw):
        return np.zeros((0, *batch_nchw.shape[2:]), np.float32)
    where = next(model.parameters()).device
    with _eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        batch = batch_nchw.to(where)
        chosen = torch.as_tensor(np.asarray(class_indices), device=where).long()
        with _Watched(model, target_layer(model, tuple(batch.shape[1:]))) as watched:
            maps = GradCAM(watched, watched.target_layers, postprocessing=_share_of_maximum)(batch, class_idx=chosen)
    return maps[:, 0].detach().float().cpu().numpy()


class _Watched(ModelWithHooks):
    """MONAI's wrapper with a class for each slice, gradients only down to the layer, and no hook left behind.

    Gradients that end at the layer halve the time, and later layers may work in place.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__(model, layer)
        self.register_forward = self.register_backward = True
        self._handle = model.get_submodule(layer).register_forward_hook(self._watch)

    def _watch(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        (name,) = self.target_layers
        features = output.detach().requires_grad_()
        features.register_hook(lambda gradient: self.gradients.__setitem__(name, gradient))
        self.activations[name] = features
        return features.clone()

    def class_score(self, logits: torch.Tensor, class_idx: Any) -> torch.Tensor:
        return logits.gather(1, class_idx[:, None])[:, 0]

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def _share_of_maximum(maps: torch.Tensor) -> torch.Tensor:
    return maps / maps.amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients of the parameters, until the block ends."""
    training = [(module, module.training) for module in model.modules()]
    gradients = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, requires, gradient in gradients:
            parameter.requires_grad_(requires)
            parameter.grad = gradient


def target_layer(model: nn.Module, input_chw: tuple[int, ...] = (3, 224, 224)) -> str:
    """Name of the module that ends the last convolution's block: the last output on the last convolution's grid.

    ``layer4`` in torchvision's ResNets, the last ReLU before pooling in VGG and AlexNet. Found by one pass of zeros.

    Args:
        model: Its training mode is restored.
        input_chw: Shape of one network input.

    Raises:
        InputError: There is no convolution, or tokens follow the last one (a transformer, an MLP-Mixer), so that no
            feature map tells the classes apart.
    """
    name = type(model).__name__
    outputs = _outputs(model, input_chw)
    last = max((i for i, (_, module, shape) in enumerate(outputs) if _convolves(module, shape)), default=None)
    if last is None:
        raise InputError(f"{name} has no convolution, so Grad-CAM cannot explain it")
    grid = outputs[last][2][2:]
    target = max(i for i, (_, _, shape) in enumerate(outputs) if len(shape) == 4 and shape[2:] == grid)
    if any(_makes_tokens(module, shape) for _, module, shape in outputs[target:]):
        raise InputError(f"{name} turns its feature maps into tokens, so Grad-CAM cannot explain it")
    return outputs[target][0]


def _convolves(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a module is a 2-D convolution over more than one pixel: pooled features have no place in the picture."""
    return isinstance(module, nn.Conv2d) and max(shape[2:]) > 1


def _makes_tokens(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a module's output is tokens x channels, or rows x columns x channels as in a Swin transformer."""
    return len(shape) == 3 or (len(shape) == 4 and isinstance(module, nn.Linear))


def _outputs(model: nn.Module, input_chw: tuple[int, ...]) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Name, module and output shape of all parts of a model, in the order in which they finish."""
    outputs: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                outputs.append((name, module, tuple(output.shape)))

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if name]
    try:
        with _eval_mode(model), torch.no_grad():
            model(torch.zeros(1, *input_chw, device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return outputs
