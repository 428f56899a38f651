"""A segmenter with regions: what a run says, draws and writes of them, and that the lesion stays what it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.pipeline.fixed import BRATS, fixed_pipeline
from tests.scans.dicom_results import errors_in
from tests.scans.pictures import save, table
from tests.scans.studies import SICK, series
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.regions import Regions
from tumorlens.data.masks.truth import read_regions
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.batch import run
from tumorlens.pipeline.batch.inputs import collect
from tumorlens.pipeline.batch.stored import read_results
from tumorlens.pipeline.measurements.regions import measure_regions
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs.montage import draw_montage
from tumorlens.pipeline.outputs.overlay import draw_heat, draw_overlay
from tumorlens.pipeline.outputs.report_html import render_report
from tumorlens.pipeline.outputs.table import columns_of
from tumorlens.pipeline.services.exchange import ExportRequest, export_masks
from tumorlens.pipeline.services.exchange_import import import_masks
from tumorlens.pipeline.services.facts import measurements_html

PICTURE = phantom_slice(7, "meningioma", size=96, pixel_mm=2.3).image
THICK = phantom_volume(7, "meningioma", shape=(64, 75, 12), spacing_mm=(3, 3, 10)).scan
ISOTROPIC = phantom_volume(7, "meningioma", shape=(90, 108, 80), spacing_mm=(2, 2, 2)).scan
COLORS = [tuple(bytes.fromhex(row.color[1:])) for row in BRATS.rows]


@pytest.fixture(scope="module")
def pipeline():
    return fixed_pipeline(regions=BRATS)


@pytest.fixture(scope="module")
def results(pipeline):
    return [pipeline.run(source) for source in (PICTURE, THICK, ISOTROPIC)]


def run_all(pipeline, folder, out, **settings):
    """`tumorlens run` over a folder."""
    with TemporaryDirectory() as scratch:
        run.run_batch(pipeline, collect([str(folder)], out, Path(scratch)).jobs, out, **settings)


def test_the_lesion_is_what_it_is_without_regions(results):
    for result, source in zip(results, (PICTURE, THICK, ISOTROPIC), strict=True):
        plain = fixed_pipeline().run(source)
        np.testing.assert_array_equal(result.mask, plain.mask)
        content = result.to_dict() | {"timings_s": {}}
        regions = content.pop("regions")
        assert content == plain.to_dict() | {"timings_s": {}}
        assert [row["name"] for row in regions] == ["whole", "core", "enhancing"]
        assert plain.region_mask is None and plain.region_sizes == []


def test_regions_lie_in_the_lesion_and_in_each_other(results):
    for result in results:
        whole, core, enhancing = (result.region(name) for name in BRATS.names)
        np.testing.assert_array_equal(whole, result.mask)
        assert whole.sum() > core.sum() > enhancing.sum() > 0
        assert (core <= whole).all() and (enhancing <= core).all()
        assert set(np.unique(result.region_mask)) == {0, *BRATS.painted}
    with pytest.raises(InputError, match="there is no region 'edema'; the regions of this segmenter: whole, core, enh"):
        results[0].region("edema")
    assert "of whole, core, enhancing" in repr(results[0])


def test_the_sizes_are_those_of_the_masks(results):
    for result, voxel_mm3 in zip(results, (None, 90, 8), strict=True):
        for name, size in zip(BRATS.names, result.region_sizes, strict=True):
            mask = result.region(name)
            assert size.voxels == mask.sum() and size.area_px == result.scan.view(mask, result.shown_slice).sum()
            assert size.volume_mm3 == (None if voxel_mm3 is None else size.voxels * voxel_mm3)
            assert sum(row["voxels"] for row in size.lesions) == size.voxels
            assert len(size.lesions) == len(result.lesions)
        assert result.region_sizes[0].volume_mm3 == result.tumor_volume_mm3
        assert result.region_sizes[0].area_mm2 == result.tumor_area_mm2


def test_each_lesion_has_its_part_of_a_region():
    numbers = np.zeros((4, 6, 3), np.uint16)
    numbers[:2], numbers[3:] = 1, 2
    values = np.where(numbers == 1, 2, np.where(numbers == 2, 4, 0)).astype(np.uint8)
    values[0] = 1
    scan = phantom_volume(1, shape=(4, 6, 3), spacing_mm=(1, 2, 3)).scan
    whole, core, enhancing = measure_regions(values, BRATS, numbers, scan, 1)
    assert [row["voxels"] for row in whole.lesions] == [36, 18]
    assert [row["voxels"] for row in core.lesions] == [18, 18]
    assert [row["volume_mm3"] for row in enhancing.lesions] == [0, 108]
    assert (enhancing.area_px, enhancing.area_mm2) == (6, 12)


def test_a_voxel_that_no_region_claims_is_in_the_likeliest():
    regions = Regions.parse(("edema=2", "necrosis=1"))
    maps = np.array([[200, 90, 10, 200], [50, 30, 100, 210]], np.uint8)
    assert regions.label(maps, 128).tolist() == [2, 2, 1, 1]
    segmenter = replace(fixed_pipeline(regions=BRATS).segmenter, card=fixed_pipeline().segmenter.card)
    assert segmenter.paint(np.ones((2, 2), np.uint8), []) is None


def test_a_scan_without_a_lesion_has_empty_regions(tmp_path):
    healthy = fixed_pipeline(0.1, regions=BRATS).run(THICK)
    assert [row["volume_mm3"] for row in healthy.to_dict()["regions"]] == [0, 0, 0]
    assert not healthy.region_mask.any()
    noise = fixed_pipeline(regions=BRATS).run(np.random.default_rng(0).integers(0, 255, (96, 96), np.uint8))
    refused = replace(noise, label="refused", probabilities={})
    for result, name in ((healthy, "healthy"), (refused, "refused")):
        files = {file.name for file in result.save(tmp_path / name)}
        assert ("regions.nii.gz" in files) == (name == "healthy") and "regions.png" not in files


def test_the_files_are_labels_again(results, tmp_path):
    for k, (result, source) in enumerate(zip(results, (PICTURE, THICK, ISOTROPIC), strict=True)):
        result.save(tmp_path / str(k))
        scan = result.scan if result.scan.volume else open_scan(save(tmp_path / "a.png", source))
        np.testing.assert_array_equal(read_regions(tmp_path / str(k), scan, BRATS), BRATS.bits(result.region_mask))
    assert np.array_equal(np.array(Image.open(tmp_path / "0" / "regions.png")), results[0].region_mask)
    stored, mask = (nib.load(tmp_path / "2" / f"{name}.nii.gz") for name in ("regions", "mask"))
    np.testing.assert_array_equal(stored.affine, mask.affine)
    assert stored.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(stored.dataobj) > 0, np.asarray(mask.dataobj) > 0)


def test_pictures_show_each_region_in_its_color(results):
    for result in results:
        for picture in [draw_overlay(result), *([draw_montage(result)] if result.scan.volume else [])]:
            for color in COLORS:
                assert (picture == color).all(axis=2).sum() > 40  # its line, and its square below
        plain = replace(result, region_mask=None)
        assert len(draw_overlay(result)) > len(draw_overlay(plain))
    heat = replace(results[0], heat=np.zeros(PICTURE.shape, np.float32))
    assert (draw_heat(heat) == COLORS[2]).all(axis=2).sum() > 40
    assert (draw_overlay(results[0])[:600] == (255, 225, 0)).all(axis=2).sum() == 0  # no line of the lesion beside


def test_the_regions_of_doubtful_lesions_are_dashed_and_not_tinted(results):
    doubtful = [replace(lesion, confidence=0.6) for lesion in results[0].lesions]
    sure, dashed = (draw_overlay(r)[:600] for r in (results[0], replace(results[0], lesions=doubtful)))
    assert (dashed != dashed[..., :1]).any(axis=2).sum() < 0.1 * (sure != sure[..., :1]).any(axis=2).sum()
    for color in COLORS:
        assert 0 < (dashed == color).all(axis=2).sum() < 0.5 * (sure == color).all(axis=2).sum()


def test_report_and_page_list_them(results, tmp_path):
    for k, result in enumerate(results):
        result.save(tmp_path / str(k))
        content = json.loads((tmp_path / str(k) / "result.json").read_text())
        report = render_report(content, tmp_path / str(k))
        page = measurements_html(result)
        assert "<h2>Regions</h2>" in report and "its regions in the colors below" in report
        for name, size in zip(BRATS.names, result.region_sizes, strict=True):
            shown = f"{size.area_px}" if size.volume_mm3 is None else f"{size.volume_mm3 / 1000:.2f}"
            assert f'<th scope="row">{name}</th><td class="n">{shown}</td>' in report
            unit = " px" if size.volume_mm3 is None else " ml"
            assert f"<td>{name}</td><td>{shown}{unit}</td>" in page


def test_a_report_lists_the_part_of_a_region_in_each_lesion(results, tmp_path):
    results[1].save(tmp_path)
    content = json.loads((tmp_path / "result.json").read_text())
    content["lesions"].append(content["lesions"][0] | {"number": 2})
    for n, row in enumerate(content["regions"]):
        row["lesions"].append({"number": 2, "voxels": 1, "volume_mm3": 1000.0 * (n + 1)})
    report = render_report(content, tmp_path)
    assert '<th scope="col" class="n">in lesion 2, ml</th>' in report
    row = report.split('<th scope="row">enhancing</th>')[1].split("</tr>")[0]
    assert row.endswith('<td class="n">3.00</td>') and row.count("<td") == 4


def test_a_table_has_their_columns(pipeline, tmp_path):
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.png", PICTURE)
    (tmp_path / "in" / "b.png").write_bytes(b"damaged")
    out = tmp_path / "out"
    run_all(pipeline, tmp_path / "in", out)
    rows = table(out)
    assert list(rows[0]) == list(columns_of(pipeline.classes, BRATS))
    content = json.loads((out / "a" / "result.json").read_text())
    assert rows[0]["region_core_area_px"] == str(content["regions"][1]["area_px"]) != "0"
    assert rows[0]["region_core_volume_mm3"] == "" and rows[1]["error"]
    before = (out / "a" / "result.json").stat().st_mtime_ns
    run_all(pipeline, tmp_path / "in", out, resume=True)
    assert (out / "a" / "result.json").stat().st_mtime_ns == before  # it is the same
    with pytest.raises(InputError, match="this table has the regions whole, core, enhancing, this segmenter none"):
        run_all(fixed_pipeline(), tmp_path / "in", out, resume=True)
    other = fixed_pipeline(regions=Regions.parse(("whole=1,2,3,4", "core=1,4", "enhancing=4")))
    run_all(other, tmp_path / "in", out, resume=True)
    assert (out / "a" / "result.json").stat().st_mtime_ns != before


def test_a_dicom_series_has_them_as_segments(pipeline, tmp_path):
    series(tmp_path / "scan", SICK)
    scan = open_scan(tmp_path / "scan")
    result = pipeline.run(scan)
    result.save(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {"mask.dcm", "regions.dcm", "measurements.dcm", "regions.nii.gz"} <= set(content["files"])
    assert errors_in(tmp_path / "out" / "regions.dcm") == errors_in(tmp_path / "out" / "measurements.dcm") == []
    bits = read_regions(tmp_path / "out" / "regions.dcm", scan, BRATS)
    np.testing.assert_array_equal(bits, BRATS.bits(result.region_mask))
    fixed_pipeline(0.1, regions=BRATS).run(scan).save(tmp_path / "out")
    assert not (tmp_path / "out" / "regions.dcm").exists()


@pytest.fixture
def out(pipeline, tmp_path):
    """The output folder of a picture, a volume and a series."""
    folder = tmp_path / "in"
    save(folder / "a.png", PICTURE)
    nib.save(nib.Nifti1Image(THICK.voxels, THICK.affine), folder / "b.nii.gz")
    series(folder / "c", SICK)
    run_all(pipeline, folder, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("form", ["nifti", "png", "coco", "slicer", "dicomseg", "rtstruct"])
def test_masks_are_exported_by_region_and_come_back(out, tmp_path, form):
    names = {result.name for result in read_results(out)}
    report = export_masks(ExportRequest(out, tmp_path / "x", form, "region"))
    assert set(report.exported) | set(report.problems) == names
    assert len(report.exported) == (1 if form in ("dicomseg", "rtstruct") else 3)
    described = json.loads((tmp_path / "x" / "labels.json").read_text())["scans"]
    for about in described.values():
        named = {int(value): row["region"] for value, row in about["values"].items()}
        assert named == dict(zip(BRATS.painted, BRATS.names, strict=True))
    if form == "coco":
        content = json.loads((tmp_path / "x" / "annotations.json").read_text())
        assert {one["attributes"]["region"] for one in content["annotations"]} == set(BRATS.names)
    imported = list(import_masks(out, [tmp_path / "x"], "A. Reader"))
    assert len(imported) == len(report.exported)
    assert not any(one.changed or one.problem for one in imported)


def test_a_correction_cuts_the_regions(out, tmp_path):
    export_masks(ExportRequest(out, tmp_path / "x", "nifti"))
    image = nib.load(tmp_path / "x" / "b.nii.gz")
    before = np.asarray(nib.load(out / "b" / "regions.nii.gz").dataobj)
    changed = np.asarray(image.dataobj).copy()
    changed[: changed.shape[0] // 2], changed[0, 0, 0] = 0, 1
    nib.save(nib.Nifti1Image(changed, image.affine, image.header), tmp_path / "x" / "b.nii.gz")
    (one,) = import_masks(out, [tmp_path / "x" / "b.nii.gz"], "A. Reader")
    assert one.changed
    export_masks(ExportRequest(out, tmp_path / "y", "nifti", "region"))
    values = np.asarray(nib.load(tmp_path / "y" / "b.nii.gz").dataobj)
    expected = np.where(changed > 0, before, 0)
    expected[0, 0, 0] = 3  # added, so that no region is known
    np.testing.assert_array_equal(values, expected)
    labels = json.loads((tmp_path / "y" / "labels.json").read_text())["scans"]["b.nii.gz"]["values"]
    assert labels["3"]["name"] == "no region (meningioma)" and "region" not in labels["3"]
    np.testing.assert_array_equal(np.asarray(nib.load(out / "b" / "regions.nii.gz").dataobj), before)


def test_a_run_without_regions_has_none_to_export(tmp_path):
    save(tmp_path / "in" / "a.png", PICTURE)
    run_all(fixed_pipeline(), tmp_path / "in", tmp_path / "out")
    report = export_masks(ExportRequest(tmp_path / "out", tmp_path / "x", "png", "region"))
    assert report.problems == {"a.png": "a.png: the segmenter has told no regions apart; give --labels lesion or class"}


def test_a_map_is_that_of_the_whole_lesion(pipeline):
    options = RunOptions(maps=True)
    with_regions, plain = pipeline.run(THICK, options), fixed_pipeline().run(THICK, options)
    np.testing.assert_array_equal(with_regions.lesion_map, plain.lesion_map)
