"""Whole files of every kind that is not a scan: cards, weights, tables, masks, results and reviews."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from tests.fuzz import seeds as scans
from tests.fuzz.seeds import AFFINE, GRAY, VOLUME, Files, pillow, written


def cards() -> list[Files]:
    found = []
    for stage, name in (("classification", "classifier"), ("segmentation", "segmenter")):
        card = json.loads((Path(__file__).parents[2] / stage / "weights" / f"{name}.json").read_text(encoding="utf-8"))
        for part in card.get("training", {}).get("patient_hashes", {}).values():
            del part[3:]  # thousands of hashes are one kind of value
        found.append({f"{name}.json": json.dumps(card).encode()})
    return found


def weights() -> list[Files]:
    import torch
    from safetensors.torch import save

    state = {
        "conv1.weight": torch.arange(24.0).reshape(4, 6).half(),
        "bn.bias": torch.ones(3),
        "refusal.mean": torch.ones(5),
    }
    stream = io.BytesIO()
    torch.save(state, stream)
    return [{"a.safetensors": save(state)}, {"a.pth": stream.getvalue()}]


def index() -> list[Files]:
    columns = "image,mask,label,patient,fold,official_split,channel,every,cut,sequence"
    rows = (
        "1.png,m.png,glioma,p1,0,train,0,1,,t1c",
        "2.png,,no_tumor,p2,1,test,,,,",
        "v.nii,w.nii,meningioma,p3,2,,,2,coronal,",
    )
    pictures = {
        "1.png": scans.png()[1],
        "2.png": scans.png()[0],
        "m.png": scans.png()[0],
        "v.nii": scans.nifti()[0],
        "w.nii": masks()[0],
    }
    contents = {name: next(iter(files.values())) for name, files in pictures.items()}
    return [
        {"index.csv": "\n".join([columns, *rows, ""]).encode(), **contents},
        {"index.csv": b"image,label\n1.png,glioma\n", **contents},
    ]


def _mask() -> np.ndarray:
    mask = np.zeros(VOLUME.shape, np.uint8)
    mask[2:7, 3:9, 1:4], mask[4, 5], mask[10, 12, 2] = 1, 0, 2
    return mask


def masks() -> list[Files]:
    import nibabel as nib
    import nrrd as pynrrd

    def layers(folder: Path) -> None:
        axes = {"space": "left-posterior-superior", "kinds": ["list", "domain", "domain", "domain"]}
        lps = np.diag([-1, -1, 1]) @ AFFINE[:3, :3]
        axes |= {
            "space directions": np.vstack([[np.nan] * 3, lps.T]),
            "space origin": np.diag([-1, -1, 1]) @ AFFINE[:3, 3],
        }
        pynrrd.write(str(folder / "a.seg.nrrd"), np.stack([_mask() == 1, _mask() == 2]).astype(np.uint8), axes)

    turned = nib.as_closest_canonical(
        nib.Nifti1Image(_mask()[::-1], AFFINE @ [[-1, 0, 0, 15], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    images = (nib.Nifti1Image(_mask(), AFFINE), turned, nib.Nifti1Image(_mask().astype(np.float32) / 2, None))
    plain = [written(lambda folder, image=image: nib.save(image, folder / "a.nii")) for image in images]
    picture = pillow((GRAY > 100).astype(np.uint8) * 255)
    return [*plain, {"a.nii.gz": gzip.compress(plain[0]["a.nii"], 1, mtime=0)}, written(layers), picture]


def masks_dicom() -> list[Files]:
    from tests.fuzz.targets import dicom_scan
    from tests.scans.dicom_results import ALGORITHM
    from tumorlens.data.dicom.rtstruct import write_structure_set
    from tumorlens.data.dicom.seg import write_mask_dicom
    from tumorlens.data.masks.outlines import outlines_of, single_ring

    def both(folder: Path) -> None:
        write_mask_dicom(folder / "seg.dcm", _mask().astype(np.uint16), dicom_scan(), "glioma", ALGORITHM)
        trace = lambda part: [single_ring(outline) for outline in outlines_of(part)]  # noqa: E731
        write_structure_set(folder / "seg.dcm", folder / "rt.dcm", {1: (200, 0, 0)}, None, trace)

    return [{name: data} for name, data in written(both).items()]


def drawings() -> list[Files]:
    square, hole = [[1, 1], [14, 1], [14, 14], [1, 14]], [[4, 4], [8, 4], [8, 8]]
    part = base64.b64encode(pillow(np.full((3, 4), 255, np.uint8))["a.png"]).decode()
    shapes = [
        {"label": "glioma", "points": square, "group_id": 1, "shape_type": "polygon", "flags": {}, "mask": None},
        {"label": "glioma", "points": [[2, 3], [9, 9]], "shape_type": "rectangle"},
        {"label": "glioma", "points": [[9, 9], [12, 9]], "shape_type": "circle"},
        {"label": "glioma", "points": [[2, 3], [6, 6]], "shape_type": "mask", "mask": part},
    ]
    labelme = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": "1.png",
        "imageData": None,
        "imageHeight": 32,
        "imageWidth": 40,
    }
    places = (
        {"type": "Polygon", "coordinates": [[*square, square[0]], [*hole, hole[0]]]},
        {"type": "MultiPolygon", "coordinates": [[square], [hole]]},
    )
    features = [
        {"type": "Feature", "id": "a", "geometry": place, "properties": {"objectType": "annotation"}}
        for place in places
    ]
    size, runs = [32, 40], [100, 5, 27, 5, 32 * 40 - 137]
    flat = [[float(n) for point in square for n in point]]
    coco = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 32, "width": 40} for n in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": flat, "area": 169, "bbox": [1, 1, 13, 13]},
            {"id": 2, "image_id": 2, "category_id": 1, "segmentation": {"size": size, "counts": runs}},
            {"id": 3, "image_id": 1, "segmentation": {"size": size, "counts": _compressed_runs(runs)}},
        ],
        "categories": [{"id": 1, "name": "glioma", "color": "#ff0000"}],
    }  # fmt: skip
    geojson = {"type": "FeatureCollection", "imageHeight": 32, "imageWidth": 40, "features": features}
    return [{"a.json": json.dumps(content).encode()} for content in (labelme, geojson, features, coco)]


def _compressed_runs(runs: list[int]) -> str:
    """Run lengths as COCO compresses them, by its own code."""
    from pycocotools import mask

    return mask.frPyObjects({"size": [32, 40], "counts": runs}, 32, 40)["counts"].decode()


def results() -> list[Files]:
    """``results.csv`` and the results that it lists."""
    from tests.fuzz.targets import results_folder

    out = results_folder() / "out"
    return [written(lambda folder: shutil.copytree(out, folder, dirs_exist_ok=True), "results.csv")]


def imports() -> list[Files]:
    """Exports of masks, one of each format, with their ``labels.json``."""
    from tests.fuzz.targets import results_folder
    from tumorlens.data.masks.export import FORMATS
    from tumorlens.pipeline.services.exchange import ExportRequest, export_masks

    def export(name: str) -> Files:
        return written(
            lambda folder: export_masks(ExportRequest(results_folder() / "out", folder / "masks", name)),
            "masks/labels.json",
        )

    return [export(name) for name in FORMATS]


def reviews() -> list[Files]:
    def write(folder: Path) -> None:
        from tumorlens.pipeline.services.reviews.store import Store

        store, empty = Store(folder), np.zeros((4, 6), np.uint8)
        drawn = empty.copy()
        drawn[1, 2] = 1
        store.add_stroke("a", "Ann", "brush", {0: (empty, drawn), 2: (drawn, empty)})
        store.add_stroke("a", "Ann", "brush", {1: (empty, drawn)})
        store.undo("a", "Ann")
        number = store.decide(
            "b",
            "Ann",
            "correct",
            "glioma",
            "larger",
            {"label": "glioma"},
            {"mask_voxels": 8},
            {"segmentation": "f"},
            _mask(),
        )
        store.mark_written(number)
        store.decide("a", "Bob", "comment", comment="why?")
        store.claim("a", "Ann", "w1")
        with closing(sqlite3.connect(store.path)) as db:
            db.execute("VACUUM")

    return [written(write)]
