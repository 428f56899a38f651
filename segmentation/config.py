"""Settings of a segmenter's training. Needs neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tumorlens.data.config import TrainingConfig, setting
from tumorlens.data.errors import InputError
from tumorlens.data.labels import OUTLINES, outline_of

if TYPE_CHECKING:
    from tumorlens.data.masks.regions import Regions

DEFAULT = "unet"
LOSSES = ("bce-dice", "dice", "dicece", "dicefocal", "focal", "generalized-dice", "tversky", "jaccard", "lovasz")
FIGURES = ("dice", "dice_tumor", "loss")  # dice_tumor: of the slices with a lesion; means over the regions
_TAKEN = "tumor"  # dice_tumor cannot be the Dice of a region
ENCODER = "resnet50"
SHIPPED = Path(__file__).parent / "weights" / "segmenter.safetensors"
BY_SEQUENCE = "sequence"  # of a data set whose outlines follow `data.labels.outline_of`

# Half of SMP's default width: on the coarse levels a third of the operations, with no loss that training showed.
DECODER_CHANNELS = (128, 96, 64, 32, 16)


@dataclass(frozen=True)
class SegmenterConfig(TrainingConfig):
    """Settings of a segmenter's training run. The Makefile holds those of `make weights`.

    `arch` is one of `segmentation.model.ARCHITECTURES`; `decoder_channels` are the widths of the decoder's five stages.
    The linear layer of `label_weight` stands on the encoder's last features and is dropped after training. A classifier
    that starts from this encoder needs less training of its own. Slices without a lesion cost as much as the others:
    hence `negative_share`. Data sets outline lesions by different conventions: each named in `outline` gets a channel
    of the network's output. So does each `region`, but its channel learns from every slice: the masks say of each pixel
    in which regions it lies.
    """

    stage: ClassVar[str] = "segmentation"
    shipped: ClassVar[Path] = SHIPPED

    init: str = setting(
        "imagenet",
        "First weights: imagenet (of the encoder, downloaded), shipped (tumorlens's own segmenter), none, or a weight "
        "file (a trained segmenter, or a classifier for the encoder).",
    )
    size: int = setting(
        224,
        "Side of the network's input in pixels.",
        least=32,
        shown="that of --init where it is a whole network, else 224",
    )
    batch_size: int = setting(16, "Slices a batch, of all processes together.", least=1)
    transplant: float = setting(
        0.2, "Share of slices whose lesion is healed or replaced, against shortcuts.", least=0, most=1
    )
    arch: str = setting(DEFAULT, "unet (with a residual encoder: Res-U-Net), unet++, unet-scse or plain-unet.")
    encoder: str = setting(ENCODER, "Any encoder of segmentation-models-pytorch; tu-NAME for timm's.")
    decoder_channels: tuple[int, ...] = DECODER_CHANNELS
    loss: str = setting(  # type: ignore[misc]
        "bce-dice",
        "bce-dice (cross-entropy, and Dice of each slice and of the batch); MONAI's dice, dicece, dicefocal, focal, "
        "generalized-dice or tversky; SMP's jaccard or lovasz.",
        choices=LOSSES,
    )
    best_by: str = setting("dice", "Validation figure that chooses the epoch.", choices=FIGURES)  # type: ignore[misc]
    label_weight: float = setting(0.0, "Weight of a loss by which the encoder has to name the tumor; 0: none.", least=0)
    negative_share: float = setting(
        0.0,
        "At most this share of an epoch's slices shows no lesion, before --transplant heals others; 0: as they come.",
        least=0,
        most=0.9,
    )
    outline: tuple[str, ...] = setting(
        (),
        "What each --data outlines, in their order: what takes up contrast agent, the extent on FLAIR, or, where the "
        "index names the sequence, the one on t1c and the other elsewhere. Once for each --data, or not at all.",
        choices=(*OUTLINES, BY_SEQUENCE),
    )

    region: tuple[str, ...] = setting(
        (),
        "A part of the lesion to outline for itself, and its values in the masks, the largest part first: "
        "--region whole=1,2,4 --region core=1,4 --region enhancing=4; other values are no lesion. Not with --outline.",
        metavar="NAME=VALUES",
    )

    @property
    def regions(self) -> Regions:
        """The parts of a lesion that the network's channels outline; none where it outlines whole lesions.

        Raises:
            InputError: See `Regions.parse`; or the data sets outline lesions by conventions of their own, too.
        """
        from tumorlens.data.masks.regions import Regions  # needs NumPy

        if self.region and self.outline:
            raise InputError("--region and --outline do not go together: each gives the network's channels a meaning")
        regions = Regions.parse(self.region)
        if _TAKEN in regions.names:
            raise InputError(f"--region {_TAKEN}: this name stands for lesions as a whole; give another, such as whole")
        return regions

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The names of the network's channels: `regions` or `outlines`; empty for one channel without a name.

        Raises:
            InputError: See there.
        """
        return self.regions.names or self.outlines

    @property
    def outlines(self) -> tuple[str, ...]:
        """The conventions of the network's channels, in their order; empty for one channel without a name.

        Raises:
            InputError: There is not one known convention per data set.
        """
        if self.outline and len(self.outline) != len(self.data):
            raise InputError(
                f"{len(self.outline)} of --outline for {len(self.data)} of --data; give one for each, or none"
            )
        for name in self.outline:
            if name not in (*OUTLINES, BY_SEQUENCE):
                raise InputError(f"outline {name!r} is not one of {', '.join((*OUTLINES, BY_SEQUENCE))}")
        return tuple(name for name in OUTLINES if {name, BY_SEQUENCE} & set(self.outline))

    def channel_of(self, source: int, sequence: str) -> int:
        """The channel of the network that outlines lesions as a slice's data set does.

        Args:
            source: Number of the data set.
            sequence: One of `data.labels.SEQUENCES`, or empty.

        Raises:
            InputError: See `outlines`.
        """
        if not self.outlines:
            return 0
        own = self.outline[source]
        return self.outlines.index(outline_of(sequence) if own == BY_SEQUENCE else own)
