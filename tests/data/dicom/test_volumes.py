"""Series and files that hold several volumes at one place: echoes, time points, kinds of image."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from tests.scans.dicom import edit, save_enhanced, save_series, small_volume
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan


def test_a_frame_is_asked_for_only_where_there_are_several(tmp_path):
    volume, affine = small_volume()
    save_series(tmp_path, volume, affine, series="1.2.3", EchoTime="10")
    assert open_scan(tmp_path, frame=3).frame is None
    save_series(tmp_path / "second", volume + 1, affine, series="1.2.3", EchoTime="90")
    with pytest.raises(InputError, match=r"holds 2 volumes at the same place.*--frame 0 to 1"):
        open_scan(tmp_path)
    assert np.array_equal(open_scan(tmp_path, frame=0).voxels + 1, open_scan(tmp_path, frame=1).voxels)
    with pytest.raises(InputError, match="frame 2 does not exist"):
        open_scan(tmp_path, frame=2)


def test_an_incomplete_echo_is_not_filled_up_from_another(tmp_path):
    volume, affine = small_volume()
    first = save_series(tmp_path / "a", volume, affine, series="1.2.3", EchoTime="10")
    save_series(tmp_path / "b", volume + 5000, affine, series="1.2.3", EchoTime="90")
    whole = open_scan(tmp_path, frame=0)
    first[4].unlink()
    with pytest.raises(InputError, match="holds 2 volumes"):
        open_scan(tmp_path)
    scan = open_scan(tmp_path, frame=0)
    assert scan.voxels.max() < 5000 and open_scan(tmp_path, frame=1).voxels.min() >= 4800
    kept = [k for k in range(9) if k != 4]
    assert np.array_equal(scan.voxels[..., kept], whole.voxels[..., kept])
    assert scan.dicom.places[4] is None
    assert any("frame 0 lacks 1 of the 9 places" in w for w in scan.warnings)


@pytest.mark.parametrize("name", ["AcquisitionTime", "TriggerTime"])
def test_time_points_are_told_apart_by_their_times(tmp_path, name):
    volume, affine = small_volume()
    for step in range(3):  # the later, the lower the instance numbers: they say nothing
        paths = save_series(tmp_path / str(step), volume % 1000 + 5000 * step, affine, series="1.2.3", shuffle=9 - step)
        edit(paths, **{name: ("1013%02d" if name == "AcquisitionTime" else "%d") % (10 * (step + 1))})
    for step in range(3):
        voxels = open_scan(tmp_path, frame=step).voxels
        assert 5000 * step <= voxels.min() and voxels.max() < 5000 * step + 1000
    with pytest.raises(InputError, match=r"--frame 0 to 2 \(0: .*; 1: .*; 2: "):
        open_scan(tmp_path)


def test_acquisition_numbers_that_count_slices_do_not_split_a_series(tmp_path):
    volume, affine = small_volume()
    paths = save_series(tmp_path / "a", volume, affine, series="1.2.3", EchoTime="10")
    paths += save_series(tmp_path / "b", volume + 5000, affine, series="1.2.3", EchoTime="90")
    edit(paths, AcquisitionNumber=lambda index: index)
    assert open_scan(tmp_path, frame=0).voxels.max() < 5000


@pytest.mark.parametrize("told_by", ["EffectiveEchoTime", "TemporalPositionIndex", "DimensionIndexValues"])
def test_echoes_of_an_enhanced_file_are_told_apart_in_any_order(tmp_path, told_by):
    volume, affine = small_volume()
    path = save_enhanced(tmp_path / "e.dcm", np.concatenate([volume, volume], axis=2), affine)
    ds = pydicom.dcmread(path)
    frames = ds.pixel_array.copy()
    positions = [np.array(g.PlanePositionSequence[0].ImagePositionPatient) for g in ds.PerFrameFunctionalGroupsSequence]
    for f, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        k = round((positions[f][2] - 10) / 4.5)
        echo, place = divmod(k, 9)
        if place % 2:  # which echo comes first alternates, as in interleaved acquisitions
            echo = 1 - echo
        frames[f] = 1000 * (echo + 1) + place
        group.PlanePositionSequence[0].ImagePositionPatient = [*positions[f][:2], 10 + 4.5 * place]
        item = pydicom.Dataset()
        if told_by == "EffectiveEchoTime":
            item.EffectiveEchoTime = 10.0 + 80 * echo
            group.MREchoSequence = [item]
        elif told_by == "TemporalPositionIndex":
            group.FrameContentSequence[0].TemporalPositionIndex = echo + 1
        else:
            group.FrameContentSequence[0].DimensionIndexValues = [1, place + 1, echo + 1]
    ds.PixelData = frames.tobytes()
    ds.save_as(path)
    for frame in (0, 1):
        found = open_scan(path, frame=frame).voxels[0, 0]
        assert found.tolist() == [1000 * (frame + 1) + place for place in range(9)]
