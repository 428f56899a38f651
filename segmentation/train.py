"""Training of the segmenter, from data folders to a run folder with weights, card and curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from monai.metrics import DiceMetric
from torch import nn
from torch.nn import functional as F

from data.cards import save_weights
from data.compute import pick_device, wants_bf16
from data.errors import InputError
from data.labels import CLASSES, NO_TUMOR
from data.loaders import to_batch
from data.networks import freeze_stem, still_stem
from data.out_of_fold import check_coverage
from data.partition import Partition, load_partition
from data.readers import open_scan
from data.recipe import (
    Stage,
    TrainingConfig,
    adamw_one_cycle,
    check_steps,
    chooses_epoch,
    describe_run,
    epoch_slices,
    loaders,
    sides,
    to_small_batch,
    total_steps,
)
from data.run_plots import plot_learning_curves
from data.samples import Sample
from data.trainer import check_run, chosen_state, make_trainer, plain_config, write_config, write_metrics_table
from data.trainer import fit as run_loop
from segmentation.evaluate import predict_maps, segmentation_metrics, write_scores
from segmentation.loss import CrossEntropyDice
from segmentation.model import (
    DECODER_CHANNELS,
    DEFAULT,
    ENCODER,
    build_segmenter,
    check_size,
    encoder_normalization,
    initialise_encoder,
)
from segmentation.operating_point import (
    POINTS,
    Evidence,
    choose_operating_point,
    read_evidence,
    score_points,
    write_points,
)
from segmentation.outlines import OwnOutlines
from segmentation.plots import plot_dice
from segmentation.postprocess import clean_mask

Say = Callable[[str], None]


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
        own_outlines: Give each data set a last layer of its own (`segmentation.outlines`).
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


class SegmenterModule(Stage):
    """A segmenter with cross-entropy + Dice, AdamW and a one-cycle schedule; its encoder may have to name the tumor."""

    def __init__(
        self, config: SegmenterConfig, model: nn.Module, total_steps: int, outlined: Sequence[int] = (1,)
    ) -> None:
        super().__init__()
        self.config, self.total_steps = config, total_steps
        self.normalization = encoder_normalization(config.arch, config.encoder)
        self.model = model.to(memory_format=torch.channels_last)
        self.loss = CrossEntropyDice()
        self.label_head = label_head(model) if config.label_weight > 0 else None
        self.own = OwnOutlines(model, outlined) if config.own_outlines else None
        self.dice = DiceMetric(include_background=True, ignore_empty=False)

    def forward(self, images_nhw: torch.Tensor) -> torch.Tensor:
        return self.model(to_batch(images_nhw, self.normalization))

    def on_train_epoch_start(self) -> None:
        if self.config.freeze_stem:
            still_stem(self.model.get_submodule("encoder"))

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        images = to_small_batch(batch["image"], self.normalization, self.config, self.current_epoch)
        logits, names = self._draw_and_name(images, batch["source"])
        truth = batch["mask"][:, None].float()
        if logits.shape != truth.shape:
            logits = F.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
        loss = self.loss(logits, truth)
        known = batch["label"] >= 0
        if names is not None and known.any():
            loss = loss + self.config.label_weight * F.cross_entropy(names[known], batch["label"][known])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["mask"]))
        return loss

    def _draw_and_name(self, images: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the pixels, as a slice's own data set outlines, and of the labels if there is a layer for them."""
        if self.label_head is None and self.own is None:
            return self.model(images).float(), None
        network: Any = self.model
        features = network.encoder(images)
        decoded = network.decoder(features)
        logits = network.segmentation_head(decoded) if self.own is None else self.own(decoded, source)
        return logits.float(), None if self.label_head is None else self.label_head(features[-1]).float()

    def on_validation_start(self) -> None:
        self.on_train_epoch_end()

    def on_train_epoch_end(self) -> None:  # before checkpoints are written
        if self.own is not None:
            self.own.give_mean(self.model)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        logits = self(batch["image"]).float()
        truth = batch["mask"][:, None].float()
        self.dice((logits > 0).float(), truth)
        self.log("val_loss", self.loss(logits, truth), batch_size=len(logits))

    def on_validation_epoch_end(self) -> None:
        self.log("val_dice", float(self.dice.aggregate()), prog_bar=True)
        self.dice.reset()

    def configure_optimizers(self) -> Any:
        return adamw_one_cycle(self, self.config, self.total_steps)  # the label head learns, too


