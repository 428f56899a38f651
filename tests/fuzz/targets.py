"""What is fuzzed: for each kind of file its seeds, and the calls that read it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.fuzz import planted, records, seeds
from tumorlens.data.errors import InputError

SETTINGS = {
    "tumorlens": "0",
    "frame": None,
    "explain": False,
    "maps": False,
    "overlay": True,
    "secondary_capture": False,
}


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        seeds: Makes whole files.
        read: Reads the files in a folder; gets the one to open. It may raise `InputError`, and nothing else.
        damaged: How many of a seed's files, from the first on, are damaged; all by default.
    """

    seeds: Callable[[], list[seeds.Files]]
    read: Callable[[Path], object]
    damaged: int | None = None


def _open(path: Path) -> None:
    from tumorlens.data.formats.open import open_scan, source_files

    source_files(path)
    try:
        scan = open_scan(path)
    except InputError as error:
        if "--frame" not in str(error):
            raise
        scan = open_scan(path, 0)
    for index in (0, scan.n_slices - 1):  # as everything that reads a scan does
        np.array(scan.slice(index))
    _ = scan.plane, scan.pixel_aspect, scan.slice_spacing_mm


def _open_dicom(path: Path) -> None:
    from tumorlens.data.dicom.reader import check_series

    with suppress(InputError):
        check_series([path])
    _open(path)


def _open_series(path: Path) -> None:
    from tumorlens.data.dicom.headers import is_dicom
    from tumorlens.data.dicom.reader import check_series, read_series
    from tumorlens.data.dicom.series import choose_series, find_series

    folder = path.parent
    listing = find_series([file for file in sorted(folder.rglob("*")) if is_dicom(file)])
    choose_series(listing.series)
    for series in listing.series:
        _ = series.folder, series.tag, series.kind
        for read in (check_series, read_series):
            with suppress(InputError):
                read(series.files)
    _open(folder)


def _collect(path: Path) -> None:
    """The work of a run, as it is listed."""
    from tumorlens.pipeline.batch.inputs import collect
    from tumorlens.pipeline.batch.listing import check_headers, describe, list_work

    with tempfile.TemporaryDirectory() as scratch:
        work = collect([str(path)], path.parent / "out", Path(scratch), ("all",))
        json.dumps([describe(work), list_work(work)]).encode()
        for job in work.jobs:
            check_headers(job, None)


def _open_and_collect(path: Path) -> None:
    _collect(path)
    _open(path)


def _read_card(path: Path) -> None:
    from tumorlens.classification.trust.calibration import Calibration
    from tumorlens.data.cards.card import checked_card
    from tumorlens.data.cards.lineage import known_start, learned_from

    weights = path.with_suffix(".safetensors")
    weights.touch()
    known_start({"init": str(weights)})
    stage = {"classifier": "classification", "segmenter": "segmentation"}[path.stem]
    card = checked_card(weights, stage)
    learned_from(card.get("training", {}))
    if stage == "classification":
        _ = Calibration.of_card(card)


def _read_weights(path: Path) -> None:
    from tumorlens.data.cards.weights import load_weights, read_arrays, read_state

    if path.suffix == ".safetensors":
        for read in (lambda file: read_arrays(file, ""), _with_card(load_weights)):
            with suppress(InputError):
                read(path)
        path.with_suffix(".json").unlink()
    read_state(path)


