"""Commands made from dataclasses: each field that has a `data.config.setting` becomes an option or an argument."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import click

from tumorlens.data.config import Setting, TrainingConfig
from tumorlens.data.errors import InputError
from tumorlens.data.spellings import canonical_label
from tumorlens.pipeline.cli.screen import HELP_WIDTH, user_errors, write_examples

Settings = TypeVar("Settings")
Values = Mapping[str, Any]  # field -> value of the options that the user gave; the dataclasses hold the defaults


class Number(click.ParamType[int | float | None]):
    """A number of a kind, within the bounds of its setting; None, as if the option were left out, for the words that
    ``--help`` shows as its default.
    """

    name = "number"

    def __init__(self, kind: type[int] | type[float], setting: Setting) -> None:
        self.kind, self.setting = kind, setting

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float | None:
        if value and value == self.setting.shown:
            return None
        try:
            number = self.kind(str(value))  # from a file it may be anything, such as true or a list
        except ValueError:
            self.fail(f"{value!r} is not a {'whole ' if self.kind is int else ''}number", param, ctx)
        least, most = self.setting.least, self.setting.most
        if not ((least is None or number >= least) and (most is None or number <= most)):
            self.fail(f"{value} is not allowed; give {_bounds(self.setting)}", param, ctx)
        return number


class PathName(click.Path):
    """A path; empty text, as from an unset variable of the shell, is not one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class NamePair(click.ParamType[tuple[str, str]]):
    """``NAME=CLASS`` as a pair."""

    name = "NAME=CLASS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, _, label = str(value).partition("=")
        if not (name and label):
            self.fail(f"{value!r} is not NAME=CLASS", param, ctx)
        try:
            canonical_label(name, {name: label})
        except InputError as error:
            self.fail(str(error), param, ctx)
        return name, label


