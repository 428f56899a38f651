"""`tumorlens crossval classification | segmentation | pipeline`: the options of training, for every fold."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tumorlens.pipeline.cli import train as cli_train
from tumorlens.pipeline.cli.options import parse_folds
from tumorlens.pipeline.cli.screen import ProgressLine, hushed, warned

crossval_app = typer.Typer(no_args_is_help=True)
_NOT_SHARED = ("fold", "split", "resume", "out_of_fold")
_KINDS = "imagenet (downloaded), none, or a weight file; {fold} stands for the fold's number."

_OUT = Annotated[
    Path, typer.Option("-o", "--out", help="Folder of the runs and of the report; repeat the call to go on.")
]

_FOLDS = Annotated[str, typer.Option("--folds", metavar="all|0,1,..", help="Test folds.")]

_PROTOCOL = Annotated[
    str | None,
    typer.Option(
        "--protocol", metavar="p1|p2|p4", help="How to measure. [default: p4 for LGG folders, else all classes]"
    ),
]

_PROBE = Annotated[bool, typer.Option(help="Test that the label does not come from the picture's source.")]

_MEASURE = Annotated[
    bool, typer.Option(help="Measure the folds on these data; else train only, and measure with `tumorlens evaluate`.")
]

_EXPLAIN = Annotated[bool, typer.Option("--explain", help="Score Grad-CAM against the masks.")]
_CLASSIFIER_INIT = Annotated[str, typer.Option("--init", help=f"The classifier's start: {_KINDS}")]
_ENCODER_INIT = Annotated[str, typer.Option("--init", help=f"The encoder's start: {_KINDS}")]

_COMMON: dict[str, tuple[Any, Any]] = {
    "out": (_OUT, ...),
    "folds": (_FOLDS, "all"),
    "protocol": (_PROTOCOL, None),
    "measure": (_MEASURE, True),
}

_OF_CLASSIFIER: dict[str, tuple[Any, Any]] = {
    "init": (_CLASSIFIER_INIT, "imagenet"),
    "probe": (_PROBE, True),
    "explain": (_EXPLAIN, False),
}

# What a segmenter has in a training of both stages; None is the classifier's setting, or the segmenter's own default.
_OF_SEGMENTER: dict[str, tuple[Any, Any]] = {
    "segmenter_init": (
        Annotated[str | None, typer.Option(help=f"The encoder's start: {_KINDS} [default: that fold's classifier]")],
        None,
    ),
    "segmenter_arch": (Annotated[str, typer.Option(help="unet, unet++, unet-scse or plain-unet.")], "unet"),
    "encoder": (Annotated[str, typer.Option(help="Any encoder of segmentation-models-pytorch.")], "resnet50"),
    "segmenter_epochs": (Annotated[int | None, typer.Option(min=1, help="[default: as --epochs]")], None),
    "segmenter_batch_size": (Annotated[int, typer.Option(min=1)], 16),
    "segmenter_size": (Annotated[int, typer.Option(min=32, help="Side of the segmenter's input in pixels.")], 224),
}


def _command(name: str, template: Callable[..., None], extra: dict[str, tuple[Any, Any]], text: str) -> None:
    """Add a command with the options of a training command and some more, so that they are declared once."""
    hints = get_type_hints(template, include_extras=True)
    declared = {
        key: (hints[key], parameter.default if parameter.default is not parameter.empty else ...)
        for key, parameter in inspect.signature(template).parameters.items()
        if key not in _NOT_SHARED
    }
    declared |= _COMMON | extra

    def run(**settings: Any) -> None:
        _crossval(name, settings)

    run.__doc__ = text
    run.__annotations__ = {key: hint for key, (hint, _) in declared.items()}
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                key,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=hint,
                default=inspect.Parameter.empty if default is ... else default,
            )
            for key, (hint, default) in declared.items()
        ]
    )
    crossval_app.command(name)(run)


_command(
    "classification",
    cli_train.classification,
    _OF_CLASSIFIER,
    "Train and measure the classifier on every fold; a stopped call goes on when it is repeated.",
)

_command(
    "segmentation",
    cli_train.segmentation,
    {"init": (_ENCODER_INIT, "imagenet")},
    "Train and measure the segmenter on every fold; a stopped call goes on when it is repeated.",
)

_command(
    "pipeline",
    cli_train.classification,
    {"init": (_CLASSIFIER_INIT, "imagenet"), **_OF_SEGMENTER},
    "Train both stages on every fold and measure them end to end; a stopped call goes on when it is repeated.",
)


def _crossval(stage: str, settings: dict[str, Any]) -> None:
    from tumorlens.pipeline.cli.screen import user_errors

    with user_errors(stopped="repeat the command to go on"):
        from tumorlens.pipeline.evaluation.crossval import CrossvalRequest, crossval

        out, quiet = settings.pop("out"), settings.pop("quiet")
        folds = parse_folds(settings.pop("folds"))
        measuring = {key: settings.pop(key) for key in ("protocol", "measure", "probe", "explain") if key in settings}
        command = "tumorlens " + shlex.join(sys.argv[1:])
        request = CrossvalRequest(
            stage, **_configs(stage, settings, out), folds=folds or (), command=command, **measuring
        )
        with ProgressLine(quiet) as progress:
            show = not quiet and sys.stderr.isatty()
            crossval(request, out, show, progress, hushed(quiet), warned)


def _configs(stage: str, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """The settings of the stages that are trained."""
    found: dict[str, Any] = {}
    if stage != "segmentation":
        own = {key: value for key, value in settings.items() if key not in _OF_SEGMENTER}
        found["classifier"] = cli_train.config_of("classification", own)
    if stage != "classification":
        drawing = settings if stage == "segmentation" else _segmenter_settings(settings, out)
        found["segmenter"] = cli_train.config_of("segmentation", drawing)
    return found


def _segmenter_settings(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Of the segmenter beside a classifier: its own where given, else the classifier's."""
    known = set(inspect.signature(cli_train.segmentation).parameters) - {"out", "quiet", *_NOT_SHARED}
    found = {key: value for key, value in settings.items() if key in known}
    found |= {
        "init": settings["segmenter_init"] or _start(settings, out),
        "arch": settings["segmenter_arch"],
        "epochs": settings["segmenter_epochs"] or settings["epochs"],
        "batch_size": settings["segmenter_batch_size"],
        "size": settings["segmenter_size"],
    }
    return found


def _start(settings: dict[str, Any], out: Path) -> str:
    """That fold's classifier where it is of the encoder's architecture; else the classifier's own start, if it is none
    of a file."""
    from tumorlens.pipeline.evaluation.crossval import WEIGHTS, folder

    if settings["arch"] == settings["encoder"] and settings["segmenter_arch"] != "plain-unet":
        return str(folder(out, "pipeline", "classification", "{fold}") / WEIGHTS["classification"])
    return settings["init"] if settings["init"] in ("imagenet", "none") else "imagenet"