def train_segmenter(
    config: SegmenterConfig,
    out: Path,
    resume: bool = False,
    progress: bool = True,
    say: Say = print,
    prepared: Callable[[int, int], None] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Train, pick the best epoch on validation patients, measure it on the test fold, write the run folder.

    Args, return value and errors are those of `classification.train.train_classifier`.
    """
    checkpoint = check_run(out, config, resume)
    evidence = find_evidence(config)
    L.seed_everything(config.seed, verbose=False)
    model = build_segmenter(config.arch, config.encoder, config.decoder_channels)
    for side in sides(config):
        check_size(model, config.arch, config.encoder, side)
    if checkpoint is None:  # before the data are read: a wrong name should not cost the user that time
        say(f"initial weights: {initialise_encoder(model, config.encoder, config.init)}")
    if config.freeze_stem:
        freeze_stem(getattr(model, "encoder", model))
    if config.label_weight > 0:
        label_head(model)
    parts = load_partition(config, keep=has_truth, progress=prepared)
    say(str(parts))
    if evidence is not None:
        check_coverage(config.out_of_fold, evidence.patients, [s.patient for s in parts.train.samples])
    for name, part in (("training", parts.train), ("validation", parts.validation)):
        if not part.masks.any() and (len(part) or name == "training"):
            raise InputError(f"{', '.join(config.data)}: no {name} slice has a tumor mask")
    module = build_module(config, parts, model)
    check_steps(module, config, epoch_slices(config, parts, config.negative_share))
    write_config(out, config)
    fit(module, config, parts, out, checkpoint, progress)
    return finish(module, config, parts, out, say, command, evidence)


def find_evidence(config: SegmenterConfig) -> Evidence | None:
    """The out-of-fold scores that a run on all patients needs.

    Raises:
        InputError: They are missing, of another recipe, or given to a run with validation patients of its own.
    """
    if bool(config.out_of_fold) != (config.split == "all"):
        raise InputError("a run on all patients (--split all) needs a cross-validation (--out-of-fold), and only it")
    return read_evidence(config.out_of_fold, plain_config(config)) if config.out_of_fold else None


def label_head(model: nn.Module) -> nn.Module:
    """A linear layer on the mean of the encoder's last features, ``(n, c, h, w)`` to ``(n, 4)``.

    Raises:
        InputError: The segmenter has no encoder of segmentation-models-pytorch.
    """
    channels = getattr(getattr(model, "encoder", None), "out_channels", None)
    if not channels:
        raise InputError("--label-weight needs a segmenter with an encoder; a plain U-Net has none")
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], len(CLASSES)))


def has_truth(sample: Sample) -> bool:
    """Whether a sample says where the tumor is: by a mask, inside a MATLAB file, or by having none."""
    if sample.mask is not None or sample.label in ("", CLASSES[NO_TUMOR]):
        return True
    if sample.image.suffix.lower() != ".mat":
        return False
    said = open_scan(sample.image).annotation
    return said is not None and said.mask is not None


def build_module(config: SegmenterConfig, parts: Partition, model: nn.Module | None = None) -> SegmenterModule:
    """A module around a model (a fresh one, if none is given) whose schedule spans the whole run."""
    model = model or build_segmenter(config.arch, config.encoder, config.decoder_channels)
    sick = parts.train.masks.any(axis=(1, 2))
    sources = np.array([sample.source for sample in parts.train.samples])
    outlined = np.bincount(sources[sick], minlength=len(config.data))
    return SegmenterModule(config, model, total_steps(config, parts, config.negative_share), outlined.tolist())


def fit(
    module: SegmenterModule, config: SegmenterConfig, parts: Partition, out: Path, checkpoint: Path | None, bar: bool
) -> None:
    """Run the training loop; leaves ``checkpoints/last.ckpt``, and ``best.ckpt`` where validation chooses."""
    training, validation = loaders(config, parts, negative_share=config.negative_share)
    chooses = chooses_epoch(config, parts)
    trainer = make_trainer(out, config, "val_dice" if chooses else None, bar)
    run_loop(trainer, module, training, validation if chooses else None, checkpoint)


def finish(
    module: SegmenterModule,
    config: SegmenterConfig,
    parts: Partition,
    out: Path,
    say: Say,
    command: str,
    evidence: Evidence | None = None,
) -> dict[str, Any]:
    """Load the best epoch, choose the operating point on validation, measure test, write plots, weights and card. A run
    on all patients has neither; the figures on its card are those of the cross-validation."""
    state, epoch = chosen_state(out)
    module.load_state_dict(state)
    results: dict[str, Any] = {} if evidence is None else evidence.figures
    half = wants_bf16(config.precision, pick_device(config.device))
    maps = predict_maps(module.model, parts.validation.images, config.device, module.normalization, half=half)
    if evidence is None:
        scores = score_points(maps, parts.validation.masks)
        write_points(out / POINTS, scores)
    else:
        scores = evidence.scores
    point = choose_operating_point(scores)
    for name, part in (("validation", parts.validation), ("test", parts.test)):
        if not len(part):
            continue
        if name == "test":
            maps = predict_maps(module.model, part.images, config.device, module.normalization, half=half)
        masks = np.stack([clean_mask(m, point["mask_threshold"], int(point["min_lesion_px"])) for m in maps])
        write_scores(out / f"{name}.csv", part, masks)
        results[name] = segmentation_metrics(part, masks)
        plot_dice(part, masks, out / f"dice_{name}.png", f"{name} patients")
    plot_learning_curves(write_metrics_table(out), out / "curves.png")
    card = save_weights(
        module.model.state_dict(),
        out / "segmenter.safetensors",
        {
            "stage": "segmentation",
            "architecture": config.arch,
            "encoder": config.encoder,
            "decoder_channels": list(config.decoder_channels),
            "input_size": config.size,
            "normalization": plain_config(module.normalization),
            "operating_point": point,
            "metrics": results,
            **describe_run(out, parts, epoch, command),
        },
    )
    measured = "on all patients, test figures are the cross-validation's"
    if "test" in results:
        dice = results["test"]["dice_tumor"]
        measured = f"{config.tested}: tumor-slice Dice {dice if dice is None else round(dice, 4)}"
    say(f"{measured}, weights in {out}")
    return card
