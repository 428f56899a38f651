"""A real archive as a peer: Orthanc on loopback ports stores a series, its mask and its report, and returns them."""

from __future__ import annotations

import json
import urllib.request
from contextlib import ExitStack

import highdicom as hd
import numpy as np
import pydicom
import pytest

from tests.scans.dicom import save_series
from tests.scans.orthanc import free_port, needs_orthanc, running_orthanc
from tumorlens.data.dicom.source import frames_from_volume
from tumorlens.data.formats.open import open_scan
from tumorlens.data.phantom import phantom_volume

pytestmark = [pytest.mark.slow, needs_orthanc]
SICK = phantom_volume(7, "meningioma", shape=(96, 112, 16), spacing_mm=(2.0, 2.0, 7.0))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """Ports of a running server: http, dicom, and the one to which it moves series."""
    with ExitStack() as stack:
        with free_port() as receiver:
            settings = {
                "DicomAlwaysAllowGet": True,
                "DicomAlwaysAllowMove": True,
                "DicomModalities": {"lens": ["TUMORLENS", "127.0.0.1", receiver]},
            }
            server = stack.enter_context(running_orthanc(tmp_path_factory.mktemp("orthanc"), **settings))
        yield server.http, server.dicom, receiver


@pytest.fixture(scope="module")
def web(orthanc):
    from dicomweb_client.api import DICOMwebClient

    return DICOMwebClient(f"http://127.0.0.1:{orthanc[0]}/dicom-web")


@pytest.fixture(scope="module")
def stored(orthanc, web, tmp_path_factory):
    """A series in the archive, and the folder it came from."""
    folder = tmp_path_factory.mktemp("series")
    paths = save_series(folder, SICK.image, SICK.affine, "sagittal")
    web.store_instances([pydicom.dcmread(path) for path in paths])
    return folder, pydicom.dcmread(paths[0])


def keep(folder, datasets):
    folder.mkdir()
    for index, ds in enumerate(datasets):
        ds.save_as(folder / f"{index}.dcm", enforce_file_format=True)
    return folder


def same_scan(a, b):
    one, other = open_scan(a), open_scan(b)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-6)
    assert np.array_equal(one.voxels, other.voxels)


def entity():
    from pynetdicom import AE

    ae = AE(ae_title="TUMORLENS")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
    return ae


def query(ds):
    query = pydicom.Dataset()
    query.QueryRetrieveLevel = "SERIES"
    query.StudyInstanceUID, query.SeriesInstanceUID = ds.StudyInstanceUID, ds.SeriesInstanceUID
    return query


def test_dicomweb_gives_the_series_back(web, stored, tmp_path):
    folder, ds = stored
    fetched = web.retrieve_series(ds.StudyInstanceUID, ds.SeriesInstanceUID)
    same_scan(folder, keep(tmp_path / "web", fetched))


def test_c_get_gives_the_series_back(orthanc, stored, tmp_path):
    from pynetdicom import build_role, evt
    from pynetdicom.sop_class import MRImageStorage, StudyRootQueryRetrieveInformationModelGet

    folder, ds = stored
    received: list[pydicom.Dataset] = []
    ae = entity()
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
    ae.add_requested_context(MRImageStorage)
    association = ae.associate(
        "127.0.0.1",
        orthanc[1],
        ext_neg=[build_role(MRImageStorage, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, lambda event: _received(event, received))],
    )
    assert association.is_established
    statuses = [s.Status for s, _ in association.send_c_get(query(ds), StudyRootQueryRetrieveInformationModelGet)]
    association.release()
    assert statuses[-1] == 0x0000
    same_scan(folder, keep(tmp_path / "get", received))


