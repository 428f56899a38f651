"""DICOM series on disk for the tests, made of any volume: classic single frames and enhanced multi-frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

PATIENT = {
    "PatientName": "Doe^Jane^Secret",
    "PatientID": "PID-77881Q",
    "PatientBirthDate": "19610203",
    "PatientSex": "F",
    "PatientComments": "lives at 5 Hidden Lane",
    "ImageComments": "called by Dr. Unspoken",
}
IDENTIFIERS = ("Doe", "Jane", "Secret", "77881Q", "19610203", "Hidden Lane", "Unspoken")
# For each plane: how a RAS volume is turned to frames (slices, rows, columns), and the direction cosines in LPS.
_TURN = {
    "axial": (lambda v: v[::-1, ::-1].transpose(2, 1, 0), (1, 0, 0, 0, 1, 0)),
    "coronal": (lambda v: v[::-1, :, ::-1].transpose(1, 2, 0), (1, 0, 0, 0, 0, -1)),
    "sagittal": (lambda v: v[:, ::-1, ::-1].transpose(0, 2, 1), (0, 1, 0, 0, 0, -1)),
}


def planes_of(volume, affine, plane="axial"):
    """Frames, positions, orientation and pixel spacing of a volume whose array axes run to right, anterior, superior;
    an affine with a rotation gives an oblique series."""
    turn, _ = _TURN[plane]
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), -1)
    frames, where = turn(volume), np.stack([turn(index[..., a]) for a in range(3)], -1)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    place = where[:, [0, 0, 1], [0, 1, 0]] @ lps[:3, :3].T + lps[:3, 3]  # corner, next column, next row
    along, down = place[0, 1] - place[0, 0], place[0, 2] - place[0, 0]
    spacing = (float(np.linalg.norm(down)), float(np.linalg.norm(along)))
    orientation = [*(along / spacing[1]), *(down / spacing[0])]
    return np.ascontiguousarray(frames), place[:, 0], orientation, spacing


def headers(series=None, **tags):
    """The elements that all instances of a series share."""
    ds = Dataset()
    for name, value in PATIENT.items():
        setattr(ds, name, value)
    ds.SeriesInstanceUID = series or generate_uid()
    ds.StudyInstanceUID = f"{series}.0" if series else generate_uid()  # a series called twice is of one study
    ds.FrameOfReferenceUID = generate_uid()
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240102", "101010", "7", "A1"
    ds.SeriesDate, ds.SeriesTime = "20240102", "101112"
    ds.ReferringPhysicianName, ds.PositionReferenceIndicator = "", ""
    ds.Modality, ds.Manufacturer, ds.SeriesNumber = "MR", "Phantom Works", 5
    ds.PatientPosition, ds.BodyPartExamined = "HFS", "BRAIN"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "SE"]
    ds.SeriesDescription, ds.ProtocolName = "t1 se tra +c", "head"
    ds.ContrastBolusAgent = "gadobutrol"
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SE", "NONE", "", "2D"
    ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength, ds.MagneticFieldStrength = "500", "12", "1", "1.5"
    for name, value in tags.items():
        if value is None and name in ds:
            delattr(ds, name)
        elif value is not None:
            setattr(ds, name, value)
    return ds


def save_series(folder, volume, affine, plane="axial", shuffle=3, **tags):
    """Write a classic MR series, one file a slice; names and instance numbers do not follow the order.

    Args:
        folder: Where to.
        volume: ``(i, j, k)`` int16, array axes to right, anterior, superior.
        affine: ``(4, 4)`` to RAS mm.
        plane: How it was acquired.
        shuffle: Seed of the order of names and instance numbers.
        tags: Elements to set, or to leave out with none, in every file.

    Returns:
        The paths in the order of the slices.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frames, positions, orientation, spacing = planes_of(volume, affine, plane)
    shared = headers(**tags)
    thickness = float(np.linalg.norm(positions[1] - positions[0])) if len(positions) > 1 else 1.0
    names = np.random.default_rng(shuffle).permutation(len(frames))
    paths = []
    for frame, position, number in zip(frames, positions, names, strict=True):
        ds = FileDataset(None, {}, file_meta=_meta(MRImageStorage), preamble=bytes(128))
        ds.update(shared)
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, ds.file_meta.MediaStorageSOPInstanceUID
        ds.InstanceNumber, ds.AcquisitionNumber = int(number) + 1, 1
        geometry = {
            "ImagePositionPatient": [_ds(p) for p in position],
            "ImageOrientationPatient": [_ds(c) for c in orientation],
            "PixelSpacing": [_ds(s) for s in spacing],
            "SliceThickness": _ds(thickness),
        }
        for name, value in geometry.items():
            if name not in tags:
                setattr(ds, name, value)
        _set_pixels(ds, frame)
        path = folder / f"IM{number:04d}"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def save_enhanced(path, volume, affine, plane="axial", **tags):
    """Write one enhanced MR file with a frame a slice, the frames in a shuffled order."""
    frames, positions, orientation, spacing = planes_of(volume, affine, plane)
    order = np.random.default_rng(1).permutation(len(frames))
    ds = FileDataset(None, {}, file_meta=_meta(EnhancedMRImageStorage), preamble=bytes(128))
    ds.update(headers(**tags))
    ds.SOPClassUID, ds.SOPInstanceUID = EnhancedMRImageStorage, ds.file_meta.MediaStorageSOPInstanceUID
    ds.InstanceNumber, ds.NumberOfFrames = 1, len(frames)
    ds.ContentDate, ds.ContentTime = "20240102", "101112"
    shared = Dataset()
    measures, turned, rescale = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [_ds(s) for s in spacing]
    measures.SliceThickness = _ds(np.linalg.norm(positions[1] - positions[0]))
    turned.ImageOrientationPatient = [_ds(c) for c in orientation]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = "1", "0", "US"
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([turned])
    shared.PixelValueTransformationSequence = Sequence([rescale])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for k in order:
        place, content, group = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [_ds(p) for p in positions[k]]
        content.StackID, content.InStackPositionNumber = "1", int(k) + 1
        group.PlanePositionSequence, group.FrameContentSequence = Sequence([place]), Sequence([content])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    _set_pixels(ds, frames[order])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return Path(path)


