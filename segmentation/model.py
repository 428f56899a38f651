"""The segmenters by name, their encoders, and the encoders' initial weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
from monai.networks.nets import BasicUNet
from torch import nn

from tumorlens.data.cards.lineage import card_of
from tumorlens.data.cards.weights import read_state
from tumorlens.data.errors import InputError, reason_of
from tumorlens.data.masks.regions import Regions
from tumorlens.data.preprocessing.normalization import IMAGENET, Normalization
from tumorlens.segmentation.config import DECODER_CHANNELS, DEFAULT, ENCODER, SHIPPED


def _plain_unet(classes: int, **_: Any) -> nn.Module:
    """A U-Net without a pretrained encoder: five levels, two convolutions each, as in 2015 but narrower."""
    return BasicUNet(spatial_dims=2, in_channels=3, out_channels=classes, features=(32, 32, 64, 128, 256, 32))


# With a residual encoder, the first is the Res-U-Net. U-Net++: Z. Zhou et al., DLMIA 2018. scSE, concurrent spatial and
# channel squeeze & excitation: A. Roy et al., MICCAI 2018.
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "unet": smp.Unet,
    "unet++": smp.UnetPlusPlus,
    "unet-scse": lambda **settings: smp.Unet(decoder_attention_type="scse", **settings),
    "plain-unet": _plain_unet,
}

_HEADS = ("segmentation_head.0.", "final_conv.")  # of segmentation-models-pytorch, of the plain U-Net
_HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_DPN = Normalization((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
_NORMALIZATIONS = {"inception": _HALF, "xception": _HALF, "efficientnet_lite": _HALF, "dpn": _DPN}


def build_segmenter(
    arch: str = DEFAULT,
    encoder: str = ENCODER,
    decoder_channels: tuple[int, ...] = DECODER_CHANNELS,
    channels: int = 1,
) -> nn.Module:
    """A U-Net (O. Ronneberger et al., MICCAI 2015) with random weights and some logits a pixel.

    Args:
        arch: One of `ARCHITECTURES`.
        encoder: Any encoder of segmentation-models-pytorch (``tu-NAME`` takes those of timm); not for ``plain-unet``.
        decoder_channels: Width of the decoder's five stages; not for ``plain-unet``.
        channels: Number of the logits: of conventions by which it outlines lesions, or of regions.

    Input ``(n, 3, h, w)`` as `data.preprocessing.normalization.to_batch` gives it, sides divisible by 32; output
    ``(n, channels, h, w)``.

    Raises:
        InputError: The architecture or the encoder is unknown, they do not go together, or the widths are no five whole
            numbers.
    """
    if arch not in ARCHITECTURES:
        raise InputError(f"architecture {arch!r} is not one of {', '.join(ARCHITECTURES)}")
    widths = decoder_channels if isinstance(decoder_channels, Sequence) else ()
    if len(widths) != len(DECODER_CHANNELS) or not all(isinstance(n, int) and n > 0 for n in widths):
        example = ", ".join(map(str, DECODER_CHANNELS))
        raise InputError(f"decoder_channels {decoder_channels!r}: give five whole numbers from 1 on, such as {example}")
    try:
        return ARCHITECTURES[arch](
            encoder_name=encoder, encoder_weights=None, decoder_channels=tuple(decoder_channels), classes=channels
        )
    except KeyError:
        raise InputError(f"encoder {encoder!r} is not one of segmentation-models-pytorch's") from None
    except (ValueError, RuntimeError, TypeError, AssertionError) as error:
        raise InputError(f"encoder {encoder!r} does not go with {arch} ({reason_of(error)})") from None


def channel_names(card: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the channels of a card's network: conventions or regions; empty for one without a name."""
    return tuple(card.get("outlines") or Regions.from_card(card).names)


