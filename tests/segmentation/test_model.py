"""Every segmenter by name: built, trained a step, saved, loaded again, with its encoder's normalization."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tumorlens.segmentation.model
from tests.data.training.runs import ENCODER, SEGMENTER_CARD, segmenter_config, train
from tumorlens.classification.predict import SHIPPED as CLASSIFIER
from tumorlens.data.cards.weights import load_weights, read_state, save_weights
from tumorlens.data.errors import InputError
from tumorlens.data.preprocessing.normalization import IMAGENET
from tumorlens.data.training import run as run_module
from tumorlens.segmentation.model import build_segmenter, encoder_normalization, initialize_segmenter
from tumorlens.segmentation.predict import SHIPPED, Segmenter

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("arch", ["unet++", "unet-scse", "plain-unet"])
def test_segmenters_by_name(arch, phantom_set, tmp_path):
    card = train(segmenter_config(phantom_set, arch=arch, epochs=1, epoch_slices=8), tmp_path)
    assert (card["architecture"], card["encoder"]) == (arch, ENCODER)
    model = Segmenter.load(tmp_path / "segmenter.safetensors", "cpu")
    assert model.predict(np.zeros((2, 64, 64), np.uint8)).shape == (2, 64, 64)


def test_segmenters_that_cannot_be_built():
    for arch, encoder, reason in (
        ("vnet", "resnet50", "architecture 'vnet' is not one of unet"),
        ("unet", "resnet5", "encoder 'resnet5' is not one of"),
        ("unet++", "mit_b0", "does not go with"),
        ("unet", "tu-nothing", "does not go with"),
    ):
        with pytest.raises(InputError, match=reason):
            build_segmenter(arch, encoder)
    for widths in ((256, 128), (256, 128, 64, 32, -1), tuple("abcde"), 5):
        with pytest.raises(
            InputError, match=r"decoder_channels .*: give five whole numbers from 1 on, such as 128, 96"
        ):
            build_segmenter(decoder_channels=widths)
    with pytest.raises(InputError, match="a plain U-Net has no encoder"):
        initialize_segmenter(build_segmenter("plain-unet"), init=str(CLASSIFIER))


def test_a_segmenter_that_cannot_be_built_without_a_reason(monkeypatch):
    def fail(**_):
        raise AssertionError

    monkeypatch.setitem(tumorlens.segmentation.model.ARCHITECTURES, "unet", fail)
    with pytest.raises(InputError, match=r"does not go with unet \(AssertionError\)"):
        build_segmenter("unet")


def test_a_segmenter_that_fails_on_its_size_costs_no_reading(tmp_path, monkeypatch):
    """An encoder for one input size is refused at another before a single slice is read."""
    monkeypatch.setattr(run_module, "load_partition", lambda *_, **__: pytest.fail("the data were read"))
    encoder = "tu-swin_tiny_patch4_window7_224"
    with pytest.raises(InputError, match=f"unet with encoder {encoder} does not take inputs of 64 pixels"):
        train(segmenter_config(tmp_path, encoder=encoder, decoder_channels=(128, 96, 64, 32, 16)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_encoders_have_their_normalization():
    assert encoder_normalization("unet", "resnet50") == IMAGENET
    assert encoder_normalization("unet", "inceptionv4").mean == HALF
    assert encoder_normalization("unet", "tu-tf_efficientnet_lite0").mean == HALF
    assert encoder_normalization("plain-unet", "inceptionv4") == IMAGENET


def test_a_segmenter_starts_from_a_classifier():
    model = build_segmenter()
    text = initialize_segmenter(model, init=str(CLASSIFIER))
    assert "from chance" not in text
    state, _ = load_weights(CLASSIFIER, "classification")
    torch.testing.assert_close(model.encoder.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])


def test_a_segmenter_with_more_outlines_starts_from_one_with_a_single(tmp_path):
    """Encoder and decoder are loaded, and each channel of the last layer is a copy of the only one."""
    channels = (16, 16, 16, 16, 16)
    one, two = build_segmenter("unet", ENCODER, channels).eval(), build_segmenter("unet", ENCODER, channels, 2).eval()
    save_weights(one.state_dict(), tmp_path / "one.safetensors", SEGMENTER_CARD)
    text = initialize_segmenter(two, ENCODER, str(tmp_path / "one.safetensors"))
    assert "segmenter tensors from one.safetensors" in text and "from chance" not in text
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(two(images), one(images).expand(-1, 2, -1, -1), atol=2e-2, rtol=2e-2)
    other = build_segmenter("unet", ENCODER, (8, 8, 8, 8, 8))
    assert "decoder" in initialize_segmenter(other, ENCODER, str(tmp_path / "one.safetensors")).split("from chance")[1]


def test_the_shipped_segmenter_is_a_start_with_and_without_outlines():
    trained = read_state(SHIPPED)
    own, first, last = "segmentation_head.0.weight", build_segmenter(), build_segmenter(channels=2)
    text = initialize_segmenter(first, init="shipped")
    assert text == "317 of 317 segmenter tensors from the shipped segmenter; of its outlines, enhancing"
    torch.testing.assert_close(first.state_dict()[own], trained[own][:1].float())
    text = initialize_segmenter(last, init="shipped", names=("enhancing", "extent"))
    assert text == "317 of 317 segmenter tensors from the shipped segmenter"
    torch.testing.assert_close(last.state_dict()[own], trained[own].float())
    text = initialize_segmenter(first, init=str(SHIPPED), names=("extent",))
    assert text == "317 of 317 segmenter tensors from segmenter.safetensors"
    torch.testing.assert_close(first.state_dict()[own], trained[own][1:].float())
    with pytest.raises(InputError, match="is a unet with encoder resnet50; give --arch unet --encoder resnet50"):
        initialize_segmenter(build_segmenter(encoder="resnet18"), "resnet18", "shipped")


def test_a_plain_unet_starts_from_another(tmp_path):
    one, two = build_segmenter("plain-unet"), build_segmenter("plain-unet", channels=2)
    save_weights(one.state_dict(), tmp_path / "one.safetensors", SEGMENTER_CARD)
    assert "from chance" not in initialize_segmenter(two, init=str(tmp_path / "one.safetensors"))
    torch.testing.assert_close(two.final_conv.bias, one.final_conv.bias.half().float().expand(2))


def test_a_trained_segmenter_goes_a_part_of_the_way_back(phantom_set, tmp_path):
    """With the whole share it is the start again, whose single channel serves both outlines."""
    settings = {"epochs": 1, "epoch_slices": 8}
    train(segmenter_config(phantom_set, **settings), tmp_path / "first")
    first = tmp_path / "first" / "segmenter.safetensors"
    both = {**settings, "outline": ("enhancing", "extent"), "init": str(first), "start_share": 1.0}
    train(segmenter_config(phantom_set, phantom_set, **both), tmp_path / "back")
    start, back = (read_state(tmp_path / name / "segmenter.safetensors") for name in ("first", "back"))
    for name, tensor in back.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, start[name].expand_as(tensor), msg=name)
    first.unlink()
    with pytest.raises(InputError, match="no such weight file"):
        train(segmenter_config(phantom_set, phantom_set, **both | {"epochs": 2}), tmp_path / "back", resume=True)
    assert "epochs: 1" in (tmp_path / "back" / "config.yaml").read_text()
    other = {"init": str(CLASSIFIER), "encoder": "resnet50"}
    with pytest.raises(InputError, match="needs a whole network, and it lacks decoder"):
        train(segmenter_config(phantom_set, **settings, start_share=0.5, **other), tmp_path / "refused")
