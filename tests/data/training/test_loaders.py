"""The slices of an epoch, their order, and the batches that a network gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.data.training.runs import classifier_config, fake_set, segmenter_config
from tumorlens.data.config import DataConfig
from tumorlens.data.errors import InputError
from tumorlens.data.preprocessing.normalization import to_batch
from tumorlens.data.training import loaders as room
from tumorlens.data.training.loaders import (
    EpochSampler,
    SliceDataset,
    loaders,
    slice_weights,
    total_steps,
    worker_count,
)
from tumorlens.data.training.partition import Partition, load_partition
from tumorlens.data.training.prepared import lesion_free
from tumorlens.segmentation.module import build_module


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_only():
    first, second = EpochSampler(np.ones(20), 3), EpochSampler(np.ones(20), 3)
    list(first)
    first.set_epoch(4)
    second.set_epoch(4)
    assert list(first) == list(second)
    assert {i for _, i in first} == set(range(20))


def test_an_epoch_may_show_a_part_of_the_slices_others_every_time():
    sampler = EpochSampler(np.ones(100), seed=3, most=30)
    assert len(sampler) == 30
    first = [i for _, i in sampler]
    sampler.set_epoch(1)
    second = [i for _, i in sampler]
    assert len(set(first)) == len(set(second)) == 30
    assert set(first) != set(second)
    assert len(EpochSampler(np.ones(20), seed=3, most=30)) == 20


@pytest.mark.parametrize("most", [0, 40])
def test_weights_say_how_often_an_epoch_shows_a_sample(most):
    weights = np.repeat([0.5, 1.0, 3.0], 20)
    sampler = EpochSampler(weights, 3, most=most)
    length = most or 90
    for epoch in range(4):
        sampler.set_epoch(epoch)
        drawn = np.array([number for _, number in sampler])
        assert len(drawn) == len(sampler) == length
        seen = np.bincount(drawn, minlength=60)
        assert (np.abs(seen - weights * length / 90) < 1).all()
        assert np.abs(np.diff(drawn)).min() >= 0
        assert (np.diff(drawn) != 0).mean() > 0.8  # a sample that is shown thrice is not shown thrice in a row


def test_the_rate_of_a_data_set_is_that_of_its_slices(phantom_set):
    twice = segmenter_config(phantom_set, phantom_set, duplicates="drop", rate=(1.0, 0.25))
    parts = load_partition(twice)
    weights = slice_weights(twice, parts.train)
    assert {(s.source, w) for s, w in zip(parts.train.samples, weights, strict=True)} == {(0, 1.0), (1, 0.25)}
    with pytest.raises(InputError, match="3 of --rate for 2 of --data"):
        slice_weights(replace(twice, rate=(1.0, 1.0, 1.0)), parts.train)
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="each --rate is a number above 0"):
            slice_weights(replace(twice, rate=(1.0, rate)), parts.train)


def test_an_epoch_without_a_slice_is_an_error(phantom_set):
    config = segmenter_config(phantom_set, rate=(0.001,))
    with pytest.raises(InputError, match="an epoch shows no slice at all"):
        total_steps(config, load_partition(config))


def test_the_field_of_view_is_cut_only_where_lesions_have_outlines(phantom_set):
    """Otherwise the cut might take an unknown lesion away; healthy slices of such a set are left alone as well."""

    def cut(part):
        flags = {}

        def watch(image, mask, seed, cut):
            flags.setdefault(cut, 0)
            return image, mask

        dataset = SliceDataset(part, watch)
        for i in range(len(part)):
            dataset[0, i]
        return set(flags)

    part = load_partition(segmenter_config(phantom_set)).train
    assert (part.labels == 0).any() and part.masks.any()
    assert cut(part) == {True}
    assert cut(replace(part, masks=np.zeros_like(part.masks))) == {False}


def test_a_share_of_negative_slices_is_kept(phantom_set):
    config = segmenter_config(phantom_set)
    parts = load_partition(config)
    negative = lesion_free(parts.train)
    weights = slice_weights(config, parts.train, 0.1)
    assert (weights[~negative] == 1).all()
    assert weights[negative].sum() / weights.sum() == pytest.approx(0.1)
    assert (slice_weights(config, parts.train, 0.0) == 1).all()


def test_the_share_of_negative_samples_is_counted_before_transplants_and_says_so(command, phantom_set):
    config = segmenter_config(phantom_set, negative_share=0.1, transplant=1.0, epochs=1)
    training, _ = loaders(config, load_partition(config), negative_share=0.1)
    drawn = list(training.sampler)
    before = np.mean([not training.dataset.prepared.masks[i].any() for _, i in drawn])
    shown = np.mean([not training.dataset[index]["mask"].any() for index in drawn])
    assert before <= 0.1 < shown
    text = command("train", "segmentation", "--help").output
    assert "shows no lesion, before --transplant heals others" in " ".join(text.split())


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


@pytest.mark.parametrize(
    ("device", "cores", "batches", "forks", "workers"),
    [
        ("cpu", 2, 20, True, 1),
        ("cpu", 64, 20, True, 1),
        ("cuda", 4, 20, True, 3),
        ("cuda", 64, 20, True, 8),
        ("cuda", 64, 19, True, 0),  # a short epoch
        ("cpu", 1, 1000, True, 0),
        ("cuda", 1, 1000, True, 0),
        ("cuda", 64, 1000, False, 0),  # a copy of the data for each process
    ],
)
def test_the_number_of_processes_fits_data_and_machine(monkeypatch, device, cores, batches, forks, workers):
    monkeypatch.setattr(room, "pick_device", lambda _: torch.device(device))
    monkeypatch.setattr(room, "usable_cores", lambda: cores)
    monkeypatch.setattr(room, "_FORKS", forks)
    config = segmenter_config("x", device=device)
    assert worker_count(config, batches) == workers
    assert worker_count(replace(config, workers=5), batches) == 5
    assert worker_count(replace(config, workers=0), batches) == 0


def test_a_process_gives_the_same_batches(phantom_set):
    """The threads of OpenCV are those of the process that started it, so it uses none."""
    config = segmenter_config(phantom_set)
    parts = load_partition(config)
    (plain, _), (beside, _) = (loaders(replace(config, workers=n), parts) for n in (0, 1))
    assert beside.num_workers == 1
    for one, two in zip(plain, beside, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_lie_in_pinned_memory(phantom_set, monkeypatch, device):
    monkeypatch.setattr(room, "pick_device", lambda _: torch.device(device))
    config = segmenter_config(phantom_set)
    for loader in loaders(config, load_partition(config)):
        assert loader.pin_memory is (device == "cuda")


def test_processes_share_every_batch_and_are_dealt_as_many_slices():
    """In the order in which one process shows them; a shuffled epoch leaves the odd ones out."""
    whole = [i for _, i in EpochSampler(np.ones(23), 3)]
    shares = [EpochSampler(np.ones(23), 3, process=k, processes=3) for k in range(3)]
    assert [len(share) for share in shares] == [7, 7, 7]
    dealt = zip(*[[i for _, i in share] for share in shares], strict=True)
    assert [i for round in dealt for i in round] == whole[:21]


def test_validation_shows_every_slice_once_and_marks_what_fills_up():
    shares = [list(EpochSampler(np.ones(7), 0, False, process=k, processes=3)) for k in range(3)]
    assert [[i for _, i in share] for share in shares] == [[0, 3, 6], [1, 4, -1], [2, 5, -1]]
    dataset = SliceDataset(fake_set([0, 1, 2]))
    assert [bool(dataset[index]["real"]) for index in [(0, 2), (0, -1)]] == [True, False]


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (2, 4), (3, 2), (9, 2)])
def test_a_step_of_several_batches_counts_once(accumulate, steps):
    """Three batches an epoch, two epochs; Lightning takes a step at the end of each, too."""
    config = classifier_config("x", accumulate=accumulate)
    empty = fake_set([])
    assert total_steps(config, Partition(fake_set([0, 1] * 12), empty, empty, ())) == steps
