"""The slices of an epoch, their order, and the batches that a network gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.data.training.runs import segmenter_config
from tumorlens.data.config import DataConfig
from tumorlens.data.preprocessing.normalization import to_batch
from tumorlens.data.training.loaders import EpochSampler, SliceDataset, epoch_length, loaders
from tumorlens.data.training.partition import load_partition
from tumorlens.segmentation.module import build_module


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_only():
    first, second = EpochSampler(20, 3), EpochSampler(20, 3)
    list(first)
    first.set_epoch(4)
    second.set_epoch(4)
    assert list(first) == list(second)
    assert {i for _, i in first} == set(range(20))


def test_an_epoch_may_show_a_part_of_the_slices_others_every_time():
    sampler = EpochSampler(100, seed=3, most=30)
    assert len(sampler) == 30
    first = [i for _, i in sampler]
    sampler.set_epoch(1)
    second = [i for _, i in sampler]
    assert len(set(first)) == len(set(second)) == 30
    assert set(first) != set(second)
    assert len(EpochSampler(20, seed=3, most=30)) == 20


@pytest.mark.parametrize(("most", "length", "negatives"), [(0, 66, 6), (40, 40, 4), (500, 66, 6)])
def test_an_epoch_has_the_requested_share_of_negative_samples(most, length, negatives):
    negative = np.arange(100) % 5 < 2
    sampler = EpochSampler(100, 3, most=most, negative=negative, negative_share=0.1)
    shown = []
    for epoch in range(12):
        sampler.set_epoch(epoch)
        drawn = [number for _, number in sampler]
        assert len(drawn) == len(set(drawn)) == len(sampler) == length
        assert negative[drawn].sum() == negatives
        assert np.abs(np.diff(np.flatnonzero(negative[drawn]))).max() > 1  # among the others, not in a row
        shown += drawn
    assert negative[shown].sum() > len(set(np.array(shown)[negative[shown]])) > 2 * negatives  # others every time


def test_the_share_of_negative_samples_is_counted_before_transplants_and_says_so(command, phantom_set):
    config = segmenter_config(phantom_set, negative_share=0.1, transplant=1.0, epochs=1)
    training, _ = loaders(config, load_partition(config), negative_share=0.1)
    drawn = list(training.sampler)
    before = np.mean([not training.dataset.prepared.masks[i].any() for _, i in drawn])
    shown = np.mean([not training.dataset[index]["mask"].any() for index in drawn])
    assert before <= 0.1 < shown
    text = command("train", "segmentation", "--help").output
    assert "shows no lesion, before --transplant heals others" in " ".join(text.split())


def test_a_set_without_negatives_is_used_whole():
    assert epoch_length(np.zeros(20, bool), 0, 0.1) == (20, 0)
    assert epoch_length(np.ones(20, bool), 0, 0.1) == (0, 0)


def test_the_share_of_blanked_slices(phantom_set):
    parts = load_partition(DataConfig((str(phantom_set),), size=64))
    for share, low, high in ((0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 1, 1)):
        dataset = SliceDataset(parts.train, seed=1, blank=share)
        blanked = np.mean([bool(dataset[(epoch, i)]["blank"]) for epoch in range(10) for i in range(len(dataset))])
        assert low <= blanked <= high


def test_the_schedule_knows_of_shorter_epochs(phantom_set):
    """One-cycle raises if a run takes more steps than planned."""
    config = segmenter_config(phantom_set, negative_share=0.1)
    parts = load_partition(config)
    module = build_module(config, parts)
    training, _ = loaders(config, parts, negative_share=0.1)
    assert module.total_steps == max(2, len(training) * config.epochs)


def test_batches_are_normalized_and_channels_last():
    batch = to_batch(np.full((2, 4, 4), 255, np.uint8))
    assert batch.shape == (2, 3, 4, 4)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert batch[0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229)
