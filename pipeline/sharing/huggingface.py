"""A stage as a folder for the Hugging Face Hub: weights, card, configuration and a README with front matter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PureWindowsPath
from typing import Any

from tumorlens.data.cards.card import checked_card
from tumorlens.data.files import whole_folder
from tumorlens.data.labels import ClassList
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.sharing.card import LICENSE_NAME, TITLES, figures, is_shipped, model_card, weights_license
from tumorlens.pipeline.versions import package_versions

_TAGS = {"classification": "image-classification", "segmentation": "image-segmentation"}
_PLACES = ("data", "init", "prepared", "out_of_fold", "not_brain", "classes")  # settings that name files or folders
_METRICS = {  # figure of the card -> its type on the Hub
    "validation slice accuracy": "accuracy",
    "validation slice macro f1": "f1",
    "validation dice tumor": "dice",
}


def write_hub_folder(weights: Path, stage: str, folder: Path) -> None:
    """Write a stage as a folder that is ready to upload. ``model.safetensors`` is a copy of the weights.

    Args:
        weights: A ``.safetensors`` file, with its card in the same folder.
        stage: ``classification`` or ``segmentation``.
        folder: A new folder.

    Raises:
        InputError: The weights or their card are unusable, or the folder is not new. Nothing is written then.
    """
    card = checked_card(weights, stage)
    with whole_folder(folder) as part:
        shutil.copyfile(weights, part / "model.safetensors")
        _write_json(part / "model.json", _without_places(card))
        _write_json(part / "config.json", _config(card))
        _write_json(part / "preprocessor_config.json", _preprocessor(card))
        (part / "LICENSE").write_text(weights_license(card), encoding="utf-8")
        (part / "README.md").write_text(_front_matter(card) + model_card(card, "huggingface"), encoding="utf-8")


def _without_places(card: dict[str, Any]) -> dict[str, Any]:
    """The card without what it says of the machine of the training: the command, and folders above data and files."""
    shared = {name: value for name, value in card.items() if name != "command"}
    if isinstance(card.get("training"), dict):
        shared["training"] = _last_names(card["training"])
    return shared


def _last_names(training: dict[str, Any]) -> dict[str, Any]:
    short = {name: _short(value) if name in _PLACES else value for name, value in training.items()}
    return short | ({"start": _last_names(short["start"])} if isinstance(short.get("start"), dict) else {})


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(one) for one in value]
    if not isinstance(value, str):
        return value
    return "@".join(PureWindowsPath(path).name for path in value.split("@"))  # both kinds of slashes separate


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _config(card: dict[str, Any]) -> dict[str, Any]:
    if card["stage"] == "classification":
        labels = ClassList.from_card(card).outputs
    else:
        from tumorlens.segmentation.model import channel_names

        labels = channel_names(card) or ("lesion",)
    keys = ("encoder", "decoder_channels", "preprocess_version", "sha256")
    return {
        "model_type": f"tumorlens-{card['stage']}",
        "architectures": [card["architecture"]],
        "image_size": card["input_size"],
        "num_channels": 3,
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "tumorlens_version": package_versions().get("tumorlens"),
    } | {key: card[key] for key in keys if key in card}


def _preprocessor(card: dict[str, Any]) -> dict[str, Any]:
    preprocess = Preprocess(int(card["input_size"]))
    known = card.get("normalization")  # old cards leave it to the encoder
    normalize = {"do_normalize": True, "image_mean": known["mean"], "image_std": known["std"]} if known else {}
    return {
        "image_processor_type": "tumorlens.data.preprocessing.preprocess.Preprocess",
        "size": {"height": preprocess.size, "width": preprocess.size},
        "margin": preprocess.margin,
        "percentiles": list(preprocess.percentiles),
        "preprocess_version": preprocess.version,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    } | normalize


def _front_matter(card: dict[str, Any]) -> str:
    import yaml

    stage = card["stage"]
    license_entries = {"license": "unknown"}
    if is_shipped(card):
        license_entries = {"license": "other", "license_name": LICENSE_NAME, "license_link": "LICENSE"}
    known = figures(card)
    metrics = [{"type": kind, "name": name, "value": known[name]} for name, kind in _METRICS.items() if name in known]
    task = {"type": _TAGS[stage]}
    data = {"type": "brain-mri", "name": "slices of patients held out of the training, which chose thresholds"}
    entries: dict[str, Any] = license_entries | {
        "library_name": "tumorlens",
        "pipeline_tag": _TAGS[stage],
        "tags": ["medical-imaging", "mri", "brain-tumor", card["architecture"]],
    }
    if metrics:
        results = [{"task": task, "dataset": data, "metrics": metrics}]
        entries |= {
            "metrics": [row["type"] for row in metrics],
            "model-index": [{"name": TITLES[stage], "results": results}],
        }
    return f"---\n{yaml.safe_dump(entries, sort_keys=False)}---\n\n"
