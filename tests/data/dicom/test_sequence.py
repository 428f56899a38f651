"""Weighting and contrast agent by the words and times of a header, and which files are scans."""

from __future__ import annotations

import pydicom
import pytest

from tests.scans.dicom import headers, save_series
from tests.scans.studies import AFFINE, VOLUME
from tumorlens.data.dicom.sequence import contrast_of, uid_numbers, weighting_of
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan


@pytest.mark.parametrize(
    ("description", "weighting", "contrast"),
    [
        ("T1 MPRAGE +C", "T1", True),
        ("t1_mprage_sag_p2_iso_KM", "T1", True),
        ("Ax T1 POST GAD", "T1", True),
        ("AX T1 SE PRE", "T1", False),
        ("T1W w/o contrast", "T1", False),
        ("T1 without Gd", "T1", False),
        ("t1 non-contrast", "T1", False),
        ("SAG T1 FLAIR", "T1", None),
        ("AX T2 FLAIR", "T2", None),
        ("T2* GRE", "susceptibility", None),
        ("ep2d_diff_b1000_ADC", "diffusion", None),
        ("3D BRAVO C+", "T1", True),
        ("t1 tse tra posterior fossa", "T1", None),
        ("T1 post fossa", "T1", None),
        ("MRA phase contrast", "angiography", None),
        ("AX PD", "PD", None),
        ("SWI mIP", "susceptibility", None),
        ("DSC perfusion", "perfusion", None),
        ("t1_vibe_dce", "perfusion", None),
        ("T1 MRA TWIST +C", "angiography", True),
        ("T1 MAP", "a map", None),
        ("T1 GD SUB", "a map", True),
        ("AX T1 POST GAD PRE-OP", "T1", True),
        ("STEALTH T1 +C PRE OP", "T1", True),
        ("T1 W/WO", "T1", None),
        *(
            (f"AX T1 {words}", "T1", True)
            for words in ("C+", "nach KM", "con contrasto", "met contrast", "mit KM", "T1-GD")
        ),
        *((f"AX T1 {words}", "T1", False) for words in ("C-", "-C", "-GD", "Gd-", "GD(-)", "CE-", "vor KM", "prae KM")),
        *((f"AX T1 {words}", "T1", False) for words in ("SIN CONTRASTE", "SENZA MDC", "zonder contrast", "avant gado")),
        *((f"AX T1 {words}", "T1", False) for words in ("before contrast", "sem contraste", "w/o", "non contrast")),
        *((f"T1 {words}", "T1", None) for words in ("high contrast", "soft tissue contrast", "ax nativ nach KM-Gabe")),
    ],
)
def test_words_of_the_header(description, weighting, contrast):
    header = headers(SeriesDescription=description, ProtocolName="", ContrastBolusAgent=None)
    assert (weighting_of(header), contrast_of(header)) == (weighting, contrast)


@pytest.mark.parametrize(
    ("description", "protocol", "agent", "contrast"),
    [
        ("AX T1 POST", "BRAIN W/WO CONTRAST", "gadobutrol", True),
        ("AX T1 SE PRE", "BRAIN W/WO CONTRAST", "gadobutrol", False),
        ("AX T1", "BRAIN W/WO CONTRAST", None, None),
        ("AX T1", "BRAIN W/WO CONTRAST", "gadobutrol", True),
        ("AX T1", "Brain with and without contrast", None, None),
        ("AX T1", "MRI BRAIN WITH CONTRAST", None, True),
        ("AX T1", "head pre", None, False),
    ],
)
def test_the_words_of_the_series_come_before_those_of_the_examination(description, protocol, agent, contrast):
    header = headers(SeriesDescription=description, ProtocolName=protocol, ContrastBolusAgent=agent)
    assert contrast_of(header) is contrast


@pytest.mark.parametrize(
    ("tags", "weighting"),
    [
        ({"RepetitionTime": "500", "EchoTime": "12"}, "T1"),
        ({"RepetitionTime": "4000", "EchoTime": "100"}, "T2"),
        ({"RepetitionTime": "3000", "EchoTime": "20"}, "PD"),
        ({"RepetitionTime": "2000", "EchoTime": "10", "InversionTime": "900"}, "T1"),
        ({"RepetitionTime": "9", "EchoTime": "4", "ScanningSequence": "GR"}, "T1"),
        ({"RepetitionTime": "700", "EchoTime": "25", "ScanningSequence": "GR"}, "susceptibility"),
        ({"RepetitionTime": None, "EchoTime": None}, None),
    ],
)
def test_times_of_the_header_decide_where_words_do_not(tags, weighting):
    assert weighting_of(headers(SeriesDescription="tra", **tags)) == weighting


@pytest.mark.parametrize(("agent", "given"), [("Gadovist", True), ("none", False), ("NO", False), (None, None)])
def test_the_agent_of_the_header(agent, given):
    assert contrast_of(headers(SeriesDescription="t1 tra", ContrastBolusAgent=agent)) is given


def test_color_and_secondary_captures_are_refused(tmp_path):
    (path,) = save_series(tmp_path, VOLUME[..., :1], AFFINE)
    ds = pydicom.dcmread(path)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.PixelData = 7, 0, bytes(ds.Rows * ds.Columns * 3)
    ds.save_as(path)
    with pytest.raises(InputError, match="color pictures"):
        open_scan(path)


def test_a_file_without_modality_is_judged_by_its_class(tmp_path):
    paths = save_series(tmp_path, VOLUME, AFFINE, Modality=None)
    assert open_scan(tmp_path).n_slices == 9
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        ds.save_as(path)
    with pytest.raises(InputError, match="it is a CT Image, not MR"):
        open_scan(tmp_path)


@pytest.mark.parametrize(
    ("uid", "numbers"),
    [("1.2.840.10", (1, 2, 840, 10)), ("1.2." + "9" * 5000, None), ("1..2", None), ("1.2.a", None), ("", None)],
)
def test_numbers_of_a_uid(uid, numbers):
    ds = pydicom.Dataset()
    ds.SOPInstanceUID = pydicom.DataElement("SOPInstanceUID", "UI", uid, validation_mode=pydicom.config.IGNORE).value
    assert uid_numbers(ds, "SOPInstanceUID") == numbers
