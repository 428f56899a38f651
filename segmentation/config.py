"""Settings of a segmenter's training. Needs neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass

from tumorlens.data.config import TrainingConfig, setting

DEFAULT = "unet"
ENCODER = "resnet50"

# Half of SMP's default width: on the coarse levels a third of the operations, with no loss that training showed.
DECODER_CHANNELS = (128, 96, 64, 32, 16)


@dataclass(frozen=True)
class SegmenterConfig(TrainingConfig):
    """Settings of a segmenter's training run. The Makefile holds those of `make weights`.

    `arch` is one of `segmentation.model.ARCHITECTURES`; `decoder_channels` are the widths of the decoder's five stages.
    The linear layer of `label_weight` stands on the encoder's last features and is dropped after training. A classifier
    that starts from this encoder needs less training of its own. Slices without a lesion teach little that the gate
    does not know, and cost as much as the others: hence `negative_share`. `own_outlines` is `segmentation.heads`.
    """

    init: str = setting(
        "imagenet", "Encoder's first weights: imagenet (downloaded), none, or a weight file (a trained classifier)."
    )
    batch_size: int = setting(16, "Slices a step.", least=1)
    transplant: float = setting(
        0.2, "Share of slices whose lesion is healed or replaced, against shortcuts.", least=0, most=1
    )
    arch: str = setting(DEFAULT, "unet (with a residual encoder: Res-U-Net), unet++, unet-scse or plain-unet.")
    encoder: str = setting(ENCODER, "Any encoder of segmentation-models-pytorch; tu-NAME for timm's.")
    decoder_channels: tuple[int, ...] = DECODER_CHANNELS
    label_weight: float = setting(0.0, "Weight of a loss by which the encoder has to name the tumor; 0: none.", least=0)
    negative_share: float = setting(
        0.0,
        "At most this share of an epoch's slices shows no lesion, before --transplant heals others; 0: as they come.",
        least=0,
        most=0.9,
    )
    own_outlines: bool = setting(
        False,
        "Train one output layer per data set, because data sets outline lesions differently; the average is saved.",
    )
