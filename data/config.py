"""Settings that the trainings of both stages share; importing them needs neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SEED = 2**32 - 1  # of NumPy's and scikit-learn's generators


@dataclass(frozen=True)
class DataConfig:
    """Which data a run uses and how they are split.

    Attributes:
        data: Data folders or index files (see `data.datasets.load.load_samples`).
        fold: Test fold k; fold k+1 validates.
        split: ``"folds"``, ``"official"``, or ``"all"``: everything trains, nothing is left to validate or test.
        duplicates: What near-duplicates across the split lead to, ``"error"`` or ``"drop"``; ``"keep"`` leaves them and
            patients in two parts, in an official split, as papers do that use one.
        patients: Share of the training patients to learn from, of each class alike; fewer than all for a learning
            curve.
        label_map: The user's label names -> classes.
        size: Side of the network's input in pixels.
        seed: Of folds, order, augmentation and initialisation.
        channel: Which channel of colour pictures to take, see `data.datasets.load.load_samples`.
        prepared: Folder where prepared slices are kept for the next run (`data.training.prepared`); empty for none.
    """

    data: tuple[str, ...]
    fold: int = 0
    split: str = "folds"
    duplicates: str = "error"
    patients: float = 1.0
    label_map: tuple[tuple[str, str], ...] = ()
    size: int = 224
    seed: int = 0
    channel: int | None = None
    prepared: str = ""

    @property
    def tested(self) -> str:
        """What the run is tested on, in words."""
        return "official test part" if self.split == "official" else f"test fold {self.fold}"


@dataclass(frozen=True)
class TrainingConfig(DataConfig):
    """Settings that both stages know.

    Attributes:
        init: ``"imagenet"`` (downloaded), ``"none"``, or a weight file.
        epochs: Length of the run, and of the learning-rate schedule.
        batch_size: Slices a step.
        epoch_slices: At most so many slices an epoch, others every time; 0 takes all.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: Of AdamW.
        warmup: Share of the run until the peak.
        patience: Validations without a better figure before the run stops.
        validate_every: Epochs from one validation to the next; the last epoch has to be one of them.
        augment: Strength; 0 is none.
        turn: Share of the slices that are turned by one, two or three right angles; none without augmentation.
        transplant: Share of the slices whose lesion is healed, that get another's, or a piece of another head
            (`data.augmentation.transplant`); only slices whose lesions are known take part.
        freeze_stem: Leave the first convolution and the first stage of a ResNet as they came.
        small_epochs: Epochs at the start in which the network sees smaller pictures (progressive resizing).
        small_size: Side of those in pixels.
        workers: Processes that augment ahead; 0 stays in one process.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        precision: ``auto``, ``bf16`` or ``fp32``.
    """

    init: str = "imagenet"
    epochs: int = 8
    batch_size: int = 32
    epoch_slices: int = 0
    learning_rate: float = 4e-4
    weight_decay: float = 0.02
    warmup: float = 0.2
    patience: int = 5
    validate_every: int = 1
    augment: float = 1.0
    turn: float = 0.1
    transplant: float = 0.05
    freeze_stem: bool = False
    small_epochs: int = 0
    small_size: int = 160
    workers: int = 0
    device: str = "auto"
    precision: str = "auto"
