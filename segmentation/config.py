"""Settings of a segmenter's training; importing them needs neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass

from tumorlens.data.config import TrainingConfig

DEFAULT = "unet"
ENCODER = "resnet50"

# Half of SMP's default width: on the coarse levels a third of the operations, with no loss that training showed.
DECODER_CHANNELS = (128, 96, 64, 32, 16)


@dataclass(frozen=True)
class SegmenterConfig(TrainingConfig):
    """Settings of a segmenter's training run; those of `make weights` are in the Makefile.

    Attributes:
        arch: One of `segmentation.model.ARCHITECTURES`.
        encoder: An encoder of segmentation-models-pytorch.
        decoder_channels: Width of the decoder's five stages.
        label_weight: Weight of a second loss, by which a linear layer on the encoder's last features has to name what
            the slice shows. The layer is not kept; a classifier that starts from this encoder needs less of its own
            training. 0 is none.
        negative_share: At most this share of an epoch's slices shows no lesion, others every time, before transplants,
            which heal others; 0 takes slices as they come. Slices without a lesion teach little that the gate does not
            know, and cost as much.
        own_outlines: Give each data set a last layer of its own (`segmentation.heads`).
        out_of_fold: Folder of a cross-validation of this recipe, whose validation decides the operating point of a run
            on all patients (``split="all"``).
    """

    batch_size: int = 16
    transplant: float = 0.2
    arch: str = DEFAULT
    encoder: str = ENCODER
    decoder_channels: tuple[int, ...] = DECODER_CHANNELS
    label_weight: float = 0.0
    negative_share: float = 0.0
    own_outlines: bool = False
    out_of_fold: str = ""
