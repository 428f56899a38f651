"""Reports of the three stages: their figures follow from cases.csv, and say on what they were measured."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from tests.data.training.runs import classifier_config, train
from tests.scans.lgg import write_lgg_phantoms
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import read_sample
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.evaluation.evaluate import evaluate
from tumorlens.pipeline.evaluation.report import CASES, KIND, PICTURES, REPORT, TEXT, check_out
from tumorlens.pipeline.evaluation.request import EvaluationRequest
from tumorlens.pipeline.evaluation.tables import cell, fold_table, leaves, over_folds
from tumorlens.segmentation.predict import Segmenter


@dataclass
class Measured:
    report: dict
    rows: list
    out: Path
    warnings: list
    messages: list


def measure(out, stage, data, overwrite=False, **rest):
    warnings, messages = [], []
    sources = tuple(data) if isinstance(data, list) else (str(data),)
    request = EvaluationRequest(sources, stage, device="cpu", command="tumorlens evaluate ...", **rest)
    report = evaluate(request, out, overwrite, None, messages.append, warnings.append)
    with (out / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert report == json.loads((out / "report.json").read_text())
    return Measured(report, rows, out, warnings, messages)


def with_sets(classifier, folder):
    """A copy of weights with prediction sets; those of so few validation slices have none."""
    folder.mkdir(parents=True, exist_ok=True)
    source, copied = Path(classifier), folder / "classifier.safetensors"
    card = json.loads(source.with_suffix(".json").read_text())
    assert "too_few" in card["conformal"]
    card["conformal"] = {"level": 0.95, "thresholds": dict.fromkeys(CLASSES, 0.25)}
    copied.write_bytes(source.read_bytes())
    copied.with_suffix(".json").write_text(json.dumps(card))
    return str(copied)


@pytest.fixture(scope="module")
def classified(phantom_set, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("classified")
    rest = {"explain": True, "classifier": with_sets(weights["classifier"], tmp_path_factory.mktemp("sets"))}
    return measure(out, "classification", phantom_set, protocol="p2", folds=(0, 1), **rest)


def columns(rows, kind):
    return np.array([[float(row[f"{kind}_{name}"]) for name in CLASSES] for row in rows])


def ece(labels, shares, bins=15):
    """Written anew from its definition (Guo et al., ICML 2017)."""
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    total = 0.0
    for k in range(bins):
        inside = (confidence >= k / bins) & (confidence < (k + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


def test_classification_figures_follow_from_the_cases(classified):
    rows, figures = classified.rows, classified.report["figures"]
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    assert len(rows) == classified.report["n"] == 16
    for kind in ("before", "after"):
        shares = columns(rows, kind)
        per_slice = figures[kind]["slice"]
        assert per_slice["accuracy"]["value"] == pytest.approx((shares.argmax(1) == labels).mean())
        assert per_slice["ece"]["value"] == pytest.approx(ece(labels, shares), abs=1e-6)
        assert per_slice["log_loss"]["value"] == pytest.approx(-np.mean(np.log(shares[range(16), labels])))
        assert per_slice["macro_f1"]["value"] == pytest.approx(f1_score(labels, shares.argmax(1), average="macro"))
        auc = np.mean([roc_auc_score(labels == c, shares[:, c]) for c in range(4)])
        assert per_slice["roc_auc_mean"]["value"] == pytest.approx(auc)
        patients = sorted({row["patient"] for row in rows})
        hits = [
            shares[[r["patient"] == p for r in rows]].mean(0).argmax()
            == CLASSES.index(next(r["label"] for r in rows if r["patient"] == p))
            for p in patients
        ]
        assert figures[kind]["patient"]["accuracy"]["value"] == pytest.approx(np.mean(hits))
    assert figures["n_patients"] == len({row["patient"] for row in rows})


def test_the_gate_and_the_prediction_sets_follow_from_the_cases(classified):
    rows, figures = classified.rows, classified.report["figures"]
    shares, sick = columns(rows, "after"), np.array([row["label"] != "no_tumor" for row in rows])
    threshold = figures["presence"]["threshold"]
    positive = 1 - shares[:, 0].astype(np.float32) >= threshold
    assert [row["positive"] == "1" for row in rows] == positive.tolist()
    assert figures["presence"]["sensitivity"]["value"] == pytest.approx(positive[sick].mean())
    assert figures["presence"]["specificity"]["value"] == pytest.approx((~positive[~sick]).mean())
    covered = [row["label"] in row["prediction_set"].split() for row in rows]
    assert figures["prediction_sets"]["coverage"]["value"] == pytest.approx(np.mean(covered))


def test_the_report_says_what_was_measured_and_how(classified, phantom_set, weights):
    report = classified.report
    card = json.loads(Path(weights["classifier"]).with_suffix(".json").read_text())
    assert report["data"] == [str(phantom_set)]
    assert report["protocol"]["id"] == "p2"
    assert report["folds"]["measured"] == [0, 1]
    assert report["models"][0]["sha256"] == card["sha256"]
    assert {"torch", "python", "monai"} <= set(report["versions"])
    assert report["command"].startswith("tumorlens evaluate")
    assert "bootstrap over patients" in report["metric_policy"]
    text = (classified.out / "report.md").read_text()
    for needed in (card["sha256"], report["command"], report["metric_policy"], "P2", "16 slices of 8 patients"):
        assert needed in text
    assert "fold 0 | fold 1 | mean ± sd" in text
    assert "nan" not in text.lower()
    assert set(report["files"]) == {p.name for p in classified.out.iterdir()} <= {REPORT, TEXT, CASES, *PICTURES}
    assert report["kind"] == KIND
    for name in ("roc.png", "reliability.png", "confusion.png", "worst.png"):
        assert np.asarray(Image.open(classified.out / name)).std() > 5


def test_patients_that_the_weights_learned_from_are_counted(classified):
    assert classified.warnings == classified.report["warnings"]
    assert classified.warnings == [
        "the epoch and the operating point of the classification weights were chosen on 4 of the 4 patients of fold 1"
    ]
    assert f"**Warning: {classified.warnings[0]}.**" in (classified.out / "report.md").read_text()


def test_folds_are_reported_one_by_one_and_together(classified):
    report = classified.report
    each = [report["by_fold"][k]["after"]["slice"]["accuracy"]["value"] for k in "01"]
    spread = report["over_folds"]["after.slice.accuracy"]
    assert spread == {"mean": pytest.approx(np.mean(each)), "sd": pytest.approx(np.std(each, ddof=1)), "folds": 2}
    by_fold = {row["fold"] for row in classified.rows}
    assert by_fold == {"0", "1"}


def test_the_probe_and_the_explanation_are_in_the_report(classified):
    assert classified.report["by_fold"]["0"]["probe"]["frames"]["n"] == 8
    explained = classified.report["figures"]["explanation"]
    assert explained["all"]["n"] == 12
    assert 0 <= explained["all"]["pointing_game"]["value"] <= 1


def test_a_network_without_feature_maps_is_not_explained(phantom_set, tmp_path):
    train(classifier_config(phantom_set, arch="mlp", epochs=1), tmp_path / "mlp")
    mlp = str(tmp_path / "mlp" / "classifier.safetensors")
    with pytest.raises(InputError, match="no convolution"):
        measure(tmp_path / "out", "classification", phantom_set, classifier=mlp, folds=(0,), explain=True)


def test_p1_renormalizes_and_says_so(phantom_set, weights, tmp_path):
    measured = measure(
        tmp_path, "classification", phantom_set, protocol="p1", classifier=weights["classifier"], probe=False
    )
    assert "the test fold on the weights' card" in measured.report["folds"]["choice"]
    assert "renormalized" in measured.report["metric_policy"]
    assert measured.warnings == []
    shares = columns(measured.rows, "after")[:, 1:]
    shares = shares / shares.sum(axis=1, keepdims=True)
    labels = np.array([CLASSES.index(row["label"]) - 1 for row in measured.rows])
    assert measured.report["figures"]["after"]["slice"]["ece"]["value"] == pytest.approx(ece(labels, shares), abs=1e-6)
    assert [CLASSES[1 + k] for k in shares.argmax(1)] == [row["predicted"] for row in measured.rows]
    assert measured.report["figures"]["presence"]["specificity"] is None


def test_masks_are_scored_on_the_sources_grid(phantom_set, weights, tmp_path):
    """Drawn anew in one batch, as the sweep does (in another, a pixel may part at the threshold), and scored by another
    formula, Dice is the same."""
    measured = measure(tmp_path, "segmentation", phantom_set, protocol="p2", segmenter=weights["segmenter"])
    segmenter, grid = Segmenter.load(weights["segmenter"], "cpu"), Preprocess(64)
    by_name = {str(s.image): s for s in load_samples(phantom_set)}
    readings = [read_sample(by_name[row["file"]]) for row in measured.rows]
    heads = [grid(reading.image, reading.aspect) for reading in readings]
    maps = segmenter.predict(np.stack([prepared.image for prepared in heads]))
    again = []
    for reading, prepared, map_hw in zip(readings, heads, maps, strict=True):
        guess = grid.mask_to_source(map_hw, prepared.placement, segmenter.mask_threshold) > 0
        truth = np.zeros(guess.shape, bool) if reading.mask is None else reading.mask > 0
        total = guess.sum() + truth.sum()
        again.append(2 * (guess & truth).sum() / total if total else 1.0)
    assert [float(row["dice"]) for row in measured.rows] == pytest.approx(again, abs=1e-6)
    figures = measured.report["figures"]
    assert figures["slice"]["dice_all"]["value"] == pytest.approx(np.mean(again), abs=1e-6)
    sick = np.array([int(row["truth_px"]) > 0 for row in measured.rows])
    assert figures["slice"]["dice_tumor"]["value"] == pytest.approx(np.array(again)[sick].mean(), abs=1e-6)
    marked = np.array([int(row["guess_px"]) > 0 for row in measured.rows])
    assert figures["slice"]["false_masks"]["value"] == pytest.approx(marked[~sick].mean())
    assert {"dice_by_size.png", "worst.png"} <= {p.name for p in tmp_path.iterdir()} <= {REPORT, TEXT, CASES, *PICTURES}


def test_p4_stacks_the_slices_of_a_patient(weights, tmp_path):
    write_lgg_phantoms(tmp_path / "lgg", patients=6, slices=5)
    rest = {"segmenter": weights["segmenter"], "folds": ()}
    measured = measure(tmp_path / "out", "segmentation", tmp_path / "lgg", protocol="p4", **rest)
    volume = measured.report["figures"]["volume"]
    voxels = {}
    for row in measured.rows:
        counts = voxels.setdefault(row["patient"], np.zeros(2))
        counts += [2 * int(row["overlap_px"]), int(row["truth_px"]) + int(row["guess_px"])]
    again = {patient: both / total if total else 1.0 for patient, (both, total) in voxels.items()}
    assert volume["by_patient"] == pytest.approx(again)
    assert volume["mean"]["value"] == pytest.approx(np.mean(list(again.values())))
    assert len(again) == 6
    assert "made as training makes them" in measured.report["folds"]["choice"]
    assert any("Dice of volumes" in line for line in measured.messages)


def test_a_report_is_not_lost_by_accident(phantom_set, weights, tmp_path):
    first = measure(tmp_path, "segmentation", phantom_set, segmenter=weights["segmenter"], folds=(0,))
    assert (tmp_path / "dice_by_size.png").is_file()
    with pytest.raises(InputError, match="a report is here already; give --overwrite"):
        measure(tmp_path, "classification", phantom_set, classifier=weights["classifier"], folds=(0,))
    assert json.loads((tmp_path / "report.json").read_text()) == first.report
    rest = {"classifier": weights["classifier"], "folds": (0,), "probe": False}
    measure(tmp_path, "classification", phantom_set, overwrite=True, **rest)
    assert not (tmp_path / "dice_by_size.png").exists()
    assert (tmp_path / "roc.png").is_file()


@pytest.mark.parametrize("name", ["report.md", "cases.csv", "worst.png", "report.json"])
def test_files_of_others_are_left_alone(tmp_path, name):
    (tmp_path / name).write_text('{"kind": "tumorlens data report", "stage": "classification", "files": []}')
    for overwrite in (False, True):
        with pytest.raises(InputError, match=f"{name}: tumorlens did not write this file and leaves it alone"):
            check_out(tmp_path, overwrite)
    (tmp_path / name).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    check_out(tmp_path, False)


def test_only_the_reports_own_files_are_replaced(tmp_path):
    """A report without a picture does not own one that lies there; one that was cut off owns what it named."""
    kept = {"kind": KIND, "files": ["report.json", "report.md", "notes.txt"]}
    (tmp_path / "report.json").write_text(json.dumps(kept))
    check_out(tmp_path, True)
    (tmp_path / "roc.png").write_text("mine")
    with pytest.raises(InputError, match=r"roc\.png: tumorlens did not write this file"):
        check_out(tmp_path, True)


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="this is a file, not a folder"):
        check_out(tmp_path / "file", False)
    with pytest.raises(InputError, match="/proc: you may not write to this folder"):
        check_out(Path("/proc/nowhere/report"), False)


def test_one_class_and_one_patient_give_no_nan(phantom_set, weights, tmp_path):
    (tmp_path / "index.csv").write_text("image,mask,label,patient\nimages/1_0.png,masks/1_0.png,glioma,p1\n")
    data = f"{tmp_path / 'index.csv'}@{phantom_set}"
    measured = measure(tmp_path / "c", "classification", data, classifier=weights["classifier"])
    assert measured.report["figures"]["after"]["slice"]["roc_auc_mean"] is None
    assert "| ROC-AUC, mean of one against rest | - | - |" in (tmp_path / "c" / "report.md").read_text()
    measure(tmp_path / "s", "segmentation", data, segmenter=weights["segmenter"])
    measure(tmp_path / "p", "pipeline", data, **weights)


@pytest.fixture(scope="module")
def mixed(phantom_set, weights, tmp_path_factory):
    """Two sources: one with types and two sequences, one whose tumors have no known type; the second one alone."""
    folder = tmp_path_factory.mktemp("mixed")
    header, *lines = (phantom_set / "index.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    typed = [",".join([*row, "flair" if i % 2 else "t1c"]) for i, row in enumerate(cells[:16])]
    (folder / "clinic.csv").write_text("\n".join([f"{header},sequence", *typed]) + "\n")
    untyped = [",".join([row[0], "", "no" if row[2] == "no_tumor" else "tumor", *row[3:]]) for row in cells[16:32]]
    (folder / "web.csv").write_text("\n".join([header, *untyped]) + "\n")
    data = [f"{folder / name}@{phantom_set}" for name in ("clinic.csv", "web.csv")]
    rest = {"classifier": with_sets(weights["classifier"], folder / "weights"), "probe": False}
    both = measure(folder / "both", "classification", data, **rest)
    return both, measure(folder / "one", "classification", data[1:], protocol="p5", **rest)


def test_tumors_of_unknown_type_count_for_presence_only(mixed):
    both, _ = mixed
    figures, rows = both.report["figures"], both.rows
    labels = np.array([row["label"] for row in rows])
    positive = np.array([row["positive"] == "1" for row in rows])
    tumor = 1 - columns(rows, "after")[:, 0]
    presence = figures["presence"]
    assert (presence["n_tumor"], presence["n_healthy"]) == (24, 8)
    assert presence["auc"]["value"] == pytest.approx(roc_auc_score(labels != "no_tumor", tumor))
    assert presence["sensitivity"]["value"] == pytest.approx(positive[labels != "no_tumor"].mean())
    known = labels != "tumor"
    assert figures["after"]["slice"]["n"] == figures["prediction_sets"]["n"] == known.sum() == 20
    assert np.sum(figures["after"]["slice"]["confusion"]) == 20
    assert presence["n_typed"] == (positive & known & (labels != "no_tumor")).sum()


def test_figures_by_group_follow_from_the_cases(mixed):
    both, alone = mixed
    groups = {row["group"]: row for row in both.report["groups"]}
    assert list(groups) == ["0 clinic", "1 web", "t1c", "flair", "0 clinic, t1c", "0 clinic, flair"]
    for name, row in groups.items():
        chosen = [
            r
            for r in both.rows
            if all(
                part in (f"{r['source']} {both.report['sources'][int(r['source'])]}", r["sequence"])
                for part in name.split(", ")
            )
        ]
        sick = np.array([r["label"] != "no_tumor" for r in chosen])
        positive = np.array([r["positive"] == "1" for r in chosen])
        assert (row["n"], row["n_tumor"]) == (len(chosen), sick.sum())
        assert row["sensitivity"]["value"] == pytest.approx(positive[sick].mean())
        assert row["auc"]["value"] == pytest.approx(roc_auc_score(sick, 1 - columns(chosen, "after")[:, 0]))
    assert groups["1 web"]["type_accuracy"] is None
    with (both.out / "groups.csv").open(newline="") as file:
        table = {row["group"]: row for row in csv.DictReader(file)}
    assert float(table["flair"]["auc_low"]) == pytest.approx(groups["flair"]["auc"]["low"])
    assert "| 0 clinic, flair | 8 slices | 8 |" in (both.out / "report.md").read_text()
    assert alone.report["groups"] == [] and not (alone.out / "groups.csv").exists()


def test_without_types_the_figures_of_the_classes_are_left_out(mixed):
    _, alone = mixed
    figures = alone.report["figures"]
    assert (
        figures["after"] is figures["before"] is figures["prediction_sets"] is figures["presence"]["accuracy"] is None
    )
    assert figures["presence"]["auc"] is not None
    assert "confusion.png" not in alone.report["files"] and (alone.out / "roc.png").is_file()
    text = (alone.out / "report.md").read_text()
    assert "no tumor has a known type" in text and "Per class" not in text and "nan" not in text.lower()
    assert not any("accuracy" in line for line in alone.messages)


def test_p5_says_whether_the_source_was_left_out(mixed, phantom_set, weights, tmp_path):
    """The weights were trained on the phantoms, of which the source is a part."""
    _, alone = mixed
    assert alone.messages[0].startswith("P5: leave one source out: web; the weights were not trained without it")
    assert any("have learned from" in text for text in alone.warnings)
    index = re.sub(r",p(\d)", r",other\1", (phantom_set / "index.csv").read_text())
    (tmp_path / "abroad.csv").write_text(index)
    rest = {"classifier": weights["classifier"], "probe": False, "protocol": "p5"}
    renamed = measure(tmp_path / "renamed", "classification", f"{tmp_path / 'abroad.csv'}@{phantom_set}", **rest)
    assert renamed.messages[0].startswith("P5: leave one source out: abroad; the weights were not trained without it")
    assert renamed.warnings == [
        "24 of 40 of these slices were training slices of the weights, or are copies of such: figures on them say "
        "nothing about new patients"
    ]
    for file in (phantom_set / "images").iterdir():
        upside_down = np.array(Image.open(file))[::-1]
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(upside_down)).save(tmp_path / "images" / file.name)
    (tmp_path / "abroad.csv").write_text(re.sub(",masks/[^,]*", ",", index))
    other = measure(tmp_path / "out", "classification", tmp_path / "abroad.csv", **rest)
    title = "P5: leave one source out: abroad; the weights have not learned from its patients"
    assert other.report["protocol"]["title"] == other.messages[0] == title


def test_tables_show_undefined_figures():
    assert cell(None) == "-"
    assert cell({"value": 0.5, "low": 0.25, "high": 1.0}) == "0.5000 [0.2500, 1.0000]"
    assert cell({"value": 0.5, "low": None, "high": None}) == "0.5000"
    assert dict(leaves({"a": {"b": None, "c": {"value": 1, "low": 0, "high": 2}}, "by_patient": {"x": 1}})) == {
        "a.b": None,
        "a.c": {"value": 1, "low": 0, "high": 2},
    }
    folds = {"0": {"d": 0.5}, "1": {"d": None}, "2": {"d": 0.7}}
    assert over_folds(folds)["d"] == {"mean": pytest.approx(0.6), "sd": pytest.approx(0.1 * 2**0.5), "folds": 2}
    table = fold_table({"d": "Dice"}, folds, {"d": None})
    assert table.rows == [("Dice", "0.5000", "-", "0.7000", "0.6000 ± 0.1414", "-")]
