"""Writes the hashes of the training pictures to the card of weights that were trained before cards had them.

``python -m tumorlens.data.training.record_pictures WEIGHTS --data DIR ... --start DIR ...``: the data of the training
in its order, and those of the trainings of its initial weights. Every newer training run does this itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tumorlens.data.cards.card import read_card
from tumorlens.data.cards.lineage import PICTURES, pictures_of
from tumorlens.data.cards.weights import card_text
from tumorlens.data.config import DataConfig
from tumorlens.data.datasets.picture_hashes import PictureHashes
from tumorlens.data.datasets.sample import Sample, has_truth
from tumorlens.data.files import write_text
from tumorlens.data.masks.regions import Regions
from tumorlens.data.training.partition import load_partition


def record_pictures(weights: Path, data: Sequence[str], start: Sequence[str], say: Callable[[str], None]) -> None:
    """Write ``training.picture_hashes`` to the card of weights. Nothing else on the card changes.

    Args:
        weights: The ``.safetensors`` file.
        data: The data sets of the training, which the card splits as the training did.
        start: The data sets from which the initial weights, and their own initial weights, learned, whole.
        say: Gets how many slices were found, and how many the card counts.

    Raises:
        InputError: The weights have no card, or the data cannot be read.
    """
    card = read_card(weights)
    training: dict[str, Any] = card["training"]
    names = ("fold", "split", "duplicates", "size", "seed", "channel", "patients")
    settings: Mapping[str, Any] = {name: training[name] for name in names if name in training}
    keep = has_truth if card["stage"] == "segmentation" else _has_label
    parts = load_partition(DataConfig(tuple(data), **settings), keep, regions=Regions.from_card(card))
    say(f"{len(parts.train)} training slices, {card['n_slices']['train']} by the card")
    start_text = ""
    if start:
        whole = load_partition(DataConfig(tuple(start), split="all", size=settings.get("size", 224)), keep)
        say(f"{len(whole.train)} slices of the initial weights")
        start_text = PictureHashes.of(whole.train.images).text
    card["training"] = training | {PICTURES: pictures_of(PictureHashes.of(parts.train.images).text, start_text)}
    write_text(weights.with_suffix(".json"), card_text(card))


def _has_label(sample: Sample) -> bool:
    return bool(sample.label)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    for name in ("--data", "--start"):
        parser.add_argument(name, action="append", default=[])
    given = parser.parse_args()
    record_pictures(given.weights, given.data, given.start, print)
