"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tumorlens.data.errors import InputError

if TYPE_CHECKING:
    pass


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """``"10,100"`` as numbers; nothing as none.

    Raises:
        InputError: The text is no list of whole numbers above 0.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"{option} {text!r} is no list of whole numbers such as 10,100")
    return tuple(int(part) for part in parts)


def parse_folds(text: str | None) -> tuple[int, ...] | None:
    """``"0,2"`` as numbers, ``"all"`` as none of them, nothing as None.

    Raises:
        InputError: The text is neither.
    """
    if text is None:
        return None
    if text.strip().lower() == "all":
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--folds {text!r} is neither all nor numbers such as 0,1")
    return tuple(sorted({int(part) for part in parts}))


LAYOUTS = (
    "Data folder (index.csv, class folders, images/ + masks/, LGG folders of patients with pictures and their *_mask "
    "files) or INDEX.csv, or INDEX.csv@FOLDER"
)

Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help=f"{LAYOUTS}; repeatable.",
    ),
]

LabelMap = Annotated[list[str] | None, typer.Option("--map", help="Your label name for one of ours: NAME=CLASS.")]

Channel = Annotated[
    int | None,
    typer.Option(
        "--frame-channel",
        min=0,
        max=2,
        help="Channel of color pictures to take. [default: what the index says, FLAIR (1) of LGG folders, else the "
        "brightness]",
    ),
]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]


def config_of(stage: str, settings: dict[str, Any]) -> Any:
    """A stage's `ClassifierConfig` or `SegmenterConfig` from the options of its training command.

    Args:
        stage: ``classification`` or ``segmentation``.
        settings: Option -> value as the command line gives it; options that are left out have the stage's own default.

    Raises:
        InputError: A label mapping, a size or an architecture that cannot be.
    """
    known = dict(settings)
    known["data"] = tuple(known["data"])
    known["label_map"] = parse_map(known.get("label_map"))
    if known.get("epochs", 8) % known.get("validate_every", 1):
        raise InputError(f"--epochs {known['epochs']} is no multiple of --validate-every {known['validate_every']}")
    known["out_of_fold"] = known.get("out_of_fold") or ""
    known["prepared"] = known.get("prepared") or ""
    if known["out_of_fold"]:
        if known.get("split", "folds") not in ("folds", "all"):
            raise InputError(f"--out-of-fold trains on all patients, so --split {known['split']} cannot be")
        known["split"] = "all"
    if known.get("freeze_stem") and known.get("init") == "none":
        raise InputError("--freeze-stem keeps the first weights of the stem; give it some with --init FILE")
    if stage == "classification":
        from tumorlens.classification.architectures import find_architecture
        from tumorlens.classification.config import ClassifierConfig

        known["not_brain"] = tuple(known.get("not_brain") or ())
        known["size"] = known.get("size") or find_architecture(known["arch"]).input_size
        return ClassifierConfig(**known)
    from tumorlens.segmentation.config import SegmenterConfig

    config = SegmenterConfig(**known)
    if config.size % 32:
        raise InputError(f"--size {config.size} is not divisible by 32, as the networks need it")
    return config


def parse_map(texts: list[str] | None) -> tuple[tuple[str, str], ...]:
    """``NAME=CLASS`` texts as pairs."""
    pairs = []
    for text in texts or ():
        name, equals, label = text.partition("=")
        if not (name and equals and label):
            raise InputError(f"--map {text!r} is not NAME=CLASS")
        pairs.append((name, label))
    return tuple(pairs)
