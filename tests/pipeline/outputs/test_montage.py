"""The montage: its slices, their proportions and its text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import tumorlens.pipeline.outputs.montage as module
import tumorlens.pipeline.outputs.text as letters
from tests.scans.results import result_of
from tumorlens.data.errors import InputError
from tumorlens.data.scan import Scan
from tumorlens.pipeline.measurements.lesions import measure_lesions, number_lesions
from tumorlens.pipeline.outputs.montage import draw_montage, shown_slices

CONTOUR = (255, 225, 0)
THREE_PLANES = 3


def ball(shape, spacing, center_mm, radius=22.0):
    """A ball in a gray volume in RAS order, and its scan."""
    x, y, z = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip((x, y, z), center_mm, strict=True)))
    mask = (distance <= radius).astype(np.uint8)
    voxels = np.random.default_rng(0).uniform(90, 110, shape).astype(np.float32)
    return mask, Scan.from_array(voxels, np.diag([*spacing, 1.0]))


def rings(picture):
    """The boxes ``(left, top, width, height)`` of the contours drawn in a picture, from left to right."""
    line = np.all(picture == CONTOUR, axis=-1).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(line, connectivity=8)
    return sorted(tuple(int(v) for v in row[:4]) for row in stats[1:])


def ticks(picture):
    mark = np.all(picture == module._MARK, axis=-1).astype(np.uint8)
    _, _, stats, centers = cv2.connectedComponentsWithStats(mark, connectivity=8)
    upright = [tuple(c) for s, c in zip(stats[1:], centers[1:], strict=True) if s[3] > s[2]]
    level = [tuple(c) for s, c in zip(stats[1:], centers[1:], strict=True) if s[3] < s[2]]
    return sorted(upright), sorted(level)


@pytest.fixture(scope="module")
def thick():
    """24 axial slices of 5 mm with a ball on the patient's right, to anterior."""
    return result_of(*reversed(ball((192, 224, 24), (1.0, 1.0, 5.0), (130, 150, 60))))


def planes_of(result):
    """The lower part of the montage."""
    picture = draw_montage(result)
    return picture[
        module._title(result, picture.shape[1]).shape[0] + module._grid(result, (0, 200)).shape[0] + 2 * module._GAP :
    ]


def test_a_ball_is_round_in_every_plane(thick):
    boxes = rings(planes_of(thick))
    assert len(boxes) == THREE_PLANES
    for _, _, width, height in boxes:
        assert height / width == pytest.approx(1, abs=0.12)  # a slice of 5 mm in 44
    # and equally large: one scale for all planes
    assert np.ptp([width for _, _, width, _ in boxes]) <= 3


@pytest.mark.parametrize("spacing", [(4.0, 1.0, 2.0), (1.0, 5.0, 2.0), (3.0, 1.0, 6.0)])
def test_a_ball_is_round_in_its_slices(spacing):
    shape = tuple(round(120 / s) for s in spacing)
    result = result_of(*reversed(ball(shape, spacing, (60, 60, 60))))
    assert result.scan.pixel_aspect != 1
    grid = module._grid(result, (0, 200))
    _, _, width, height = max(rings(grid), key=lambda box: box[2] * box[3])
    rows_mm, columns_mm = result.scan.slice_spacing_mm
    assert abs(height / width - 1) <= max(rows_mm, columns_mm) / 44 + 0.03


def test_the_ticks_point_to_the_center(thick):
    planes = planes_of(thick)
    upright, level = ticks(planes)
    assert len(upright) == len(level) == 2 * THREE_PLANES
    for place, (left, top, width, height) in enumerate(rings(planes)):
        x, y = left + width / 2, top + height / 2
        assert [c[0] for c in upright[2 * place : 2 * place + 2]] == pytest.approx([x, x], abs=3)
        assert [c[1] for c in level[2 * place : 2 * place + 2]] == pytest.approx([y, y], abs=5)


