"""Training of the segmenter, from data folders to a run folder with weights, card and curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.cards.weights import read_state
from tumorlens.data.datasets.sample import has_truth
from tumorlens.data.errors import InputError
from tumorlens.data.training.module import input_sizes
from tumorlens.data.training.networks import freeze, mix_in_start
from tumorlens.data.training.out_of_fold import find_evidence
from tumorlens.data.training.partition import Partition
from tumorlens.data.training.processes import one_voice
from tumorlens.data.training.run import Progress, Run, Say
from tumorlens.data.training.run_folder import describe_run, plain_config
from tumorlens.segmentation.config import SegmenterConfig
from tumorlens.segmentation.evaluation.metrics import segmentation_metrics, write_scores
from tumorlens.segmentation.evaluation.plots import plot_dice
from tumorlens.segmentation.model import initialize_segmenter
from tumorlens.segmentation.module import build_module, check_input_size, label_head, new_segmenter
from tumorlens.segmentation.network import TorchNetwork
from tumorlens.segmentation.operating_point import POINTS, fit_operating_point, read_evidence
from tumorlens.segmentation.postprocess import clean_mask
from tumorlens.segmentation.predict import Segmenter

if TYPE_CHECKING:
    from torch import nn

    from tumorlens.data.training.prepared import PreparedSet


@one_voice()
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

    parts = run.load_data(has_truth, evidence, prepared, regions=config.regions)
    check_masks(config, parts, run.say)

    module = build_module(config, parts, model)
    initial = initial_weights(config) if config.start_share else None
    run.train(module, parts, negative_share=config.negative_share)
    epoch = run.load_best_epoch(module)
    if initial is not None:
        mix_in_start(module.model, initial, config.start_share)

    network = TorchNetwork(module.model, run.device, module.normalization, run.half)
    maps = network(parts.validation.images)
    outlined = outlined_slices(parts.validation)
    if len(parts.validation) and not outlined:
        run.say("no validation slice has an outline: the thresholds are the usual ones, and its figures compare boxes")
    point = fit_operating_point(config, maps[outlined], parts.validation.subset(outlined), out / POINTS, evidence)
    channels = {"outlines": list(config.outlines)} if config.outlines else config.regions.to_card()
    drawn = {"operating_point": point} | channels
    segmenter = Segmenter(network, drawn)
    metrics = measure(config, segmenter, parts, maps, out) if evidence is None else evidence.figures

    card = {
        "stage": "segmentation",
        "architecture": config.arch,
        "encoder": config.encoder,
        "decoder_channels": list(config.decoder_channels),
        "input_size": config.size,
        "normalization": plain_config(module.normalization),
        **drawn,
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
    model = new_segmenter(config)
    for size in input_sizes(config):
        check_input_size(model, config, size)
    if run.checkpoint is None:
        if config.init == "imagenet":
            run.check_sources()
        run.say_start(initialize_segmenter(model, config.encoder, config.init, config.channel_names))
        check_start(model, config)
    freeze(model, config.frozen_until)
    if config.label_weight > 0:
        label_head(model)  # raises where the network has no encoder
    return model


def check_start(model: nn.Module, config: SegmenterConfig) -> None:
    """Raise an `InputError` if ``--start-share`` would mix random weights in."""
    if config.start_share:
        given = read_state(config.init_file) if config.init_file else {}
        needed = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
        lacking = sorted({name.split(".")[0] for name in needed if name not in given})
        if lacking:
            raise InputError(
                f"--init {config.init}: --start-share needs a whole network, and it lacks {', '.join(lacking)}"
            )


def initial_weights(config: SegmenterConfig) -> nn.Module:
    """The network as it was before training.

    Raises:
        InputError: The initial weights are not there any more, or not those of a network of this kind.
    """
    start = new_segmenter(config)
    initialize_segmenter(start, config.encoder, config.init, config.channel_names)
    return start


def check_masks(config: SegmenterConfig, parts: Partition, say: Say) -> None:
    """Check that the masks show what the network is to learn, and say which of their labels are of no region.

    Raises:
        InputError: No training slice, or no validation slice, has a tumor mask; or no training slice shows a region.
    """
    data, regions = ", ".join(config.data), config.regions
    found = {label: f"{label} (in {n} mask{'s' * (n > 1)})" for label, n in parts.train.found.items()}
    for k, row in enumerate(regions.rows):
        if not (parts.train.masks & (1 << k)).any():
            raise InputError(
                f"{data}: no training mask shows the region {row.name}={','.join(map(str, row.values))}; the masks "
                f"have the values {', '.join(found.values()) or '0 only'}"
            )
    if others := [text for label, text in found.items() if not regions.bits_of(label)]:
        say(f"values of the masks that are of no region, and count as no lesion: {', '.join(others)}")
    for name, part in (("training", parts.train), ("validation", parts.validation)):
        if not part.masks.any() and (len(part) or name == "training"):
            raise InputError(f"{data}: no {name} slice has a tumor mask")


def outlined_slices(part: PreparedSet) -> list[int]:
    """The slices whose truth is not boxes; none where these are all without a lesion."""
    outlined = [i for i, sample in enumerate(part.samples) if not sample.weak]
    return outlined if len(outlined) == len(part) or part.masks[outlined].any() else []


def channels_in(config: SegmenterConfig, part: PreparedSet) -> list[int]:
    """The channel of the network for each slice, by the convention of its own outline."""
    return [config.channel_of(sample.source, sample.sequence) for sample in part.samples]


def measure(
    config: SegmenterConfig, segmenter: Segmenter, parts: Partition, validation_maps: NDArray[np.uint8], out: Path
) -> dict[str, Any]:
    """Metrics of the validation and test patients, ``{"validation": ..., "test": ...}``.

    Writes a table of Dice scores and a plot of each to the run's folder.
    """
    metrics: dict[str, Any] = {}
    for name, part in parts.held_out().items():
        maps = validation_maps if name == "validation" else segmenter.network(part.images)
        masks = draw(segmenter, maps, channels_in(config, part))
        write_scores(out / f"{name}.csv", part, masks)
        metrics[name] = segmentation_metrics(part, masks, config.data)
        plot_dice(part, masks, out / f"dice_{name}.png", f"{name} patients")
    return metrics


def draw(segmenter: Segmenter, maps_nchw: NDArray[np.uint8], channels: Sequence[int]) -> NDArray[np.uint8]:
    """The masks of slices from the network's maps, ``(n, size, size)``: 0 and 1, or the bits of regions."""
    threshold = segmenter.mask_threshold
    if not segmenter.regions:
        return np.stack([clean_mask(m, threshold, 0) for m in segmenter.finish(maps_nchw, channels)])
    planes = np.moveaxis(segmenter.finish_regions(maps_nchw), 1, 0)
    return segmenter.regions.pack([np.stack([clean_mask(m, threshold, 0) for m in plane]) for plane in planes])


def headline(config: SegmenterConfig, metrics: dict[str, Any]) -> str:
    """The test Dice of tumor slices in a sentence; where nothing is outlined, the overlap of boxes."""
    if config.split == "all":
        return "on all patients; the figures are those of held-out patients"
    figures = metrics["validation" if config.split == "holdout" else "test"]
    dice = figures["dice_tumor"]
    if dice is None and "boxes" in figures:
        return f"{config.tested}: overlap of boxes (IoU) {figures['boxes']['iou']:.4f}; no outlines, so no Dice"
    each = [
        f"; {name} {values['dice'] if values['dice'] is None else round(values['dice'], 4)}"
        for name, values in figures.get("by_region", {}).items()
    ]
    return f"{config.tested}: tumor-slice Dice {dice if dice is None else round(dice, 4)}{''.join(each)}"
