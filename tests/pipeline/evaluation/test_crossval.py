"""Cross-validation: every fold once, a stopped call goes on, finished folds stay as they are, one table."""

from __future__ import annotations

import csv
import json
import signal
from dataclasses import replace

import numpy as np
import pytest

from tests.data.training.runs import classifier_config, segmenter_config, stopped_by, without_plots
from tests.scans.lgg import write_lgg_phantoms
from tumorlens.data.errors import InputError
from tumorlens.data.training import run as run_module
from tumorlens.data.training.run_folder import changed_setting, plain_config, with_start
from tumorlens.pipeline.evaluation import crossval as room
from tumorlens.pipeline.evaluation.crossval import FoldRun, crossval
from tumorlens.pipeline.evaluation.report import KIND, REPORT
from tumorlens.pipeline.evaluation.request import crossval_request


def config(data, **rest):
    return classifier_config(data, **({"arch": "mlp", "epochs": 1} | rest))


def run(request, out, **rest):
    """Cross-validate without plots; returns the report and the messages."""
    messages = []
    with without_plots():
        report = crossval(request, out, show=False, **rest, say=messages.append, warn=messages.append)
    return report, messages


@pytest.fixture
def request_of(phantom_set):
    def make(folds=(0, 1), **rest):
        return crossval_request({"classification": config(phantom_set, **rest)}, folds=folds, probe=False, command="x")

    return make


def test_every_fold_is_measured_with_its_own_weights(phantom_set, tmp_path):
    """All five folds hold every patient once, and no weights have learned from a patient that they are measured on."""
    request = crossval_request({"classification": config(phantom_set)}, protocol="p2", probe=False, command="again")
    report, messages = run(request, tmp_path)
    assert report["warnings"] == []
    assert report["n"] == 40
    assert report["n_patients"] == 20
    assert report["crossval"]["classification"]["epochs"] == 1
    with (tmp_path / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    for fold in range(5):
        card = json.loads((tmp_path / f"fold-{fold}" / "classifier.json").read_text())
        assert card["training"]["fold"] == fold
        assert report["models"][fold]["sha256"] == card["sha256"]
        right = np.mean([r["label"] == r["predicted"] for r in rows if r["fold"] == str(fold)])
        assert report["by_fold"][str(fold)]["after"]["slice"]["accuracy"]["value"] == pytest.approx(right)
        assert card["metrics"]["test"]["slice"]["accuracy"] == pytest.approx(right)
    pooled = np.mean([r["label"] == r["predicted"] for r in rows])
    assert report["figures"]["after"]["slice"]["accuracy"]["value"] == pytest.approx(pooled)
    assert "fold 4 | mean ± sd | all folds together" in (tmp_path / "report.md").read_text()
    assert "classification, fold 4: training" in messages


def test_a_stopped_call_continues(request_of, tmp_path, monkeypatch):
    """Fold 0 is whole, fold 1 stops in its second epoch; the same call finishes and leaves fold 0 alone."""
    request = request_of(epochs=2)
    real = run_module.make_trainer
    broken = stopped_by(KeyboardInterrupt(), real)
    monkeypatch.setattr(
        run_module, "make_trainer", lambda out, *a, **k: (broken if "fold-1" in str(out) else real)(out, *a, **k)
    )
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(request, tmp_path)
    signal.signal(signal.SIGINT, handler)  # Lightning turns it off on its way out
    monkeypatch.setattr(run_module, "make_trainer", real)
    weights = tmp_path / "fold-0" / "classifier.safetensors"
    made = weights.stat().st_mtime_ns
    assert not (tmp_path / "report.json").exists()
    assert not (tmp_path / "fold-1" / "classifier.safetensors").exists()

    report, messages = run(request, tmp_path)
    assert weights.stat().st_mtime_ns == made
    assert any("classification, fold 0: trained already" in line for line in messages)
    assert "classification, fold 1: goes on from its last checkpoint" in messages
    with (tmp_path / "fold-1" / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
    assert report["folds"]["measured"] == [0, 1]

    again, messages = run(request, tmp_path)
    assert [line for line in messages if "training" in line or "goes on" in line] == []
    assert again["figures"] == report["figures"]


def test_folds_can_be_trained_without_measuring_them(request_of, tmp_path):
    report, messages = run(request_of(), tmp_path, measure=False)
    assert report == {}
    assert not (tmp_path / REPORT).exists()
    assert (tmp_path / "fold-1" / "classifier.json").is_file()
    assert "classification, fold 1: training" in messages


def test_a_changed_setting_is_named(request_of, tmp_path, monkeypatch):
    run(request_of(folds=(0,)), tmp_path)
    monkeypatch.setattr(room, "_TRAIN", {})  # nothing may be trained
    with pytest.raises(InputError, match=r"fold-0: the fold was trained with learning_rate = 0\.0004, not 0\.001"):
        run(request_of(learning_rate=0.001), tmp_path)
    run(request_of(folds=(0,), device="auto", workers=1), tmp_path)  # changes no result


def test_other_initial_weights_of_the_same_name_are_reported(request_of, tmp_path, monkeypatch):
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"one")
    settings = plain_config(request_of().training["classification"]) | {"init": str(start)}
    assert changed_setting(with_start(settings), with_start(settings)) == ""
    kept = with_start(settings)
    start.write_bytes(b"two")
    assert changed_setting(kept, with_start(settings)) == f"other weights than {start} now holds"
    start.unlink()  # a run that goes on needs them no more
    assert changed_setting(kept, with_start(settings)) == ""


def test_a_changed_setting_of_an_interrupted_fold_is_named(request_of, tmp_path):
    run(request_of(folds=(1,)), tmp_path)
    (tmp_path / "fold-1" / "classifier.json").unlink()
    with pytest.raises(InputError, match="began with seed = 0, not 3"):
        run(request_of(folds=(0, 1), seed=3), tmp_path)
    assert not (tmp_path / "fold-0").exists()


def test_a_report_of_something_else_is_kept(request_of, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"stage": "classification"}))
    with pytest.raises(InputError, match="tumorlens did not write this file"):
        run(request_of(), tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"kind": KIND, "stage": "classification", "files": [REPORT]}))
    with pytest.raises(InputError, match="a report is here already"):
        run(request_of(), tmp_path)