def _with_card(load: Callable[[Path, str], object]) -> Callable[[Path], object]:
    """Loads weights beside which a card lies that names their hash."""

    def read(path: Path) -> object:
        (card,) = records.cards()[1].values()
        content = {**json.loads(card), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        path.with_suffix(".json").write_text(json.dumps(content))
        return load(path, "segmentation")

    return read


def _read_index(path: Path) -> None:
    from tumorlens.data.datasets.load import list_rows, samples_of

    listing = list_rows(path)
    with suppress(InputError):
        listing.raise_first()
    samples_of(listing)


@cache
def dicom_scan() -> Any:
    """The scan of the DICOM seeds, for the masks on it."""
    from tumorlens.data.dicom.reader import read_series

    with tempfile.TemporaryDirectory() as folder:
        for name, data in seeds.dicom_series()[0].items():
            (Path(folder) / name).write_bytes(data)
        return read_series(sorted(Path(folder).iterdir()))


def _read_mask(path: Path) -> None:
    from tumorlens.data.masks.placed import read_mask_dicom, read_picture_mask, read_placed_mask
    from tumorlens.data.masks.read import describe_values, open_mask, read_volume_mask
    from tumorlens.data.scan import Scan

    scan = Scan.from_array(seeds.VOLUME, seeds.AFFINE)
    if path.suffix == ".dcm":
        read_mask_dicom(path, dicom_scan())
    elif path.suffix == ".png":
        read_picture_mask(path, seeds.GRAY.shape)
    else:
        with suppress(InputError):
            read_volume_mask(path, scan)
        with suppress(InputError):
            describe_values(open_mask(path))
        read_placed_mask(path, scan)


def _read_drawing(path: Path) -> None:
    from tumorlens.pipeline.services.exchange_import import _DRAWN, Imported, _read_file

    for file in _read_file(path, Path(path.name), named=True):
        if isinstance(file, Imported):
            raise InputError(file.describe())
        _DRAWN[file.kind](path, file.content, seeds.GRAY.shape)


@cache
def results_folder() -> Path:
    """A folder with ``scans`` and their results in ``out``, the same for all processes of a run."""
    from tests.scans import dicom, exchange

    folder = Path(os.environ["FUZZ_SCRATCH"]) / "results"
    if not folder.exists():
        numbers = iter(range(1, 10**6))
        with patch.object(dicom, "generate_uid", lambda *_: f"1.2.826.0.1.3680043.8.498.{next(numbers)}"):
            exchange.make_results(folder)
        _complete(folder)
    return folder


def _complete(folder: Path) -> None:
    """Say in the results what they depend on, as a run does."""
    from tumorlens.pipeline.batch.job import place_of
    from tumorlens.pipeline.batch.read_jobs import hash_of

    for job in _jobs(folder / "scans"):
        file = folder / "out" / job.folder / "result.json"
        if file.is_file():
            content = json.loads(file.read_text())
            content["made_of"] = {**SETTINGS, "source_sha256": hash_of(job)}
            content["place_sha256"] = place_of(job)
            file.write_text(json.dumps(content))


def _jobs(scans: Path) -> list[Any]:
    from tests.scans import exchange
    from tumorlens.pipeline.batch.job import Job

    names = sorted(exchange.EVERYTHING | {exchange.REFUSED})
    files = {name: tuple(sorted((scans / name).iterdir())) if (scans / name).is_dir() else () for name in names}
    return [Job(scans / name, name, files=files[name]) for name in names]


def _resume(path: Path) -> None:
    """Go on with a run whose output folder is damaged, without the networks."""
    from tumorlens.pipeline.batch.resume import earlier_result, name_resumed_jobs, remove_earlier_results
    from tumorlens.pipeline.batch.stored import read_results
    from tumorlens.pipeline.batch.studies import Studies
    from tumorlens.pipeline.outputs.table import csv_row, write_table

    out, studies, rows = path.parent, Studies(), []
    jobs = name_resumed_jobs(_jobs(results_folder() / "scans"), out)
    for job in jobs:
        content = earlier_result(job, out, SETTINGS)
        if content is not None:
            rows.append(csv_row(content))
            studies.add(job, content)
    studies.compare(out)
    for result in read_results(out):
        _ = result.failed, result.label, result.identity
        with suppress(InputError):
            result.mask()
    write_table(out / "again.csv", rows)
    remove_earlier_results(out)


def _import(path: Path) -> None:
    """Take masks over; a mask that cannot be read is a line on the screen."""
    import shutil

    from tumorlens.pipeline.services.exchange_import import import_masks

    root = path.parents[1]
    shutil.copytree(results_folder() / "out", root / "out")
    for imported in list(import_masks(root / "out", [path.parent], "Ann", pictures=root / "pictures")):
        imported.describe()


def _read_reviews(path: Path) -> None:
    from tumorlens.pipeline.services.reviews.state import final_decision, last_correction
    from tumorlens.pipeline.services.reviews.store import Store

    errors = []

    def attempt(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except InputError as error:
            errors.append(error)

    store = Store(path.parent)
    decisions = attempt(store.decisions) or []
    final_decision(decisions), last_correction(decisions)
    for decision in decisions:
        attempt(lambda number=decision.number: store.mask(number))
        attempt(lambda number=decision.number: store.is_written(number))
        decision.before.get("of"), decision.after.get("of"), decision.models.get("a")
    for call in (
        store.state,
        store.claims,
        lambda: store.decisions("a"),
        lambda: store.strokes("a", "Ann"),
        lambda: store.undo("a", "Ann", redo=True),
        lambda: store.undo("a", "Ann"),
        lambda: store.claim("a", "Bob", "w2"),
        lambda: store.decide("b", "Ann", "accept", seen=0),
    ):
        attempt(call)
    if errors:
        raise errors[0]


TARGETS = {
    **{
        name: Target(make, _open)
        for name, make in {
            "png": seeds.png,
            "jpeg": seeds.jpeg,
            "tiff": seeds.tiff,
            "bmp": seeds.bmp,
            "webp": seeds.webp,
            "gif": seeds.gif,
            "matlab": seeds.matlab,
            "matlab73": seeds.matlab73,
            "nifti": seeds.nifti,
            "nifti-gz": seeds.nifti_gz,
            "nifti-pair": seeds.nifti_pair,
            "nrrd": seeds.nrrd,
            "mgh": seeds.mgh,
            "metaimage": seeds.metaimage,
            "any": seeds.any_kind,
        }.items()
    },
    "dicom": Target(seeds.dicom_native, _open_dicom),
    "dicom-rle": Target(seeds.dicom_rle, _open_dicom),
    "dicom-deflated": Target(seeds.dicom_deflated, _open_dicom),
    "dicom-jpeg": Target(seeds.dicom_jpeg, _open_dicom),
    "dicom-jpegls": Target(seeds.dicom_jpegls, _open_dicom),
    "dicom-jpeg2000": Target(seeds.dicom_jpeg2000, _open_dicom),
    "dicom-enhanced": Target(seeds.dicom_enhanced, _open_dicom),
    "dicom-series": Target(seeds.dicom_series, _open_series),
    "dicomdir": Target(seeds.dicomdir, _open_and_collect, damaged=1),
    "zip": Target(seeds.zips, _open_and_collect),
    "card": Target(records.cards, _read_card),
    "weights": Target(records.weights, _read_weights),
    "index": Target(records.index, _read_index, damaged=1),
    "mask": Target(records.masks, _read_mask),
    "mask-dicom": Target(records.masks_dicom, _read_mask),
    "drawing": Target(records.drawings, _read_drawing),
    "results": Target(records.results, _resume),
    "mask-import": Target(records.imports, _import),
    "reviews": Target(records.reviews, _read_reviews),
}

# Readers with faults, for the tests of the harness.
PLANTED = {f"planted-{name}": Target(planted.seeds, read) for name, read in planted.READERS.items()}
