"""Networks that fail on an input size are refused with a reason, for any error and any result."""

from __future__ import annotations

import pytest
from torch import nn

from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.module import check_input_size as check_classifier
from tumorlens.data.errors import InputError
from tumorlens.segmentation.config import SegmenterConfig
from tumorlens.segmentation.module import check_input_size as check_segmenter


class Raising(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, batch):
        raise self.error


@pytest.mark.parametrize("error", [AssertionError(), AssertionError("\n"), IndexError("of range\nmore"), KeyError()])
def test_a_network_that_fails_without_a_reason(error):
    with pytest.raises(InputError, match=r"^mlp does not take inputs of 64 pixels \((\w+Error|of range)\)$"):
        check_classifier(Raising(error), find_architecture("mlp"), 64)
    with pytest.raises(InputError, match=r"^unet with encoder x does not take inputs of 64 pixels \(\S.*\)$"):
        check_segmenter(Raising(error), SegmenterConfig(("data",), encoder="x"), 64)


def test_a_network_that_answers_in_another_shape():
    with pytest.raises(InputError, match=r"gives shape \(1, 3, 64, 64\), not shape \(1, 4\)"):
        check_classifier(nn.Identity(), find_architecture("mlp"), 64)
