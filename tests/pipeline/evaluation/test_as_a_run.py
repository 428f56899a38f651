"""`evaluate pipeline` answers what `run` answers: the same labels, probabilities and masks, to the bit."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from tests.scans.pictures import save, save_volume
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.write import write_nifti
from tumorlens.data.phantom import phantom_slice, phantom_volume


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Eleven pictures, so that batches are full, cut and shared, and a volume."""
    folder = tmp_path_factory.mktemp("scans")
    rows = ["image,mask,label"]
    for seed in range(11):
        label = ("glioma", "no_tumor", "meningioma")[seed % 3]
        phantom = phantom_slice(seed, label)
        save(folder / f"{seed}.png", phantom.image)
        Image.fromarray(phantom.mask * np.uint8(255)).save(folder / f"{seed}_mask.png")
        rows.append(f"{seed}.png,{seed}_mask.png,{label}")
    phantom = phantom_volume(7, "meningioma", (64, 64, 12), (3.6, 3.6, 12.0))
    save_volume(folder / "v.nii.gz", phantom)
    write_nifti(folder / "v_mask.nii.gz", phantom.mask, phantom.scan, "truth")
    rows.append("v.nii.gz,v_mask.nii.gz,meningioma")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_run_and_evaluate_agree_to_the_bit(command, scans, tmp_path, monkeypatch):
    from tumorlens.pipeline.evaluation import end_to_end

    masks = {}
    judge = end_to_end.PipelineEvaluation._judge

    def keep(self, opened, result, fold):
        masks[opened.members[0].image.name] = result
        return judge(self, opened, result, fold)

    monkeypatch.setattr(end_to_end.PipelineEvaluation, "_judge", keep)
    done = command("evaluate", "pipeline", "--data", scans, "-o", tmp_path / "report")
    assert done.exit_code == 0, done.output
    assert "tumorlens run" not in done.output  # nothing differs
    files = [file for file in sorted(scans.iterdir()) if "mask" not in file.name and file.suffix != ".csv"]
    assert command("run", *files, "-o", tmp_path / "out").exit_code == 0
    with (tmp_path / "report" / "cases.csv").open(newline="") as file:
        rows = {row["file"].rpartition("/")[2]: row for row in csv.DictReader(file) if row["kind"] != "slice"}
    assert len(rows) == len(files) == 12
    for file in files:
        folder = tmp_path / "out" / file.name.removesuffix(".gz").rpartition(".")[0]
        run = json.loads((folder / "result.json").read_text())
        row = rows[file.name]
        assert row["predicted"] == run["label"]
        assert {f"p_{name}": p for name, p in run["probabilities"].items()} == {
            key: float(value) for key, value in row.items() if key.startswith("p_") and value
        }
        written = open_scan(folder / ("mask.nii.gz" if file.name.endswith(".gz") else "mask.png"), constant=True)
        assert np.array_equal(written.voxels != 0, masks[file.name].mask != 0)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["engine"] == run["engine"] and report["differs_from_run"] == []


def test_what_differs_from_a_run_is_printed(command, scans, tmp_path):
    index = tmp_path / "two.csv"
    index.write_text("image,mask,label\n0.png,0_mask.png,glioma\n1.png,1_mask.png,no_tumor\n")
    arguments = ["--engine", "torch", "--device", "cpu", "--precision", "fp32", "--tta"]
    done = command("evaluate", "pipeline", "--data", f"{index}@{scans}", "-o", tmp_path / "report", *arguments)
    assert done.exit_code == 0, done.output
    from tumorlens.pipeline.engines.choice import choose_engine

    if choose_engine().name != "torch":
        assert f"computed by torch in fp32 on cpu; `tumorlens run` computes by {choose_engine()}" in done.stdout
        assert "computed by torch in fp32 on cpu" in (tmp_path / "report" / "report.md").read_text()
    assert "each slice and its mirror image are averaged" in done.stdout
