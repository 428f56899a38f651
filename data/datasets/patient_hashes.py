"""Patients as short hashes, with which a card lists the patients of a training without their names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tumorlens.data.datasets.folds import CLUSTER
from tumorlens.data.datasets.patients import patient_in_file
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.files import sha256_of
from tumorlens.data.formats.open import open_scan, source_files

_DIGITS = 12  # 48 bits: among ten thousand patients, two share a hash once in six million sets


def hash_patients(samples: Iterable[Sample]) -> list[str]:
    """The patient of each sample as 12 hexadecimal digits, the same on every machine and under every path.

    A patient's hash is that of the ID which the data set, or the file itself, gives. Without an ID, and in a group of
    look-alikes that was numbered here, each file counts by its content, so that a renamed copy has the same hash.

    Raises:
        OSError: A file that has to be read is not there.
        InputError: Such a file is not a scan.
    """
    content = cache(_content_of)
    return [hash_id(_id_of(sample) or content(sample.image)) for sample in samples]


def hash_id(patient: str) -> str:
    """The hash of a patient's ID."""
    return hashlib.sha256(f"tumorlens:{patient}".encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]


def _id_of(sample: Sample) -> str:
    """The patient's ID, or empty where the name was made up from a path or a number."""
    patient = sample.patient
    if not patient and sample.image.suffix.lower() == ".mat":  # the only picture with a patient inside
        patient = patient_in_file(open_scan(sample.image))
    return "" if patient.startswith(CLUSTER) or patient == str(sample.image) else patient


def _content_of(image: Path) -> str:
    """A name for what a scan's files hold, whatever they are called."""
    return "file " + " ".join(sorted(sha256_of(file) for file in source_files(image)))