def save_killer(path):
    """Write a JPEG 2000 file of pydicom's with one byte changed, at which gdcm ends the process."""
    content = bytearray(Path(get_testdata_file("MR_small_jp2klossless.dcm")).read_bytes())
    content[content.index(b"\xff\x4f\xff\x51") + 42] = 255  # the depth of the component
    path.write_bytes(content)
    return path


def _set_pixels(ds, frames):
    frames = np.asarray(frames, np.int16)
    ds.Rows, ds.Columns = frames.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, ds.get("PhotometricInterpretation", "MONOCHROME2")
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.PixelData = frames.astype("<i2").tobytes()


def _meta(sop_class):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def _ds(value):
    return f"{float(value):.10g}"


def small_volume(seed=0, shape=(20, 24, 9)):
    """Random voxels, so that every flip or swap shows, with an affine of three different spacings."""
    volume = np.random.default_rng(seed).integers(-200, 3000, shape).astype(np.int16)
    return volume, np.array([[1.1, 0, 0, -30], [0, 0.7, 0, -20], [0, 0, 4.5, 10], [0, 0, 0, 1.0]])


def edit(paths, **tags):
    """Set elements in files; a function gets the file's index."""
    for index, path in enumerate(paths):
        ds = pydicom.dcmread(path)
        for name, value in tags.items():
            value = value(index) if callable(value) else value
            if value is None:
                delattr(ds, name)
            else:
                setattr(ds, name, value)
        ds.save_as(path)
