"""Mirrors clipseg3d/data/sample_order.py."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from clipseg3d.data.sample_order import CountingLoader, Draw, EpochSampler, derived_seed


class Echo(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, draw):
        return torch.tensor(draw)


def drawn(epoch=0, **options):
    sampler = EpochSampler(10, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_follows_from_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = drawn(3, seed=5)
    torch.manual_seed(2)
    assert drawn(3, seed=5) == first
    assert sorted(draw.sample for draw in first) == list(range(10))
    assert len({draw.seed for draw in first}) == 10
    for other in (drawn(4, seed=5), drawn(3, seed=6)):
        assert not {draw.seed for draw in other} & {draw.seed for draw in first}
        assert [draw.sample for draw in other] != [draw.sample for draw in first]


def test_a_batch_of_each_of_two_ranks_is_a_batch_of_one():
    one = drawn(seed=1)
    ranks = [drawn(seed=1, num_replicas=2, rank=rank) for rank in (0, 1)]
    assert [draw for pair in zip(*ranks, strict=True) for draw in pair] == one


def test_what_was_seen_is_left_out_in_its_epoch_only():
    sampler = EpochSampler(10, seed=1, epoch=2, skip=4)
    assert list(sampler) == drawn(2, seed=1)[4:]
    sampler.set_epoch(3)
    assert list(sampler) == drawn(3, seed=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_counts_what_it_has_given(workers):
    sampler = EpochSampler(10, seed=1, epoch=2, skip=4)
    loader = CountingLoader(Echo(), batch_size=2, sampler=sampler, num_workers=workers)
    counts = []
    for _ in loader:
        counts.append(loader.progress)
    assert counts == [(2, 3), (2, 4), (2, 5)]
    assert len(loader) == 5
    sampler.set_epoch(3)
    next(iter(loader))
    assert loader.progress == (3, 1)


def test_a_trainer_may_set_the_epoch_when_it_begins():
    sampler = EpochSampler(10, seed=1)
    loader = CountingLoader(Echo(), batch_size=10, sampler=sampler, current_epoch=lambda: 7)
    (batch,) = loader
    assert batch.tolist() == [list(draw) for draw in drawn(7, seed=1)]
    assert isinstance(drawn()[0], Draw)


def test_another_sampler_is_counted_too():
    loader = CountingLoader(Echo(), batch_size=5, current_epoch=lambda: 7)
    assert isinstance(loader, DataLoader)
    assert len(list(loader)) == 2
    assert loader.progress == (0, 2)


def test_derived_seeds_depend_on_every_part():
    seeds = {derived_seed(*parts) for parts in ((0, 1, 2), (1, 0, 2), (0, 1, 3), (0, 1))}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
