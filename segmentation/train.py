"""Training of the segmenter, from data folders to a run folder with weights, card and curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.sample import has_truth
from tumorlens.data.errors import InputError
from tumorlens.data.training.module import input_sizes
from tumorlens.data.training.networks import freeze_stem
from tumorlens.data.training.out_of_fold import find_evidence
from tumorlens.data.training.partition import Partition
from tumorlens.data.training.run import Progress, Run, Say
from tumorlens.data.training.run_folder import describe_run, plain_config
from tumorlens.segmentation.config import SegmenterConfig
from tumorlens.segmentation.evaluation.metrics import segmentation_metrics, write_scores
from tumorlens.segmentation.evaluation.plots import plot_dice
from tumorlens.segmentation.heads import label_head
from tumorlens.segmentation.model import build_segmenter, initialize_encoder
from tumorlens.segmentation.module import build_module, check_input_size
from tumorlens.segmentation.network import TorchNetwork
from tumorlens.segmentation.operating_point import POINTS, fit_operating_point, read_evidence
from tumorlens.segmentation.postprocess import clean_mask

if TYPE_CHECKING:
    from torch import nn


def train_segmenter(
    config: SegmenterConfig,
    out: Path,
    resume: bool = False,
    progress: bool = True,
    say: Say = print,
    prepared: Progress | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Train, choose the best epoch on validation patients, measure it on the test fold, and write the run folder.

    Args, return value and errors are those of `classification.train.train_classifier`.
    """
    run = Run.begin(config, out, resume, progress, say)
    evidence = find_evidence(config, read_evidence)
    model = initial_model(run, config)

    parts = run.load_data(has_truth, evidence, prepared)
    check_masks(config, parts)

    module = build_module(config, parts, model)
    run.train(module, parts, "val_dice", negative_share=config.negative_share)
    epoch = run.load_best_epoch(module)

    network = TorchNetwork(module.model, run.device, module.normalization, run.half)
    maps = network(parts.validation.images)
    point = fit_operating_point(maps, parts.validation.masks, out / POINTS, evidence)
    metrics = measure(network, parts, maps, point, out) if evidence is None else evidence.figures

    card = {
        "stage": "segmentation",
        "architecture": config.arch,
        "encoder": config.encoder,
        "decoder_channels": list(config.decoder_channels),
        "input_size": config.size,
        "normalization": plain_config(module.normalization),
        "operating_point": point,
        "metrics": metrics,
        **describe_run(out, parts, epoch, command),
    }
    return run.save(module.model.state_dict(), card, headline(config, metrics))


def initial_model(run: Run, config: SegmenterConfig) -> nn.Module:
    """The network before training.

    Built before the data are read, so that a wrong setting does not cost you the time of reading them.

    Raises:
        InputError: Unknown network or initial weights, or settings that the network does not support.
    """
    model = build_segmenter(config.arch, config.encoder, config.decoder_channels)
    for size in input_sizes(config):
        check_input_size(model, config.arch, config.encoder, size)
    if run.checkpoint is None:
        if config.init == "imagenet":
            run.check_sources()
        run.say(f"initial weights: {initialize_encoder(model, config.encoder, config.init)}")
    if config.freeze_stem:
        freeze_stem(getattr(model, "encoder", model))
    if config.label_weight > 0:
        label_head(model)  # raises where the network has no encoder
    return model


def check_masks(config: SegmenterConfig, parts: Partition) -> None:
    """Raise an `InputError` if no training slice, or no validation slice, has a tumor mask."""
    for name, part in (("training", parts.train), ("validation", parts.validation)):
        if not part.masks.any() and (len(part) or name == "training"):
            raise InputError(f"{', '.join(config.data)}: no {name} slice has a tumor mask")


def measure(
    network: TorchNetwork, parts: Partition, validation_maps: NDArray[np.uint8], point: dict[str, float], out: Path
) -> dict[str, Any]:
    """Metrics of the validation and test patients, ``{"validation": ..., "test": ...}``.

    Writes a table of Dice scores and a plot of each to the run's folder.
    """
    metrics: dict[str, Any] = {}
    for name, part in parts.held_out().items():
        maps = validation_maps if name == "validation" else network(part.images)
        masks = np.stack([clean_mask(m, point["mask_threshold"], int(point["min_lesion_px"])) for m in maps])
        write_scores(out / f"{name}.csv", part, masks)
        metrics[name] = segmentation_metrics(part, masks)
        plot_dice(part, masks, out / f"dice_{name}.png", f"{name} patients")
    return metrics


def headline(config: SegmenterConfig, metrics: dict[str, Any]) -> str:
    """The test Dice of tumor slices in a sentence."""
    if config.split == "all":
        return "on all patients; the figures are those of held-out patients"
    dice = metrics["validation" if config.split == "holdout" else "test"]["dice_tumor"]
    return f"{config.tested}: tumor-slice Dice {dice if dice is None else round(dice, 4)}"
