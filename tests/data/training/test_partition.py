"""The parts of a run that reads several data sets."""

from __future__ import annotations

from tests.scans.pictures import save
from tumorlens.data.config import DataConfig
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.training.partition import load_partition


def data_set(folder, seeds, fold_of=None):
    """An index of phantoms, each of a patient of its own; returns its folder."""
    rows = ["image,label,patient,fold"]
    for k, seed in enumerate(seeds):
        label = ("no_tumor", "glioma")[k % 2]
        save(folder / f"{seed}.png", phantom_slice(seed, label, size=64, pixel_mm=3.4).image)
        rows.append(f"{seed}.png,{label},{folder.name}-{seed},{'' if fold_of is None else fold_of(k)}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return str(folder)


def test_a_set_without_folds_trains_beside_one_with_folds(tmp_path):
    sets = data_set(tmp_path / "mine", range(24), lambda k: k // 2 % 3), data_set(tmp_path / "reviewed", range(50, 62))
    for split in ("folds", "holdout"):
        parts = load_partition(DataConfig(sets, split=split, fold=1, size=64, duplicates="drop"))
        held_out = parts.test if split == "folds" else parts.validation
        assert {s.source for s in held_out.samples} == {0, 1}
        assert {s.fold for s in held_out.samples if s.source == 0} == {1}
        patients = [{s.patient for s in part.samples} for part in (parts.train, parts.validation, parts.test)]
        assert len(set().union(*patients)) == sum(map(len, patients))
