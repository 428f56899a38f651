"""MetaImage: places under every name that its fields go by, byte orders, and data behind a header of their own."""

from __future__ import annotations

import time
import tracemalloc
import zlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own habit)

from tests.scans.volumes import LPS, SMALL, place_of, read_volume, save_mha


@pytest.mark.parametrize(
    ("fields", "spacing", "place"),
    [
        ({}, None, None),
        ({"TransformMatrix": "0 1 0 1 0 0 0 0 1"}, None, None),
        ({"ElementSpacing": "2 3 4"}, (2, 3, 4), None),
        ({"ElementSize": "2 3 4"}, (2, 3, 4), None),
        ({"ElementSize": "9 9 9", "ElementSpacing": "2 3 4"}, (2, 3, 4), None),
        ({"ElementSpacing": "2 3 4", "AnatomicalOrientation": "RAI"}, (2, 3, 4), None),
        # By hand: voxel (1, 2, 1) lies at LPS (10 + 2*3, 20 + 1*2, 30 + 4).
        ({"ElementSpacing": "2 3 4", "TransformMatrix": "0 1 0 1 0 0 0 0 1", "Offset": "10 20 30"}, (2, 3, 4),
         (-16, -22, 34)),
        ({"ElementSpacing": "2 3 4", "Orientation": "0 1 0 1 0 0 0 0 1", "Position": "10 20 30"}, (2, 3, 4),
         (-16, -22, 34)),
        ({"ElementSpacing": "2 3 4", "Rotation": "0 1 0 1 0 0 0 0 1"}, (2, 3, 4), (-6, -2, 4)),
        ({"ElementSpacing": "2 3 4", "TransformMatrix": "0 1 0 0 0 1 1 0 0"}, (2, 3, 4), (-4, -2, 6)),
        ({"ElementSpacing": ".2 .3 .4", "TransformMatrix": "0 1 0 1 0 0 0 0 1", "Offset": "1 2 3",
          "DistanceUnits": "cm"}, (2, 3, 4), (-16, -22, 34)),
    ],
)  # fmt: skip
def test_metaimage_places(tmp_path, fields, spacing, place):
    path = save_mha(tmp_path / "a.mha", SMALL.tobytes(), **fields)
    scan = read_volume(path)
    assert scan.spacing_mm == (None if spacing is None else pytest.approx(spacing))
    assert (scan.affine is None) == (place is None)
    if place is not None:
        np.testing.assert_allclose(place_of(scan.affine, (1, 2, 1)), place)
    if place is not None and "DistanceUnits" not in fields:  # which ITK leaves to its user
        np.testing.assert_allclose(LPS @ sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint((1, 2, 1)), place)
    np.testing.assert_array_equal(scan.voxels.ravel(order="F"), SMALL)


@pytest.mark.parametrize("order", ["True", "False"])
def test_metaimage_byte_orders(tmp_path, order):
    data = SMALL.astype(">i2" if order == "True" else "<i2").tobytes()
    for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"):
        np.testing.assert_array_equal(
            read_volume(save_mha(tmp_path / "a.mha", data, **{name: order})).voxels.ravel("F"), SMALL
        )


@pytest.mark.parametrize(("skip", "before"), [("0", b""), ("7", b"1234567"), ("-1", b"any header")])
def test_metaimage_header_size(tmp_path, skip, before):
    (tmp_path / "a.raw").write_bytes(before + SMALL.tobytes())
    scan = read_volume(save_mha(tmp_path / "a.mhd", last="ElementDataFile = a.raw", HeaderSize=skip))
    np.testing.assert_array_equal(scan.voxels.ravel("F"), SMALL)


@pytest.mark.parametrize("line", ["Comment = a", "Comment" + " " * 400_000 + "x = a", "a" * 400_000])
def test_long_lines_of_a_metaimage_take_no_time(tmp_path, line):
    long = f"{line}{' ' * 400_000}b"
    path = save_mha(tmp_path / "a.mha", SMALL.tobytes(), last=f"{long}\nElementDataFile  =  LOCAL  ")
    begun = time.process_time()
    np.testing.assert_array_equal(read_volume(path).voxels.ravel("F"), SMALL)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("size", ["20000000000", "99999999999999999999", "0", "-1"])
def test_a_compressed_size_that_is_not_true_takes_no_memory(tmp_path, size):
    packed = zlib.compress(SMALL.tobytes())
    path = save_mha(tmp_path / "a.mha", packed, CompressedData="True", CompressedDataSize=size)
    tracemalloc.start()
    np.testing.assert_array_equal(read_volume(path).voxels.ravel("F"), SMALL)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
