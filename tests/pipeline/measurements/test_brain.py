"""The brain region: in every orientation, stripped brains, and volumes on which the atlas must not be believed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own habit)
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tests.data.test_scan import reoriented
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_volume
from tumorlens.data.scan import Scan
from tumorlens.pipeline.measurements import atlas, brain
from tumorlens.pipeline.measurements.brain import MARGIN_MM, BrainRegion, find_brain

SPACING = (2.5, 2.5, 5.0)
SIZE = 0.93  # of the head, compared with the atlas


@dataclass(frozen=True)
class Head:
    """A head in RAS order: the brain of the atlas with a skull, a scalp and a face around it."""

    image: NDArray[np.float32]
    brain: NDArray[np.bool_]
    affine: NDArray[np.float64]

    @property
    def scan(self) -> Scan:
        return Scan.from_array(self.image, self.affine)


def head_at(turn_degrees=(0.0, 0.0, 0.0), shift_mm=(0.0, 0.0, 0.0), contrast=(60, 110, 140)):
    """A head that is turned and shifted, with gray values of the cortex, the white matter and the scalp."""
    shape = np.array((80, 96, 48))
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -(shape - 1) / 2 * SPACING
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    turn = Rotation.from_euler("xyz", turn_degrees, degrees=True).as_matrix()
    places = (places - shift_mm) @ turn / SIZE  # mm from the middle of the atlas' brain
    template = atlas.load_atlas()
    index = np.moveaxis((places - template.distance.GetOrigin()) / template.distance.GetSpacing(), -1, 0)
    distance, classes = (
        ndimage.map_coordinates(sitk.GetArrayFromImage(part).T, index, order=order, mode="nearest")
        for part, order in ((template.distance, 1), (template.classes, 0))
    )
    tissue = ndimage.gaussian_filter(np.minimum(classes, 7), 3 / np.array(SPACING))  # blurred
    cortex, white, scalp = contrast
    image = np.where(distance < 0, cortex + (white - cortex) * tissue / 7, 12)
    image = np.where((distance > 7) & (distance < 14), scalp, image)
    face = (places[..., 2] < -45) & (places[..., 2] > -105) & (np.hypot(places[..., 0], places[..., 1] - 25) < 65)
    image = np.where(face & (distance > 7), 50 + 30 * np.sin(places[..., 1] / 6) * np.sin(places[..., 2] / 8), image)
    image = np.where((distance >= 14) & ~face, 0, image)
    image = image + np.random.default_rng(0).normal(0, 2, image.shape)
    return Head(image.astype(np.float32), distance < 0, affine)


def overlap(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.fixture(scope="module")
def head():
    return head_at()


@pytest.fixture(scope="module")
def region(head):
    found = find_brain(head.scan)
    assert isinstance(found, BrainRegion), found
    return found


def test_the_region_is_the_brain_and_its_margin(head, region):
    depth = ndimage.distance_transform_edt(~head.brain, SPACING)
    assert region.method == "atlas"
    assert region.mask[head.brain].mean() > 0.995
    assert region.mask[depth > 14].mean() < 0.005
    assert overlap(region.mask, depth <= MARGIN_MM) > 0.93
    assert region.fit.sizes == pytest.approx(SIZE, abs=0.06)


@pytest.mark.parametrize("code", ["LPI", "SRA", "PIL"])
def test_the_region_is_the_same_in_every_orientation(head, region, code):
    turned = find_brain(Scan.from_array(*reoriented(head.image, head.affine, code)))
    assert isinstance(turned, BrainRegion)
    assert np.array_equal(turned.mask, reoriented(region.mask, head.affine, code)[0])


@pytest.mark.parametrize(
    "change",
    [
        {"turn_degrees": (25.0, 0.0, 0.0), "shift_mm": (5.0, -8.0, 10.0)},
        {"turn_degrees": (-20.0, 8.0, 12.0)},
        {"contrast": (130, 70, 60)},  # as in T2: the cortex is brighter than the white matter
    ],
    ids=["chin up", "turned", "inverted"],
)
def test_the_region_follows_turns_and_contrasts(change):
    other = head_at(**change)
    found = find_brain(other.scan)
    assert isinstance(found, BrainRegion), found
    assert found.mask[other.brain].mean() > 0.99
    assert overlap(found.mask, other.brain) > 0.8


def test_a_part_of_a_head_has_a_region(head):
    part = slice(20, 48)  # without face and skull base
    affine = head.affine.copy()
    affine[2, 3] += 20 * SPACING[2]
    found = find_brain(Scan.from_array(head.image[:, :, part], affine))
    assert isinstance(found, BrainRegion), found
    assert found.mask[head.brain[:, :, part]].mean() > 0.99


def test_a_phantom_with_a_lesion_has_a_region():
    phantom = phantom_volume(1, "glioma", shape=(96, 112, 24), spacing_mm=(2.0, 2.0, 5.0))
    found = find_brain(phantom.scan)
    assert isinstance(found, BrainRegion), found
    assert found.mask[phantom.mask > 0].all()


def test_a_stripped_brain_is_its_own_region(head, monkeypatch):
    monkeypatch.setattr(brain, "register", lambda *_: pytest.fail("the atlas was registered"))
    member = head.brain
    stripped = np.where(member, np.maximum(head.image, 1), 0)
    found = find_brain(Scan.from_array(stripped, head.affine))
    assert isinstance(found, BrainRegion)
    assert found.method == "stripped"
    assert found.mask[member].all()
    depth = ndimage.distance_transform_edt(~member, SPACING)
    assert found.mask[depth <= 2.5].all()
    assert not found.mask[depth > 13].any()  # the margin and a voxel of the working grid


def test_a_head_on_exact_zeros_is_not_a_stripped_brain(head):
    found = find_brain(Scan.from_array(np.where(head.image > 8, head.image, 0), head.affine))
    assert isinstance(found, BrainRegion)
    assert found.method == "atlas"


def test_no_orientation_no_region(head):
    assert "orientation" in find_brain(Scan.from_array(head.image, spacing_mm=SPACING))
    assert "picture" in find_brain(Scan.from_array(head.image[:, :, 9]))


def test_a_lost_slice_distance_is_reported(head):
    found = find_brain(Scan.from_array(head.image, np.diag([2.5, 2.5, 1.0, 1.0])))
    assert isinstance(found, str)
    assert "does not fit" in found


@pytest.mark.parametrize("stretch", [(1.6, 1.6, 1.6), (0.6, 0.6, 0.6)])
def test_a_wrong_size_is_reported(head, stretch):
    found = find_brain(Scan.from_array(head.image, np.diag([*stretch, 1.0]) @ head.affine))
    assert isinstance(found, str), found


def test_noise_and_emptiness_are_reported():
    noise = np.random.default_rng(0).normal(100, 20, (64, 64, 40))
    assert "does not fit" in find_brain(Scan.from_array(noise, np.diag([3.0, 3.0, 5.0, 1.0])))
    assert "nothing stands out" in find_brain(Scan.from_array(np.full((30, 30, 30), 7), np.diag([5.0, 5, 5, 1])))
    assert "too thin" in find_brain(Scan.from_array(noise[:, :, :1], np.diag([3.0, 3.0, 5.0, 1.0])))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"similarity": 0.2}, "mutual information"),
        ({"center": np.array([0.0, 0.0, 120.0])}, "% of the brain; 50% are needed"),
        ({"matrix": 0.5 * np.eye(3)}, "size"),
        ({"matrix": np.diag([0.7, 1.1, 1.0])}, "stretched"),
        ({"matrix": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])}, "90 degrees"),
        ({"center": np.array([0.0, 60.0, 0.0])}, "in the head"),
        ({"center": np.array([0.0, 0.0, -50.0])}, "far above"),
    ],
)
def test_a_fit_that_no_head_can_have_is_not_used(head, region, monkeypatch, change, word):
    monkeypatch.setattr(brain, "register", lambda *_: replace(region.fit, **change))
    found = find_brain(head.scan)
    assert isinstance(found, str), found
    assert word in found


def test_a_missing_template_is_reported(monkeypatch):
    monkeypatch.setattr(atlas, "_TEMPLATE", "datasets/data/other.nii.gz")
    with pytest.raises(InputError, match="nilearn"):
        atlas.load_atlas.__wrapped__()


@pytest.mark.real
def test_no_lesion_of_a_real_head_lies_outside(real):
    """The headers state a wrong voxel size, so there is no region. With a likely size, the region holds each lesion."""
    folder = real / "volumes" / "progression" / "01"
    image, mask = (nibabel.load(folder / f"pre_{name}.nii.gz") for name in ("t1", "mask"))
    voxels, lesion = np.asarray(image.dataobj), np.asarray(mask.dataobj) > 0
    assert isinstance(find_brain(Scan.from_array(voxels, image.affine)), str)
    found = find_brain(Scan.from_array(voxels, image.affine @ np.diag([0.86, 0.86, 6.5, 1])))
    assert isinstance(found, BrainRegion)
    assert found.mask[lesion].all()


@pytest.mark.real
def test_real_stripped_brains_skip_the_atlas(real):
    for file in ("brats/GLI-00001-000_t1c.nii.gz", "healthy/kirby21_113_mprage_skullstripped.nii.gz"):
        image = nibabel.load(real / "volumes" / file)
        found = find_brain(Scan.from_array(np.asarray(image.dataobj), image.affine))
        assert isinstance(found, BrainRegion)
        assert found.method == "stripped"
        assert found.mask[np.asarray(image.dataobj) > 0].mean() > 0.999
