"""Training of the segmenter, from data folders to a run folder with weights, card and curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from tumorlens.data.cards.weights import save_weights
from tumorlens.data.datasets.sample import has_truth
from tumorlens.data.devices import pick_device, wants_bf16
from tumorlens.data.errors import InputError
from tumorlens.data.training.curves import plot_learning_curves
from tumorlens.data.training.loaders import epoch_slices, loaders
from tumorlens.data.training.module import check_steps, chooses_epoch, sides
from tumorlens.data.training.networks import freeze_stem
from tumorlens.data.training.out_of_fold import check_coverage
from tumorlens.data.training.partition import Partition, load_partition
from tumorlens.data.training.run_folder import (
    check_run,
    chosen_state,
    describe_run,
    plain_config,
    write_config,
    write_metrics_table,
)
from tumorlens.data.training.trainer import fit as run_loop
from tumorlens.data.training.trainer import make_trainer
from tumorlens.segmentation.config import SegmenterConfig
from tumorlens.segmentation.evaluation.metrics import segmentation_metrics, write_scores
from tumorlens.segmentation.evaluation.plots import plot_dice
from tumorlens.segmentation.heads import label_head
from tumorlens.segmentation.model import build_segmenter, initialise_encoder
from tumorlens.segmentation.module import SegmenterModule, build_module, check_size
from tumorlens.segmentation.network import predict_maps
from tumorlens.segmentation.operating_point import (
    POINTS,
    Evidence,
    choose_operating_point,
    read_evidence,
    score_points,
    write_points,
)
from tumorlens.segmentation.postprocess import clean_mask

Say = Callable[[str], None]


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
