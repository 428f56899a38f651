"""Each format of masks is read back by the program's own package, or by its documented layout."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import nrrd
import numpy as np
import pytest
import shapely
import SimpleITK as sitk  # noqa: N813 (its own habit)
from PIL import Image
from pycocotools.coco import COCO
from shapely.geometry import shape as shape_of

from tests.scans.volumes import LPS, itk_image, oblique_affine
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, SHIPPED_CLASSES
from tumorlens.data.masks import FORMAT_NAMES
from tumorlens.data.masks.coco import CocoImage, draw_coco, read_coco, write_coco
from tumorlens.data.masks.export import FORMATS, as_picture, as_volume, slices_of
from tumorlens.data.masks.geojson import read_geojson
from tumorlens.data.masks.labeling import label_mask
from tumorlens.data.masks.labelme import read_labelme
from tumorlens.data.masks.outlines import fill
from tumorlens.data.masks.placed import read_placed_mask
from tumorlens.data.scan import Scan

RANDOM = np.random.default_rng(3)


def numbered(shape=(9, 7, 5)):
    """Lesions with a hole, at the border, of one pixel and in several slices; not symmetric under any flip."""
    numbers = np.zeros(shape, np.uint16)
    numbers[1:6, 2:6, 1:4] = 1
    numbers[3, 4, 1:4] = 0
    numbers[7:, 0, 0] = 2
    numbers[0, 0, 4] = 3
    return numbers


def volume(affine=None):
    return Scan.from_array(np.zeros((9, 7, 5), np.uint8), oblique_affine() if affine is None else affine)


AFFINES = {
    "oblique": oblique_affine(),
    "LPS": np.diag([-1.0, -2.0, 4.0, 1.0]),
    "RAS": np.diag([1.0, 2.0, 4.0, 1.0]),
    "axes exchanged": np.array([[0, 0, 3.0, 1], [-1, 0, 0, 2], [0, 2, 0, 3], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", ["nifti", "nrrd", "itksnap", "slicer"])
@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("by", ["lesion", "class"])
def test_itk_lays_volumes_on_their_scans(tmp_path, name, affine, by):
    scan = volume(AFFINES[affine])
    values, labels = label_mask(numbered(), "glioma", by)
    path = tmp_path / f"a{FORMATS[name].suffix}"
    FORMATS[name].write_volume(path, values, scan, labels)
    read, source = sitk.ReadImage(str(path)), itk_image(scan.voxels, scan.affine)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read).T, values)
    assert set(np.unique(values)) == ({0, 1, 2, 3} if by == "lesion" else {0, CLASSES.index("glioma")})
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(read, get)(), getattr(source, get)(), atol=1e-5)
    assert read.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    np.testing.assert_array_equal(read_placed_mask(path, scan), values > 0)


def test_pictures_lie_as_itk_reads_them(tmp_path):
    picture = RANDOM.integers(0, 255, (6, 9)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    values, labels = label_mask((picture > 120).astype(np.uint16), "glioma")
    shown, scan = as_volume(values, Scan.from_array(picture))
    FORMATS["nrrd"].write_volume(tmp_path / "a.nrrd", shown, scan, labels)
    source, mask = sitk.ReadImage(str(tmp_path / "a.png")), sitk.ReadImage(str(tmp_path / "a.nrrd"))
    for index in np.ndindex(9, 6):
        place = source.TransformIndexToPhysicalPoint(index)
        assert mask.GetPixel(mask.TransformPhysicalPointToIndex((*place, 0.0))) == (source.GetPixel(index) > 120)
    np.testing.assert_array_equal(as_picture(shown), values)


def test_a_segmentation_of_slicer_names_its_segments(tmp_path):
    values, labels = label_mask(numbered(), "meningioma")
    FORMATS["slicer"].write_volume(tmp_path / "a.seg.nrrd", values, volume(), labels)
    voxels, header = nrrd.read(str(tmp_path / "a.seg.nrrd"))
    np.testing.assert_array_equal(voxels, values)
    assert header["space"] == "left-posterior-superior"
    np.testing.assert_allclose(header["space directions"].T, LPS @ oblique_affine()[:3, :3])
    np.testing.assert_allclose(header["space origin"], LPS @ oblique_affine()[:3, 3])
    assert header["Segmentation_SourceRepresentation"] == "Binary labelmap"
    for k, label in enumerate(labels):
        assert header[f"Segment{k}_Name"] == f"Lesion {k + 1} (meningioma)"
        assert header[f"Segment{k}_LabelValue"] == str(k + 1)
        assert header[f"Segment{k}_Layer"] == "0"
        assert header[f"Segment{k}_Extent"] == "0 8 0 6 0 4"
        color = [round(255 * float(part)) for part in header[f"Segment{k}_Color"].split()]
        assert tuple(color) == label.rgb
        key, _, entry = header[f"Segment{k}_Tags"].rstrip("|").partition(":")
        context, category, kind, modifier, _, region, _ = entry.split("~")
        assert (key, context) == ("TerminologyEntry", "Segmentation category and type - DICOM master list")
        assert category == "SCT^49755003^Morphologically Altered Structure"
        assert kind == "SCT^302820008^Intracranial meningioma"
        assert (modifier, region.split("^")[0]) == ("^^", "SCT")
    assert labels[0].color == SHIPPED_CLASSES.row("meningioma").color
    assert len({label.rgb for label in labels}) == 3
    FORMATS["slicer"].write_volume(tmp_path / "empty.seg.nrrd", 0 * values, volume(), [])
    voxels, header = nrrd.read(str(tmp_path / "empty.seg.nrrd"))
    assert not voxels.any()
    assert "Segment0_ID" not in header


def test_a_part_of_the_scan_in_layers_as_slicer_saves_it(tmp_path):
    scan, numbers = volume(), numbered()
    numbers[1:6, 2:6, 1:4] |= 1
    part = np.stack([numbers[1:8, 0:6] == value for value in (1, 2)]).astype(np.uint8)
    directions = np.vstack([np.full(3, np.nan), (LPS @ scan.affine[:3, :3]).T])
    header = {
        "space": "left-posterior-superior",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": directions,
        "space origin": LPS @ (scan.affine @ [1, 0, 0, 1])[:3],
    }
    nrrd.write(str(tmp_path / "a.seg.nrrd"), part, header)
    expected = np.isin(numbers, (1, 2)).astype(np.uint8)
    expected[0], expected[8], expected[:, 6] = 0, 0, 0
    np.testing.assert_array_equal(read_placed_mask(tmp_path / "a.seg.nrrd", scan), expected)


def test_other_orders_of_axes_come_back_and_other_grids_do_not(tmp_path):
    scan, mask = volume(), (numbered() > 0).astype(np.uint8)
    image = nib.Nifti1Image(mask, scan.affine)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("PIR"))
    nib.save(turned, tmp_path / "turned.nii.gz")
    np.testing.assert_array_equal(read_placed_mask(tmp_path / "turned.nii.gz", scan), mask)
    for name, affine in (
        ("moved", scan.affine @ np.array([[1, 0, 0, 0.7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
        ("finer", scan.affine @ np.diag([0.5, 1, 1, 1])),
    ):
        nib.save(nib.Nifti1Image(mask, affine), tmp_path / f"{name}.nii.gz")
        with pytest.raises(InputError, match=r"not on the grid of its scan|as large as its scan, but lies up to 0\.7"):
            read_placed_mask(tmp_path / f"{name}.nii.gz", scan)
    out = scan.affine @ np.array([[1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(mask, out), tmp_path / "out.nii.gz")
    with pytest.raises(InputError, match=r"as large as its scan, but lies up to 3\.0 voxels away"):
        read_placed_mask(tmp_path / "out.nii.gz", scan)
    nib.save(nib.Nifti1Image(mask[:-1], out), tmp_path / "part.nii.gz")
    with pytest.raises(InputError, match="reaches out of its scan"):
        read_placed_mask(tmp_path / "part.nii.gz", scan)


def test_itksnap_label_descriptions(tmp_path):
    values, labels = label_mask(numbered(), "pituitary")
    FORMATS["itksnap"].write_volume(tmp_path / "a.nii.gz", values, volume(), labels)
    lines = (tmp_path / "a.labels.txt").read_text().splitlines()
    rows = list(csv.reader((" ".join(x.split()) for x in lines if not x.startswith("#")), delimiter=" "))
    assert rows[0] == ["0", "0", "0", "0", "0", "0", "0", "Clear Label"]
    for row, label in zip(rows[1:], labels, strict=True):  # IDX R G B A VIS MSH LABEL
        assert row == [str(label.value), *map(str, label.rgb), "1", "1", "1", label.name]
    assert rows[2][-1] == "Lesion 2 (pituitary tumor)"


def test_palette_pictures(tmp_path):
    values, labels = label_mask(numbered()[..., 1], "glioma")
    FORMATS["png"].write_slice(tmp_path / "a.png", values, labels)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.array(picture), values)
        np.testing.assert_array_equal(
            np.array(picture.convert("RGB"))[values == 1], [labels[0].rgb] * (values == 1).sum()
        )


@pytest.mark.parametrize("by", ["lesion", "class"])
def test_coco(tmp_path, by):
    scan = volume()
    values, labels = label_mask(numbered(), "meningioma", by)
    slices = slices_of(values, scan, "P1/t1")
    images = [CocoImage(f"{name}.png", view, labels) for name, view in slices]
    images.append(CocoImage("empty.png", np.zeros((4, 6), np.uint8), []))
    paths = tmp_path / "p.json", tmp_path / "r.json"
    write_coco(*paths, images)
    for path in paths:
        read = COCO(str(path))
        categories = {category["name"]: category for category in read.dataset["categories"]}
        assert list(categories) == [*CLASSES[1:], "tumor"]
        assert categories["meningioma"] == {
            "id": CLASSES.index("meningioma"),
            "name": "meningioma",
            "supercategory": "tumor",
            "color": SHIPPED_CLASSES.row("meningioma").color,
        }
        for image_id, image in enumerate(images, start=1):
            entry = read.imgs[image_id]
            assert entry["file_name"] == image.name
            assert (entry["height"], entry["width"]) == image.values_hw.shape
            drawn = np.zeros_like(image.values_hw)
            for annotation in read.loadAnns(read.getAnnIds(image_id)):
                part = read.annToMask(annotation)
                drawn += part * np.uint8(annotation["attributes"].get("lesion", CLASSES.index("meningioma")))
                rows, columns = np.nonzero(part)
                left, top, width, height = annotation["bbox"]
                assert (left, top) == (columns.min(), rows.min())
                assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
                assert annotation["area"] == part.sum()
                assert annotation["iscrowd"] == 0
                assert annotation["category_id"] == CLASSES.index("meningioma")
            np.testing.assert_array_equal(drawn, image.values_hw)
        back = dict(read_coco(path, json.loads(path.read_text())))
        assert list(back) == [image.name for image in images]
        for image in images:
            drawn = draw_coco(path, back[image.name], image.values_hw.shape)
            np.testing.assert_array_equal(drawn, image.values_hw > 0)


def test_coco_of_other_programs_has_plain_run_lengths(tmp_path):
    mask = numbered()[..., 1] > 0
    flat = mask.T.ravel()  # column by column
    borders = np.flatnonzero(np.diff(np.r_[False, flat, ~flat[-1:]]))
    counts = np.diff(np.r_[0, borders, flat.size])[: len(borders) + 1]
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": 9, "width": 7}],
        "annotations": [{"image_id": 5, "segmentation": {"size": [9, 7], "counts": counts.tolist()}}],
    }
    (back,) = read_coco(tmp_path / "a.json", content)
    np.testing.assert_array_equal(draw_coco(tmp_path / "a.json", back[1], (9, 7)), mask)
    content["annotations"][0]["image_id"] = 6
    with pytest.raises(InputError, match="not a COCO file, or it is damaged"):
        list(read_coco(tmp_path / "a.json", content))


def test_coco_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(InputError, match=r"needs pycocotools; install it with: pip install 'tumorlens\[coco\]'"):
        write_coco(tmp_path / "p.json", tmp_path / "r.json", [])


def test_labelme(tmp_path):
    values, labels = label_mask(numbered()[..., 1], "glioma")
    values[8, 5] = 2  # a second part of a lesion
    labels = label_mask(numbered(), "glioma")[1]
    path = tmp_path / "slice_001.json"
    FORMATS["labelme"].write_slice(path, values, labels)
    content = json.loads(path.read_text())
    assert set(content) == {
        *("version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"),
    }
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == ("slice_001.png", 9, 7)
    assert (content["flags"], content["imageData"]) == ({}, None)
    drawn = np.zeros_like(values)
    for shape in content["shapes"]:
        assert set(shape) == {"label", "points", "group_id", "description", "shape_type", "flags", "mask"}
        assert (shape["label"], shape["shape_type"]) == ("glioma", "polygon")
        drawn += fill([np.array(shape["points"])], (9, 7)) * np.uint8(shape["group_id"])
    np.testing.assert_array_equal(drawn, values)
    np.testing.assert_array_equal(read_labelme(path, content, (9, 7)), values > 0)


def test_shapes_that_labelme_users_draw():
    import base64
    import io

    encoded = io.BytesIO()
    Image.fromarray(np.array([[True, False], [True, True]])).save(encoded, "PNG")
    shapes = [
        {"shape_type": "rectangle", "points": [[1, 1], [3, 2]]},
        {"shape_type": "mask", "points": [[5, 4], [6, 5]], "mask": base64.b64encode(encoded.getvalue()).decode()},
        {"shape_type": "circle", "points": [[10, 10], [10, 12.2]]},
    ]
    content = {"imageHeight": 14, "imageWidth": 15, "shapes": shapes}
    expected = np.zeros((14, 15), np.uint8)
    expected[1, 1:3] = 1
    expected[4:6, 5:7] = [[1, 0], [1, 1]]
    y, x = np.mgrid[:14, :15] + 0.5
    expected |= np.hypot(x - 10, y - 10) < 2.2
    np.testing.assert_array_equal(read_labelme("a.json", content, (14, 15)), expected)
    shapes.append({"shape_type": "line", "points": [[0, 0], [1, 1]]})
    with pytest.raises(InputError, match=r"a\.json: a shape is a line, which has no area"):
        read_labelme("a.json", content, (14, 15))


@pytest.mark.parametrize("by", ["lesion", "class"])
def test_geojson(tmp_path, by):
    values, labels = label_mask(numbered()[..., 1], "glioma", by)
    values[8, 5] = values.max()
    path = tmp_path / "a.geojson"
    FORMATS["geojson"].write_slice(path, values, labels)
    content = json.loads(path.read_text())
    assert content["type"] == "FeatureCollection"
    drawn = np.zeros_like(values)
    for feature, label in zip(content["features"], labels, strict=True):
        assert feature["type"] == "Feature"
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"] == {"name": "glioma", "color": list(label.rgb)}
        assert feature["properties"]["name"] == label.name
        geometry = shape_of(feature["geometry"])
        assert geometry.is_valid
        rows, columns = np.indices(values.shape)
        drawn += shapely.contains_xy(geometry, columns + 0.5, rows + 0.5) * np.uint8(label.value)
    np.testing.assert_array_equal(drawn, values)
    np.testing.assert_array_equal(read_geojson(path, content, (9, 7)), values > 0)
    with pytest.raises(InputError, match=r"the mask has shape \(9, 7\), its image \(7, 9\)"):
        read_geojson(path, content, (7, 9))


def test_labels():
    _, labels = label_mask(np.array([[0, 1, 2]]), "no_tumor")  # drawn by a reviewer
    assert [label.name for label in labels] == [f"Lesion {n} (tumor of uncertain type)" for n in (1, 2)]
    assert label_mask(np.zeros((2, 2), int), "no_tumor", "class")[1] == []
    (label,) = label_mask(np.array([[0, 1, 2]]), "tumor", "class")[1]
    assert (label.value, label.color, label.concept[2]) == (len(CLASSES), "#E69F00", "Neoplasm")
    with pytest.raises(InputError, match="300 lesions are more than the 255 values of a mask; give --labels class"):
        label_mask(np.arange(301)[None], "glioma")
    assert label_mask(np.arange(301)[None], "glioma", "class")[0].max() == 1


def test_the_help_names_the_formats_of_the_table():
    assert tuple(FORMATS) == FORMAT_NAMES