def test_planes_are_radiological_and_say_so(thick, monkeypatch):
    written = []
    real = module.draw_text
    monkeypatch.setattr(module, "draw_text", lambda *a: (written.append((a[1], a[2], a[3], a[0].shape)), real(*a))[1])
    planes = planes_of(thick)
    letters = [w for w in written if len(w[0]) == 1]
    assert "".join(w[0] for w in letters) == "RLAP" + "RLSI" + "APSI"
    for k in range(0, 12, 4):
        (_, x0, _, shape), (_, x1, _, _), (_, _, y0, _), (_, _, y1, _) = letters[k : k + 4]
        assert x0 < shape[1] / 4 and x1 > shape[1] * 3 / 4
        assert y0 < shape[0] / 4 and y1 > shape[0] * 3 / 4
    # right of the patient is left in the axial and coronal plane; anterior is up, and left in the sagittal one
    _, level = ticks(planes)
    for place, (left, _, width, _) in enumerate(rings(planes)):
        assert left + width / 2 < (level[2 * place][0] + level[2 * place + 1][0]) / 2
    planes = [w[0] for w in written if w[0].startswith(("axial", "coronal", "sagittal"))]
    assert planes == ["axial 12", "coronal 150", "sagittal 130"]


def test_it_shows_label_and_confidence_and_nothing_of_the_patient(thick, monkeypatch):
    texts = texts_of(monkeypatch)
    scan = replace(thick.scan, path=Path("/data/Doe^Jane.nii.gz"))
    draw_montage(replace(thick, scan=scan, label="no_tumor", probabilities={"no_tumor": 0.876}))
    assert "no tumor 0.88" in texts and "research only" in texts
    known = r"slice \d+|[RLAPSI]|1|(axial|coronal|sagittal) \d+|no tumor 0.88|research only|lesion 1: [\d.]+ ml"
    assert [text for text in texts if not re.fullmatch(known, text)] == []


def texts_of(monkeypatch):
    """What is written on pictures from now on."""
    texts = []
    real = letters._letters
    monkeypatch.setattr(letters, "_letters", lambda line, *rest: (texts.append(line), real(line, *rest))[1])
    return texts


def test_lesions_are_described_and_doubts_said(thick, monkeypatch):
    mask = thick.mask.copy()
    mask[20:30, 20:30, 3:5] = 1
    numbers = number_lesions(mask, thick.scan)
    lesions = measure_lesions(numbers, thick.scan, [0.98, 0.55])
    texts = texts_of(monkeypatch)
    draw_montage(replace(thick, mask=mask, lesions=lesions))
    ml = [f"{lesion.volume_ml:.3g}" for lesion in lesions]
    described = f"lesion 1: {ml[0]} ml, confidence 0.98   |   lesion 2: {ml[1]} ml, confidence 0.55, doubtful (dashed)"
    assert described in texts
    assert {"1", "2"} <= set(texts)


def test_many_lesions_are_cut_short(thick):
    (lesion,) = thick.lesions
    many = [replace(lesion, number=n, confidence=0.9) for n in range(1, 40)]
    lines = module._legend(replace(thick, lesions=many), 1024)
    assert (
        "lesion 12:" in " ".join(lines)
        and "lesion 13:" not in " ".join(lines)
        and lines[-1].endswith("27 more: see result.json")
        and len(lines) > 2
    )


def test_it_is_no_larger_than_2400(thick):
    for shape, spacing in (((40, 400, 30), (1, 1, 5)), ((64, 64, 300), (1, 1, 1)), ((512, 20, 512), (0.4, 9, 0.4))):
        mask = np.zeros(shape, np.uint8)
        mask[5:-5, 5:-5, 5:-5] = 1
        scan = Scan.from_array(np.random.default_rng(0).normal(size=shape), np.diag([*spacing, 1.0]))
        picture = draw_montage(result_of(scan, mask))
        assert picture.dtype == np.uint8
        assert max(picture.shape[:2]) <= 2400
    assert draw_montage(thick).shape[1] >= 1000


def test_all_tumor_slices_are_shown():
    mask = np.zeros((32, 32, 30), np.uint8)
    mask[4:9, 4:9, 5:17] = mask[20:22, 20:22, 25] = 1
    result = result_of(Scan.from_array(np.random.default_rng(0).normal(size=mask.shape), np.diag([1, 1, 4, 1.0])), mask)
    assert shown_slices(result) == [*range(5, 17), 25]
    assert len(rings(module._grid(result, (-2, 2)))) == 13