class Folds(click.ParamType[tuple[int, ...]]):
    """``"0,2"`` as sorted numbers, ``"all"`` as an empty tuple."""

    name = "all|0,1,.."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple) or value.strip().lower() == "all":
            return value if isinstance(value, tuple) else ()
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() for part in parts):
            self.fail(f"{value!r} is neither all nor numbers such as 0,1", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


# Type of a field -> how click reads its value; numbers, flags and choices are made in `_param`.
_SHAPES: dict[Any, dict[str, Any]] = {
    str: {"type": str},
    Path: {"type": PathName(path_type=Path)},
    tuple[str, ...]: {"type": str, "multiple": True},
    tuple[tuple[str, str], ...]: {"type": NamePair(), "multiple": True},
    tuple[int, ...]: {"type": Folds()},
    tuple[float, ...]: {"type": click.FloatRange(0), "multiple": True, "metavar": "X"},
    tuple[float, float, float]: {"type": float, "nargs": 3},
}


def command(
    run: Callable[[Values], int | None],
    *settings: type,
    leave_out: Collection[str] = (),
    details: str = "",
    examples: str,
    stopped: Callable[[Values], str] | None = None,
    recorded: Callable[[Values], Values] | None = None,
    extra: str | None = None,
) -> Command:
    """A command whose options are the fields of dataclasses. `pipeline.cli.app` has its name and first line of help.

    Args:
        run: Gets what the user gave and returns the exit code, none for 0. `fill` makes the dataclasses of it.
        settings: The dataclasses, in the order of ``--help``.
        leave_out: Fields that are not options of this command.
        details: Help below the first line.
        examples: Lines for the end of ``--help``.
        stopped: From what the user gave to advice for a user who has stopped the command.
        recorded: From the words of the command to settings that hold where the user gives no other, such as those of a
            file. Some of them may have no option.
        extra: The extra with all that the command needs, where that is not one for its formats or its services.
    """
    params = [param for each in settings for param in _params(each, leave_out)]
    repeatable = {param.name for param in params if param.multiple or param.nargs == -1}

    def callback(**parsed: Any) -> None:
        more = click.get_current_context().default_map or {}
        values = {k: v for k, v in more.items() if k not in parsed}
        values |= {k: v for k, v in parsed.items() if v is not None and not (k in repeatable and v == ())}
        with user_errors(bool(values.get("verbose")), lambda: stopped(values) if stopped else "", extra):
            code = run(values)
        click.get_current_context().exit(code or 0)

    built = Command(None, callback=callback, params=params, epilog=examples)
    built.context_settings = {"max_content_width": HELP_WIDTH}
    built.details, built.recorded = details, recorded
    return built


def fill(settings: type[Settings], values: Values, **fixed: Any) -> Settings:
    """A dataclass with the values that the user gave and some that the command sets itself.

    Args:
        settings: The dataclass. A field that neither the user nor the command sets has its default.
        values: As `command` hands it over. Values for other dataclasses are left out.
        fixed: Values that the command sets.
    """
    names = {each.name for each in fields(settings)}  # type: ignore[arg-type]
    return settings(**{name: value for name, value in values.items() if name in names} | fixed)


def _params(settings: type, leave_out: Collection[str]) -> list[click.Parameter]:
    hints = get_type_hints(settings)
    both = issubclass(settings, TrainingConfig)  # a file may have turned a switch on
    return [
        _param(each, hints[each.name], each.metadata["setting"], both)
        for each in fields(settings)
        if "setting" in each.metadata and each.name not in leave_out
    ]


def _param(field: Field[Any], hint: Any, setting: Setting, both: bool) -> click.Parameter:
    kind = next(part for part in get_args(hint) if part is not NoneType) if NoneType in get_args(hint) else hint
    if kind is bool:
        shape: dict[str, Any] = {"is_flag": True}
    elif kind in (int, float):
        shape = {"type": Number(kind, setting), "metavar": "N" if kind is int else "X"}
    else:
        shape = dict(_SHAPES[kind])
    if setting.choices:
        shape["type"] = click.Choice(setting.choices)
    if setting.metavar:
        shape["metavar"] = setting.metavar
    required = field.default is MISSING
    if setting.argument:
        if shape.pop("multiple", False):
            shape["nargs"] = -1
        return click.Argument([field.name], required=required, help=setting.help, **shape)
    flag = setting.flag or "--" + field.name.replace("_", "-")
    if kind is bool and (field.default or both):
        flag = f"{flag}/--no-{flag[2:]}"
    if setting.alone:
        shape |= {"is_flag": False, "flag_value": setting.alone}
    if not required:
        shape["default"] = None
    option = _Option([*flag.split(), field.name], required=required, help=setting.help, **shape)
    option.shown = setting.shown or _words(field.default, flag)
    option.bounds = _bounds(setting)
    return option


def _words(default: Any, flag: str) -> str:
    """A default as ``--help`` shows it; empty where there is none to show."""
    if isinstance(default, bool):
        return flag.partition("/")[0][2:] if default else ""
    if isinstance(default, tuple):
        return " ".join(f"{part:g}" for part in default)
    if isinstance(default, float):
        return f"{default:g}"
    return "" if default in (None, "", MISSING) else str(default)


def _bounds(setting: Setting) -> str:
    if setting.most is None:
        return "" if setting.least is None else f"at least {setting.least:g}"
    return f"{setting.least:g} to {setting.most:.10g}"


class _Option(click.Option):
    """An option whose default is the dataclass's, which click shows but does not set."""

    shown = ""
    bounds = ""

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = {**super().get_help_extra(ctx), "default": self.shown, "range": self.bounds}
        return {name: words for name, words in extra.items() if words}


class Command(click.Command):
    """A command that ends its help with examples, line by line."""

    details = ""
    recorded: Callable[[Values], Values] | None = None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.recorded is None:
            return super().parse_args(ctx, args)
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        if "help" not in given:
            with user_errors():
                ctx.default_map = dict(self.recorded(given))
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            if (
                error.param is not None
                and error.param.name in (ctx.default_map or {})
                and error.param.name not in given
            ):
                place = given.get("config") or given.get("out")
                raise click.BadParameter(f"{error.message.rstrip('.')} (in {place})", ctx, error.param) from None
            raise

    def with_help(self, first_line: str) -> Command:
        """The command, once its help begins with this line."""
        self.help = "\n\n".join(text for text in (first_line, self.details) if text)
        return self

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.epilog)
