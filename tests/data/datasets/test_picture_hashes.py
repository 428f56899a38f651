"""A picture keeps its hash when it is scaled, compressed, brightened or mirrored; other pictures have another one."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tumorlens.data.datasets.picture_hashes import ALIKE, PictureHashes
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess


def compressed(picture):
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=40)
    return Image.open(stream)


CHANGES = {
    "as it is": lambda picture: picture,
    "half as large": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "a poor JPEG": compressed,
    "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "framed": lambda picture: Image.fromarray(np.pad(np.array(picture), 40)),
    "brighter": lambda picture: picture.point(lambda value: int(255 * (value / 255) ** 0.8)),
}


def hashes_of(pictures, size=96):
    return PictureHashes.of(np.stack([Preprocess(size)(np.array(picture)).image for picture in pictures]))


@pytest.fixture(scope="module")
def pictures():
    kinds = ("no_tumor", "glioma", "meningioma", "pituitary")
    return [Image.fromarray(phantom_slice(seed, kinds[seed % 4]).image) for seed in range(12)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_recognized(pictures, change):
    changed = hashes_of([CHANGES[change](picture) for picture in pictures], 128)  # at another size of the network
    assert hashes_of(pictures).hold(changed).all()


def test_other_pictures_are_not(pictures):
    assert not hashes_of(pictures[:6]).hold(hashes_of(pictures[6:])).any()
    upside_down = [picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for picture in pictures]
    assert not hashes_of(pictures).hold(hashes_of(upside_down)).any()


def test_the_text_holds_each_hash_once_in_no_order(pictures):
    hashes = hashes_of(pictures)
    text = (hashes + hashes).text
    assert len(text) == 24 * 12
    assert text == hashes_of(pictures[::-1]).text
    again = PictureHashes.from_text(text)
    assert again.hold(hashes).all()
    assert PictureHashes.from_text(text + text[:24]).hold(hashes).all()  # texts can be joined


def test_no_picture_is_one_of_none(pictures):
    none = PictureHashes.from_text("")
    assert len(none) == 0 and none.text == ""
    assert none.hold(hashes_of(pictures)).tolist() == [False] * 12
    assert hashes_of(pictures).hold(none).shape == (0,)


def test_a_few_bits_may_differ():
    one = np.zeros((1, 18), np.uint8)
    for bits, alike in ((ALIKE, True), (ALIKE + 1, False)):
        other = np.packbits((np.arange(144) < bits)[None], axis=1)
        assert PictureHashes(one).hold(PictureHashes(other)).tolist() == [alike]


@pytest.mark.parametrize("text", ["abc", "A" * 23, "not base64 at all, really"])
def test_a_damaged_text_is_an_error(text):
    with pytest.raises(InputError, match="picture hashes are damaged"):
        PictureHashes.from_text(text)