def encoder_normalization(arch: str, encoder: str) -> Normalization:
    """The normalization that an encoder's pretrained weights expect; ImageNet's by default."""
    if arch == "plain-unet":
        return IMAGENET
    if encoder.startswith("tu-"):
        import timm

        settings = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return IMAGENET if settings is None else Normalization(tuple(settings.mean), tuple(settings.std))
    # SMP has these on its hub, which prediction must not need; all families but the following use ImageNet's.
    return next((values for family, values in _NORMALIZATIONS.items() if family in encoder), IMAGENET)


def initialize_segmenter(
    model: nn.Module, encoder: str = ENCODER, init: str = "imagenet", names: Sequence[str] = ()
) -> str:
    """Load the initial weights of a new segmenter, or of its encoder; returns one line that reports them.

    Args:
        model: From `build_segmenter`.
        encoder: The encoder's name.
        init: ``"imagenet"`` (downloaded by SMP), ``"shipped"``, ``"none"``, or a ``.safetensors``, ``.pth`` or
            ``.ckpt`` file with torchvision's names: a trained classifier, for instance. A segmenter's file also has a
            decoder and a last layer, whose channels are taken by the names of their conventions or regions. A name that
            it lacks takes its first channel, and so does a model without names.
        names: Of the model's channels.

    Raises:
        InputError: The download fails, the file is missing, none of its tensors fits, or the shipped segmenter is of
            another architecture.
    """
    inner = getattr(model, "encoder", None)
    if inner is None and init in ("imagenet", "none"):
        return "a plain U-Net has no pretrained encoder; all from chance"
    card: dict[str, Any] = {}
    source = Path(init).name
    if init == "none":
        return "all from chance"
    if init == "imagenet":
        try:
            state = smp.encoders.get_encoder(encoder, weights="imagenet").state_dict()
        except Exception as error:  # the hub client raises types of its own for every way to be offline
            raise InputError(
                f"ImageNet weights of {encoder} cannot be downloaded ({type(error).__name__}); give "
                f"{'--init shipped, ' if encoder == ENCODER else ''}a file with --init FILE, or --init none"
            ) from None
    else:
        path = SHIPPED if init == "shipped" else Path(init)
        state, card = read_state(path), card_of(path)
        source = "the shipped segmenter" if init == "shipped" else source
    whole = inner is None or any(name.startswith("encoder.") for name in state)
    part: Any = model if whole else inner
    kind = "segmenter" if whole else "encoder"
    own = part.state_dict()
    had = channel_names(card)
    for name, tensor in state.items():
        if name.startswith(_HEADS) and name in own and len(tensor) in (1, len(had)):
            state[name] = tensor[[had.index(n) if n in had else 0 for n in names or [""] * len(own[name])]]
    fitting = {n: t.float() for n, t in state.items() if n in own and own[n].shape == t.shape and t.dim() > 0}
    if not fitting and inner is None:
        raise InputError(f"--init {init}: a plain U-Net has no encoder that these weights could fit")
    if not fitting:
        raise InputError(f"{init}: none of its {len(state)} tensors fits the {kind} {encoder}")
    part.load_state_dict(fitting, strict=False)
    weights = [n for n in own if not n.endswith("num_batches_tracked")]
    fresh = sorted({n.split(".")[0] for n in weights if n not in fitting})
    if init == "shipped" and fresh:
        raise InputError(
            f"--init shipped: the shipped segmenter is a {card['architecture']} with encoder {card['encoder']}; give "
            f"--arch {card['architecture']} --encoder {card['encoder']}"
        )
    rest = f"; from chance: {', '.join(fresh)}" if fresh else ""
    lacking = [name for name in names if name not in had]
    if whole and len(had) > 1 and (lacking or not names):
        parts = "outlines" if card.get("outlines") else "regions"
        rest += f"; of its {parts}, {had[0]}" + (f" for {', '.join(lacking)}" if lacking else "")
    return f"{len(fitting)} of {len(weights)} {kind} tensors from {source}{rest}"
