"""The segmenter's network: SMP's U-Net on a residual encoder (Res-U-Net), and where its encoder starts from."""

from __future__ import annotations

from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch import nn

from data.cards import read_state
from data.errors import InputError

ARCHITECTURE = "unet"
ENCODER = "resnet50"
# Half of SMP's default width: on the coarse levels a third of the operations, with no loss that training showed.
DECODER_CHANNELS = (128, 96, 64, 32, 16)


def build_segmenter(encoder: str = ENCODER, decoder_channels: tuple[int, ...] = DECODER_CHANNELS) -> smp.Unet:
    """A U-Net (Ronneberger et al., MICCAI 2015) with a residual encoder and one logit a pixel, from chance.

    Input ``(n, 3, h, w)`` as `data.loaders.to_batch` gives it, sides divisible by 32; output ``(n, 1, h, w)``.

    Raises:
        InputError: The encoder is none of SMP's.
    """
    try:
        return smp.Unet(encoder, encoder_weights=None, decoder_channels=tuple(decoder_channels), classes=1)
    except KeyError:
        raise InputError(f"encoder {encoder!r} is none of segmentation-models-pytorch's") from None


def initialise_encoder(model: smp.Unet, encoder: str = ENCODER, init: str = "imagenet") -> str:
    """Give a fresh segmenter's encoder its first weights; returns one line on what was loaded.

    Args:
        model: From `build_segmenter`.
        encoder: The encoder's name.
        init: ``"imagenet"`` (downloaded by SMP), ``"none"``, or a ``.safetensors``, ``.pth`` or ``.ckpt`` file with
            torchvision's names: a trained classifier, for instance.

    Raises:
        InputError: No download possible, no such file, or nothing in it fits the encoder.
    """
    own = model.encoder.state_dict()
    if init == "none":
        return f"0 of {len(own)} encoder tensors; all from chance"
    if init == "imagenet":
        try:
            state = smp.encoders.get_encoder(encoder, weights="imagenet").state_dict()
        except Exception as error:  # the hub client raises types of its own for every way to be offline
            raise InputError(
                f"ImageNet weights of {encoder} cannot be downloaded ({type(error).__name__}); give a file with "
                "--init FILE, or --init none"
            ) from None
    else:
        state = read_state(Path(init))
    fitting = {n: t.float() for n, t in state.items() if n in own and own[n].shape == t.shape and t.dim() > 0}
    if not fitting:
        raise InputError(f"{init}: none of its {len(state)} tensors fits the encoder {encoder}")
    model.encoder.load_state_dict(fitting, strict=False)
    wanted = [n for n in own if not n.endswith("num_batches_tracked")]
    fresh = sorted({n.split(".")[0] for n in wanted if n not in fitting})
    rest = f"; from chance: {', '.join(fresh)}" if fresh else ""
    return f"{len(fitting)} of {len(wanted)} encoder tensors from {Path(init).name}{rest}"


def probabilities(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Lesion probability per pixel, ``(n, h, w)`` in 0..1."""
    return model(batch).float().sigmoid()[:, 0]