def test_c_move_gives_the_series_back(orthanc, stored, tmp_path):
    from pynetdicom import evt
    from pynetdicom.sop_class import MRImageStorage, StudyRootQueryRetrieveInformationModelMove

    folder, ds = stored
    received: list[pydicom.Dataset] = []
    receiver = entity()
    receiver.add_supported_context(MRImageStorage)
    handlers = [(evt.EVT_C_STORE, lambda event: _received(event, received))]
    server = receiver.start_server(("127.0.0.1", orthanc[2]), block=False, evt_handlers=handlers)
    try:
        ae = entity()
        ae.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
        association = ae.associate("127.0.0.1", orthanc[1])
        answers = association.send_c_move(query(ds), "TUMORLENS", StudyRootQueryRetrieveInformationModelMove)
        statuses = [status.Status for status, _ in answers]
        association.release()
    finally:
        server.shutdown()
    assert statuses[-1] == 0x0000
    same_scan(folder, keep(tmp_path / "move", received))


def _received(event, received):
    ds = event.dataset
    ds.file_meta = event.file_meta
    received.append(ds)
    return 0x0000


def test_mask_and_report_live_beside_their_series(orthanc, web, stored, tumorlens, tmp_path):
    """Fetched, run, stored and read again: the archive knows mask and report as part of the study, and the mask that
    comes back has the very voxels of mask.nii.gz."""
    _, ds = stored
    folder = keep(tmp_path / "in", web.retrieve_series(ds.StudyInstanceUID, ds.SeriesInstanceUID))
    # Its slices have 16 rows: too few to look like a brain, enough to see every voxel come back.
    assert tumorlens("run", folder, "-o", tmp_path / "out", "--secondary-capture", "--force").exit_code == 0
    results = tmp_path / "out" / "in"
    names = ("mask.dcm", "measurements.dcm", "overlay.dcm")
    made = [pydicom.dcmread(results / name) for name in names]
    web.store_instances(made)

    known = web.search_for_series(ds.StudyInstanceUID, search_filters={})
    assert sorted(s["00080060"]["Value"][0] for s in known) == ["MR", "OT", "SEG", "SR"]
    resource = f"http://127.0.0.1:{orthanc[0]}/studies"
    studies = json.load(urllib.request.urlopen(resource, timeout=10))
    assert len(studies) == 1  # nothing of ours has made a second patient or study

    back = [web.retrieve_instance(m.StudyInstanceUID, m.SeriesInstanceUID, m.SOPInstanceUID) for m in made]
    mask, report = keep_one(tmp_path / "mask.dcm", back[0]), keep_one(tmp_path / "sr.dcm", back[1])
    check_voxels(mask, folder, results / "mask.nii.gz")
    content = json.loads((results / "result.json").read_text())
    groups = hd.sr.srread(report).content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(content["lesions"]) > 0
    volumes = [g.get_measurements(name=pydicom.sr.codedict.codes.SCT.Volume)[0].value for g in groups]
    np.testing.assert_allclose(volumes, [lesion["volume_mm3"] for lesion in content["lesions"]], rtol=1e-4)

    preview = json.load(urllib.request.urlopen(f"http://127.0.0.1:{orthanc[0]}/instances?expand", timeout=10))
    (segmentation,) = [i for i in preview if i["MainDicomTags"]["SOPInstanceUID"] == made[0].SOPInstanceUID]
    picture = urllib.request.urlopen(
        f"http://127.0.0.1:{orthanc[0]}/instances/{segmentation['ID']}/frames/0/image-uint8", timeout=10
    ).read()
    assert picture[:4] == b"\x89PNG"  # Orthanc itself can show it


def keep_one(path, ds):
    ds.save_as(path, enforce_file_format=True)
    return path


def check_voxels(mask_path, series, nifti_path):
    import nibabel as nib

    scan = open_scan(series)
    expected = frames_from_volume(np.asarray(nib.load(nifti_path).dataobj))
    segmentation = hd.seg.segread(mask_path)
    uids = [str(scan.dicom.datasets[place[0]].SOPInstanceUID) for place in scan.dicom.places]
    pixels = segmentation.get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=True)
    assert np.array_equal(pixels != 0, expected != 0)
    assert expected.any()