def test_folds_and_starts_are_checked_before_any_training(request_of, phantom_set, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_TRAIN", {})
    with pytest.raises(InputError, match="no fold 9, the data have folds 0 to 4"):
        run(request_of(folds=(0, 9)), tmp_path)
    init = str(tmp_path / "cls" / "fold-{fold}.safetensors")
    with pytest.raises(InputError, match=r"fold-0.safetensors: no such weight file, from which fold 0 is to start"):
        run(request_of(init=init), tmp_path)
    segmenter = segmenter_config(phantom_set)
    with pytest.raises(InputError, match="p4 needs an LGG folder"):
        run(crossval_request({"segmentation": segmenter}, protocol="p4"), tmp_path)


def test_fold_in_init_is_the_folds_number(phantom_set, tmp_path):
    first = config(phantom_set, init="a/{fold}/b.safetensors")
    runs = list(room._runs(crossval_request({"classification": first}), (2, 4), tmp_path))
    assert [(r.config.fold, r.config.init) for r in runs] == [(2, "a/2/b.safetensors"), (4, "a/4/b.safetensors")]


def test_stages_that_would_make_different_folds_are_refused(phantom_set, tmp_path, monkeypatch):
    """A tumor without a mask is of use to the classifier only; without it both stages make the same folds."""
    monkeypatch.setattr(room, "_TRAIN", {})
    rows = [row.rsplit(",", 1)[0].split(",") for row in (phantom_set / "index.csv").read_text().splitlines()]
    index = tmp_path / "index.csv"

    def both():
        index.write_text("\n".join(",".join(row) for row in rows) + "\n")
        data = f"{index}@{phantom_set}"
        configs = {"classification": config(data), "segmentation": segmenter_config(data)}
        return crossval_request(configs, folds=(0,))

    with pytest.raises(KeyError, match="classification"):  # goes on to train
        run(both(), tmp_path / "out")
    for row, cell in ((3, 1), (3, 3)):
        rows[row][cell], kept = "", rows[row][cell]
        with pytest.raises(InputError, match=r"not every scan has a fold.*tumorlens data split --folds 5"):
            run(both(), tmp_path / "out")
        rows[row][cell] = kept


def test_p3_has_nothing_to_cross_validate(request_of, tmp_path):
    with pytest.raises(InputError, match="protocol p3 has no folds, so there is nothing to cross-validate"):
        run(replace(request_of(folds=()), protocol="p3"), tmp_path)


def test_a_finished_run_needs_weights_and_card(phantom_set, tmp_path):
    fold = FoldRun("classification", config(phantom_set), tmp_path)
    assert not fold.finished
    assert not fold.interrupted
    (tmp_path / "classifier.safetensors").write_bytes(b"")
    assert not fold.finished
    fold.check()
    assert replace(fold, stage="segmentation").finished is False


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Runs a cross-validation that trains and measures nothing: what it would train, and what it would measure."""

    def run_plan(request):
        trained, measured = [], []
        train = {stage: lambda config, folder, *_: trained.append((config, folder)) for stage in room._TRAIN}
        monkeypatch.setattr(room, "_TRAIN", train)
        monkeypatch.setattr(room, "evaluate", lambda request, *_: measured.append(request))
        run(request, tmp_path)
        return trained, measured[0]

    return run_plan


def test_the_two_stages_of_a_fold_follow_each_other(plan, phantom_set, tmp_path):
    """So that a segmenter can start from its fold's classifier, and a call that was stopped leaves whole folds."""
    init = str(tmp_path / "classification" / "fold-{fold}" / "classifier.safetensors")
    segmenter = segmenter_config(phantom_set, init=init)
    trained, measured = plan(
        crossval_request({"classification": config(phantom_set), "segmentation": segmenter}, folds=(0, 3))
    )
    stages = ("classification", "segmentation")
    assert [folder for _, folder in trained] == [tmp_path / s / f"fold-{k}" for k in (0, 3) for s in stages]
    assert [settings.fold for settings, _ in trained] == [0, 0, 3, 3]
    assert [settings.init for settings, _ in trained] == ["none", init.format(fold=0), "none", init.format(fold=3)]
    assert (measured.stage, measured.folds, measured.classifier) == ("pipeline", (0, 3), init)
    assert measured.segmenter == str(tmp_path / "segmentation" / "fold-{fold}" / "segmenter.safetensors")


@pytest.mark.parametrize(
    ("init", "reason"),
    [
        ("classification/fold-{fold}/classifier.safetensors", "the segmenter starts from the classifier of its fold"),
        ("none", "it lacks decoder, encoder, segmentation_head"),
    ],
)
def test_a_share_of_no_whole_segmenter_is_refused_before_any_training(plan, phantom_set, tmp_path, init, reason):
    init = str(tmp_path / init) if init != "none" else init
    segmenter = segmenter_config(phantom_set, init=init, start_share=0.5)
    with pytest.raises(InputError, match=f"--start-share needs a whole network, and {reason}"):
        plan(crossval_request({"classification": config(phantom_set), "segmentation": segmenter}, folds=(0,)))


def test_an_lgg_folder_is_measured_by_p4(plan, tmp_path):
    write_lgg_phantoms(tmp_path / "lgg", patients=5, slices=5)
    segmenter = segmenter_config(tmp_path / "lgg")
    trained, measured = plan(crossval_request({"segmentation": segmenter}))
    assert measured.protocol == "p4"
    assert measured.folds == (0, 1, 2, 3, 4)
    assert len(trained) == 5
