"""The settings of a training in a file: a run's ``config.yaml``, which ``--resume`` and ``--config`` take over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from tumorlens.classification.config import ClassifierConfig
from tumorlens.data.config import Setting, TrainingConfig
from tumorlens.data.errors import InputError
from tumorlens.pipeline.cli.options import Values
from tumorlens.segmentation.config import SegmenterConfig

CONFIG = "config.yaml"  # in a run's folder
_RECORDS = ("stage", "init_sha256", "start", "lengthened")  # in it beside the settings
_STAGES: dict[str, type[TrainingConfig]] = {each.stage: each for each in (ClassifierConfig, SegmenterConfig)}


def recorded_settings(stage: str, given: Values) -> dict[str, Any]:
    """The settings of ``--config``, or with ``--resume`` those of the run in ``--out``; none without either.

    Args:
        stage: The stage to train.
        given: The words of the command.

    Raises:
        InputError: There is no such run, or the file cannot be used.
    """
    if given.get("resume"):
        if given.get("config"):
            raise InputError("--resume takes the settings of the run in --out; leave --config out")
        path = Path(given.get("out") or ".") / CONFIG
        if not path.is_file() and given.get("out") and "data" not in given:
            raise InputError(f"{given['out']}: nothing to resume, {CONFIG} is not there; leave --resume out")
        return read_settings(path, stage, resume=True) if path.is_file() else {}
    return read_settings(Path(given["config"]), stage) if given.get("config") else {}


def read_settings(path: Path, stage: str, resume: bool = False) -> dict[str, Any]:
    """The settings in a file, as the command line takes them. Those of the other stage are left out.

    Args:
        path: A YAML file, whose keys are names of settings or of options.
        stage: The stage to train.
        resume: The file is of a run to continue, which has to be of this stage.

    Raises:
        InputError: It cannot be read, or a key is unknown.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a YAML file with a setting a line, such as epochs: 20")
    if content.get("stage", stage) not in list(_STAGES):
        raise InputError(f"{path}: stage {content['stage']!r} is not one of {', '.join(_STAGES)}")
    if resume and content.get("stage", stage) != stage:
        raise InputError(
            f"{path}: the run is of {content['stage']}; resume it with `tumorlens train {content['stage']}`"
        )
    own, names = _STAGES[stage], _names(_STAGES[stage])
    other = {name for each in _STAGES.values() for name in _names(each)} - set(names)
    if content.get("stage", stage) != stage:  # what a stage declares itself means something else in the other
        declared = {name for each in _STAGES.values() for name in vars(each).get("__annotations__", ())}
        other |= {name for name, field in names.items() if field.name in declared}
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).lstrip("-").replace("-", "_")
        if name in _RECORDS or name in other:
            continue
        if name not in names:
            raise InputError(f"{path}: {key} is not a setting of {own.stage}{_nearest(name, names)}")
        if value is not None:
            settings[names[name].name] = _as_words(value, names[name])
    return settings


def _names(config: type[TrainingConfig]) -> dict[str, Field[Any]]:
    """The fields of a stage's settings by their names and by those of their options."""
    names: dict[str, Field[Any]] = {}
    for each in fields(config):
        flags = each.metadata.get("setting", Setting()).flag.split()
        names |= dict.fromkeys([each.name, *(flag.lstrip("-").replace("-", "_") for flag in flags)], each)
    return names


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, names, 1, 0.0)
    return f"; did you mean {near[0]}?" if near else ""


def _as_words(value: Any, field: Field[Any]) -> Any:
    """A value as click gets it from the command line, so that it is checked alike."""
    if "setting" not in field.metadata:  # it has no option
        return tuple(value) if isinstance(value, list) else value
    if isinstance(value, dict):
        return [f"{key}={','.join(map(str, one)) if isinstance(one, list) else one}" for key, one in value.items()]
    if isinstance(value, list):
        return ["=".join(map(str, one)) if isinstance(one, list) else str(one) for one in value]
    if str(field.type).startswith("tuple"):
        return [str(value)]
    return value if isinstance(value, bool) else str(value)
