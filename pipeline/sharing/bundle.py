"""A stage as a MONAI bundle, which `monai.bundle` verifies and runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tumorlens.classification.predict import Classifier
from tumorlens.data.cards.card import checked_card
from tumorlens.data.errors import InputError, reason_of
from tumorlens.data.files import whole_folder
from tumorlens.data.labels import ClassList
from tumorlens.data.preprocessing.normalization import Normalization
from tumorlens.pipeline.engines.export import check_slices, compare
from tumorlens.pipeline.sharing.card import TITLES, credit, figures, model_card, weights_license
from tumorlens.pipeline.versions import package_versions
from tumorlens.segmentation.model import channel_names
from tumorlens.segmentation.postprocess import threshold_u8

_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_TARGET = "tumorlens.pipeline.sharing.transforms"


def write_bundle(weights: Path, stage: str, folder: Path) -> dict[str, float]:
    """Write a stage as a bundle; returns the largest difference of its TorchScript's logits from PyTorch's.

    Args:
        weights: A ``.safetensors`` file, with its card in the same folder.
        stage: ``classification`` or ``segmentation``.
        folder: A new folder, for ``configs``, ``models``, ``docs`` and ``LICENSE``.

    Raises:
        InputError: The weights are unusable, the folder is not new, MONAI cannot write or read the network, or its
            logits differ from PyTorch's. In all cases nothing is written.
    """
    import torch

    from tumorlens.data.preprocessing.normalization import to_batch

    card = checked_card(weights, stage)
    network = _network(weights, stage)
    with whole_folder(folder) as part:
        for name in ("configs", "models", "docs"):
            (part / name).mkdir()
        _write_json(part / "configs/metadata.json", _metadata(card, stage))
        _write_json(part / "configs/inference.json", _inference(weights, card, stage, network.normalization))
        (part / "LICENSE").write_text(weights_license(card), encoding="utf-8")
        (part / "docs/README.md").write_text(model_card(card, "monai-bundle"), encoding="utf-8")
        torch.save(network.model.state_dict(), part / "models/model.pt")
        batch = to_batch(check_slices(int(card["input_size"])), network.normalization).contiguous()
        try:
            with _quiet():
                _write_torchscript(part)
            with torch.inference_mode():
                exported = torch.jit.load(str(part / "models/model.ts"))(batch).numpy()
        except Exception as error:  # exporters fail in a hundred ways
            raise InputError(f"{weights}: cannot be written as a MONAI bundle ({reason_of(error)})") from None
        with torch.inference_mode():
            return compare(["logits"], [network.model(batch).numpy()], [exported], folder)


def _network(weights: Path, stage: str) -> Any:
    if stage == "classification":
        from tumorlens.classification.network import load_network
    else:
        from tumorlens.segmentation.network import load_network  # type: ignore[assignment]
    return load_network(weights, "cpu")


def _write_torchscript(folder: Path) -> None:
    from monai.bundle import ckpt_export

    ckpt_export(
        "network_def",
        filepath=str(folder / "models/model.ts"),
        ckpt_file=str(folder / "models/model.pt"),
        meta_file=str(folder / "configs/metadata.json"),
        config_file=str(folder / "configs/inference.json"),
        use_trace=True,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """MONAI logs every argument and warns of every configuration, also of our own."""
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _metadata(card: dict[str, Any], stage: str) -> dict[str, Any]:
    """What the bundle's schema asks for."""
    versions = {name: version.partition("+")[0] for name, version in package_versions().items()}
    size = int(card["input_size"])
    one = {"is_patch_data": False, "spatial_shape": [size, size], "dtype": "float32"}
    image = one | {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 3,
        "value_range": [-3, 3],
        "channel_def": {str(channel): "the prepared slice, normalized" for channel in range(3)},
    }
    names = ClassList.from_card(card).outputs if stage == "classification" else channel_names(card) or ("lesion",)
    pred = one | {
        "type": "logits",
        "format": "labels" if stage == "classification" else "segmentation",
        "num_channels": len(names),
        "value_range": [],
        "channel_def": {str(number): name for number, name in enumerate(names)},
    }
    if stage == "classification":
        pred["spatial_shape"] = [1, len(names)]
    task = TASKS[stage]
    if stage == "classification" and not ClassList.from_card(card).gate:
        task = "Which type of brain tumor does a slice of head MRI show?"
    needed = ("tumorlens", "torchvision", "segmentation-models-pytorch", "nibabel", "pillow")
    return {
        "schema": _SCHEMA,
        "version": versions["tumorlens"],
        "changelog": {versions["tumorlens"]: f"exported by tumorlens; weights of {card.get('date', 'unknown date')}"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"],
        "numpy_version": versions["numpy"],
        "required_packages_version": {"pytorch-ignite": "0.5", "fire": "0.7"}
        | {name: versions[name] for name in needed if name in versions},
        "name": TITLES[stage],
        "task": task,
        "description": task + " Exported by tumorlens.",
        "authors": "The tumorlens authors",
        "copyright": "See LICENSE",
        "data_source": "; ".join(credit(card)),
        "data_type": "NIfTI volumes and pictures (PNG, JPEG)",
        "image_classes": "one slice or volume of head MRI, of any sequence",
        "label_classes": ", ".join(names),
        "pred_classes": ", ".join(names),
        "eval_metrics": figures(card),
        "intended_use": "For research and teaching, with a person looking at every result. Not a medical device.",
        "references": [],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


TASKS = {
    "classification": "Does a slice of head MRI show a brain tumor, and of which type?",
    "segmentation": "Outline of a brain tumor in slices of head MRI that show one.",
}


def _inference(weights: Path, card: dict[str, Any], stage: str, normalization: Normalization) -> dict[str, Any]:
    """The configuration of a run over a folder."""
    size = int(card["input_size"])
    steps = {"classification": _classify, "segmentation": _segment}[stage](weights, card)
    prepare = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "@readers", "ensure_channel_first": True},
        {"_target_": f"{_TARGET}.PrepareSlicesd", "keys": "image", "size": size},
        *steps.pop("split"),
        {"_target_": "RepeatChanneld", "keys": "image", "repeats": 3},
        {
            "_target_": "NormalizeIntensityd",
            "keys": "image",
            "subtrahend": [round(255 * mean, 6) for mean in normalization.mean],
            "divisor": [round(255 * std, 6) for std in normalization.std],
            "channel_wise": True,
        },
    ]
    return {
        "imports": ["$import glob", "$import torch", "$from PIL import ImageOps"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        **steps.pop("settings"),
        "readers": [  # left to itself, MONAI ignores that a picture's EXIF turns it
            {"_target_": "PILReader", "converter": "$ImageOps.exif_transpose"},
            {"_target_": "NibabelReader"},
        ],
        "network_def": steps.pop("network_def"),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": prepare},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": steps.pop("inferer"),
        "postprocessing": {"_target_": "Compose", "transforms": steps.pop("post")},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _classify(weights: Path, card: dict[str, Any]) -> dict[str, Any]:
    calibration = Classifier.load(weights, "cpu").calibration
    classes = ClassList.from_card(card)
    bias = [0.0 if name == "no_tumor" else calibration.tumor_bias for name in classes.outputs]
    return {
        "settings": {"temperature": calibration.temperature, "bias": bias},
        "network_def": {
            "_target_": "tumorlens.classification.model.build_classifier",
            "architecture": {
                "_target_": "tumorlens.classification.architectures.find_architecture",
                "name": card["architecture"],
            },
            "size": int(card["input_size"]),
            "n_classes": len(classes.outputs),
        },
        "split": [{"_target_": "SplitDimd", "keys": "image", "dim": 3, "keepdim": False, "list_output": True}],
        "inferer": {"_target_": "SimpleInferer"},
        "post": [
            {
                "_target_": "Lambdad",
                "keys": "pred",
                "func": "$lambda logits: logits / @temperature + torch.tensor(@bias, device=logits.device)",
            },
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "FromMetaTensord", "keys": ["image", "pred"]},
            {
                "_target_": "SaveClassificationd",
                "keys": "pred",
                "meta_keys": "image_meta_dict",
                "output_dir": "@output_dir",
            },
        ],
    }


def _segment(weights: Path, card: dict[str, Any]) -> dict[str, Any]:
    outlines = list(card.get("outlines", ()))
    point = card["operating_point"]
    least = (threshold_u8(point["mask_threshold"]) - 0.5) / 255  # maps have 256 levels
    return {
        "settings": {"outline": outlines[0] if outlines else "", "output_ext": ".nii.gz"},
        "network_def": {
            "_target_": "tumorlens.segmentation.model.build_segmenter",
            "arch": card["architecture"],
            "encoder": card["encoder"],
            "decoder_channels": list(card["decoder_channels"]),
            "channels": len(channel_names(card)) or 1,
        },
        "split": [],
        "inferer": {
            "_target_": "SliceInferer",
            "roi_size": [int(card["input_size"])] * 2,
            "sw_batch_size": 16,
            "spatial_dim": 2,
        },
        "post": [
            {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
            {
                "_target_": f"{_TARGET}.ChooseOutlined",
                "keys": "pred",
                "outline": "@outline",
                "outlines": outlines,
                "regions": [{"name": r["name"], "values": r["values"]} for r in card.get("regions", ())],
                "operating_point": point,
            },
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
            {"_target_": "AsDiscreted", "keys": "pred", "threshold": round(least, 6)},
            {
                "_target_": "SaveImaged",
                "keys": "pred",
                "output_dir": "@output_dir",
                "output_ext": "@output_ext",
                "output_postfix": "mask",
                "output_dtype": "$'uint8'",
                "resample": False,
                "scale": "$255 if @output_ext == '.png' else None",
                "separate_folder": False,
            },
        ],
    }
