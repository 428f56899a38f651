"""Options come from the fields of dataclasses: names, types, bounds, defaults, help."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tumorlens.classification.config import ClassifierConfig
from tumorlens.data import scan
from tumorlens.data.config import Setting, setting
from tumorlens.pipeline.cli import crossval, evaluate, run, train
from tumorlens.pipeline.cli.options import Folds, command, fill
from tumorlens.pipeline.evaluation.request import EvaluationRequest
from tumorlens.pipeline.options import PLANES, LoadOptions, RunOptions
from tumorlens.segmentation.config import SegmenterConfig

SHARED = Setting("A text that two dataclasses share.", shown="something")


@dataclass(frozen=True)
class Base:
    """Settings of a command that takes one of each kind."""

    place: str = setting(help="Where.", argument=True, metavar="PLACE")
    names: tuple[str, ...] = setting((), "Names; repeatable.")
    pairs: tuple[tuple[str, str], ...] = setting((), "Pairs.", flag="--map")
    folds: tuple[int, ...] | None = setting(None, "Folds.")
    shares: tuple[float, float, float] = setting((0.7, 0.2, 0.1), "Shares.")
    number: int = setting(3, "A number.", flag="-n --count", least=1, most=9)
    rate: float | None = setting(None, SHARED)
    out: Path = setting(Path("out"), "A folder.")
    kind: str = setting("one", "A kind.", choices=("one", "two"))
    on: bool = setting(True, "Usually on.")
    off: bool = setting(False, "Usually off.")
    hidden: int = 7


@dataclass(frozen=True)
class Derived(Base):
    """The same with another default."""

    number: int = setting(5, "Another number.", flag="-n --count", least=1, most=9)


@pytest.fixture
def call():
    """Runs a command of `settings` and returns the dataclass that it makes."""

    def run(settings, *arguments, **fixed):
        made = []
        made_of = command(lambda given: made.append(fill(settings, given, **fixed)), settings, examples="x")
        done = CliRunner().invoke(made_of, arguments)
        assert done.exit_code == 0, done.output
        return made[0]

    return run


def test_an_option_that_is_not_given_has_the_default_of_the_dataclass(call):
    assert call(Base, "here") == Base("here")
    assert call(Derived, "here") == Derived("here")
    assert call(Base, "here", hidden=8).hidden == 8


def test_every_kind_of_field(call):
    words = "here --names a --names b --map x=glioma --folds 2,0,2 --shares 1 2 3 -n 9 --rate 0.5 --out o --kind two"
    assert call(Base, *words.split(), "--no-on", "--off") == Base(
        "here", ("a", "b"), (("x", "glioma"),), (0, 2), (1, 2, 3), 9, 0.5, Path("o"), "two", False, True
    )


def test_all_folds_is_not_the_same_as_no_folds(call):
    assert call(Base, "here", "--folds", "all").folds == ()
    assert call(Base, "here").folds is None


def test_folds_as_users_write_them():
    assert [Folds().convert(text, None, None) for text in ("ALL", "2, 0,2", " 4 ")] == [(), (0, 2), (4,)]
    for text in ("", "x", "-1", "0;1"):
        with pytest.raises(click.BadParameter, match="neither all nor numbers such as 0,1"):
            Folds().convert(text, None, None)


def test_help_says_text_default_and_bounds():
    made = command(lambda given: None, Derived, leave_out=("out",), examples="tumorlens first\n  tumorlens second")
    text = CliRunner().invoke(made, ["--help"]).stdout
    assert "  PLACE  Where.\n" in text
    assert "Another number.  [default: 5; 1 to 9]" in text
    assert "A text that two dataclasses share.  [default: something]" in text
    assert "--on / --no-on" in text and "Usually on.  [default: on]" in text
    assert "Usually off.\n" in text
    assert "[default: 0.7 0.2 0.1]" in text
    assert "--out" not in text and "hidden" not in text
    assert text.endswith("\nExamples:\n  tumorlens first\n  tumorlens second\n")


def test_the_exit_code_is_what_the_command_returns():
    codes = [CliRunner().invoke(command(lambda given, n=n: n, examples=""), []).exit_code for n in (None, 0, 1)]
    assert codes == [0, 0, 1]


def test_the_planes_are_those_of_scans():
    assert set(PLANES) == {scan.ACQUISITION, *scan.PLANES.values()}


@pytest.mark.parametrize(
    ("made", "settings", "absent"),
    [
        (run.run, (RunOptions, LoadOptions), set()),
        (train.classification, (ClassifierConfig,), set()),
        (train.segmentation, (SegmenterConfig,), {"decoder_channels"}),
        (
            crossval.classification,
            (ClassifierConfig,),
            {"fold", "split", "out_of_fold", "devices", "nodes"},
        ),
        (
            evaluate.classification,
            (EvaluationRequest,),
            {"stage", "size", "command", "training", "segmenter", "outline"},
        ),
    ],
)
def test_every_setting_is_an_option_but_those_that_are_not_the_user_s(made, settings, absent):
    names = {each.name for one in settings for each in fields(one)}
    assert names - {param.name for param in made.params} == absent