@pytest.mark.parametrize("largest", [10, 11, 38, 57, 58, 69])
def test_of_many_tumor_slices_first_last_and_largest_are_shown(largest):
    mask = np.zeros((40, 40, 90), np.uint8)
    mask[4:9, 4:9, 10:70] = 1
    mask[4:20, 4:20, largest] = 1
    scan = Scan.from_array(np.zeros(mask.shape), np.diag([1, 1, 4, 1.0]))
    chosen = shown_slices(result_of(scan, mask))
    assert len(set(chosen)) == 20
    assert chosen == sorted(chosen)
    assert {10, largest, 69} <= set(chosen)
    assert np.diff(chosen).max() <= 6


def test_a_healthy_volume_shows_its_most_suspicious_slices_and_three_planes(monkeypatch):
    scan = Scan.from_array(np.random.default_rng(0).normal(size=(64, 64, 60)), np.diag([1, 1, 4, 1.0]))
    result = result_of(scan, np.zeros((64, 64, 60), np.uint8), "no_tumor", judged=range(8, 52))
    suspicious = [9, 11, 12, 20, 21, 30, 33, 34, 40, 44, 45, 51]
    for row in result.slices:
        row["probabilities"] = {"no_tumor": 0.5 if row["index"] in suspicious else 0.9}
    result.slices[33 - 8]["probabilities"] = {"no_tumor": 0.25}
    assert shown_slices(result) == suspicious
    texts = texts_of(monkeypatch)
    picture = draw_montage(result)
    assert not np.all(picture == module._MARK, axis=-1).any()  # there is nothing to point to
    assert "slice 33, tumor 0.75" in texts and "slice 9, tumor 0.50" in texts
    assert {"axial 33", "coronal 32", "sagittal 32"} <= set(texts)
    assert shown_slices(result_of(scan, result.mask, "no_tumor", judged=[3, 9])) == [3, 9]


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 5.0)])
def test_without_orientation_there_is_only_the_grid(thick, spacing):
    result = result_of(Scan.from_array(thick.scan.voxels, spacing_mm=spacing), thick.mask)
    picture = draw_montage(result)
    assert not np.all(picture == module._MARK, axis=-1).any()
    assert len(rings(picture)) == len(shown_slices(result)) == 9


def test_gray_levels_are_those_of_the_whole_volume():
    voxels = np.zeros((64, 64, 4))
    voxels[16:48, 16:48] = np.array([25.0, 50.0, 100.0, 100.0])
    scan = Scan.from_array(voxels, np.diag([1, 1, 9, 1.0]))
    grid = module._grid(result_of(scan, np.zeros(voxels.shape, np.uint8), "no_tumor"), (0.0, 100.0))
    assert [int(v) for v in grid[128, 128::260, 0]] == [63, 127, 255, 255]
    result = result_of(scan, np.zeros(voxels.shape, np.uint8), "no_tumor")
    picture = draw_montage(result)
    top = len(module._title(result, picture.shape[1]))
    assert [int(v) for v in picture[top + 4 + 128, 128::260, 0]] == [63, 127, 255, 255]


def test_a_lesion_thinner_than_a_pixel_of_the_tile_is_drawn():
    mask = np.zeros((1024, 1024, 3), np.uint8)
    mask[300:700, 301, 1] = 1
    scan = Scan.from_array(np.zeros(mask.shape, np.uint8).astype(np.int16), np.diag([0.2, 0.2, 5, 1.0]))
    assert len(rings(module._grid(result_of(scan, mask), (0, 1)))) == 1


def test_a_picture_and_a_single_slice_have_no_montage():
    picture = Scan.from_array(np.eye(30))
    single = Scan.from_array(np.ones((30, 30, 1)), np.eye(4))
    for scan in (picture, single):
        with pytest.raises(InputError, match="several slices"):
            draw_montage(result_of(scan, np.zeros(scan.voxels.shape, np.uint8), "no_tumor"))


def test_other_planes_of_the_same_volume(thick):
    scan = thick.scan.with_plane("coronal")
    result = replace(thick, scan=scan, lesions=measure_lesions(number_lesions(thick.mask, scan), scan))
    chosen = shown_slices(result)
    assert (len(chosen), chosen[0], chosen[-1]) == (20, 128, 172)
    boxes = rings(module._grid(result, (0, 200)))
    assert max(h / w for _, _, w, h in boxes[8:12]) < 1.3
    assert len(rings(planes_of(result))) == THREE_PLANES
