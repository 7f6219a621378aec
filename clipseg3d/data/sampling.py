"""Order and randomness of training samples, as functions of seed, epoch and place."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from clipseg3d.batch import Sample


class Draw(NamedTuple):
    """One sample of one epoch."""

    sample: int
    """Its index."""
    seed: int
    """Of all that is random about it."""


class EpochSampler(DistributedSampler[Draw]):
    """Deal shuffled samples to ranks; nothing of it depends on what was drawn before.

    Ranks take turns, so that a batch of each of two ranks holds the samples of one batch of twice
    the size on a single one.

    Args:
        length: number of samples in an epoch.
        num_replicas: number of ranks.
        rank: this one.
        seed: equal seeds give equal samples in every epoch.
        epoch: the epoch to begin with.
        skip: samples of this rank to leave out in that epoch, which have been seen.
    """

    def __init__(
        self,
        length: int,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        epoch: int = 0,
        skip: int = 0,
    ) -> None:
        super().__init__(range(length), num_replicas, rank, seed=seed)  # type: ignore[arg-type]
        self.set_epoch(epoch)
        self.begun = (epoch, skip)

    def __iter__(self) -> Iterator[Draw]:
        """Give what this rank has to do of the epoch."""
        epoch, skip = self.begun
        indices: list[Any] = list(super().__iter__())
        for index in indices[skip if self.epoch == epoch else 0 :]:
            yield Draw(index, derived_seed(self.seed, self.epoch, index))


class CountingLoader(DataLoader[Sample]):
    """A loader that knows how many batches of its sampler's epoch it has given.

    Workers start when the first batch is asked for: until then, a trainer that goes on with an
    interrupted fit does not know which epoch it is.

    Args:
        *args: of the loader.
        current_epoch: says which epoch it is; None leaves that to ``sampler.set_epoch``.
        **options: of the loader.
    """

    def __init__(
        self, *args: Any, current_epoch: Callable[[], int] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.current_epoch = current_epoch
        self.given = (0, 0)

    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]
        """Give the batches of an epoch, or what is left of it."""
        sampler: Any = self.sampler
        if self.current_epoch is not None and isinstance(sampler, EpochSampler):
            # Lightning 2.6 counts one too many for it in a fit of max_steps that goes on.
            sampler.set_epoch(self.current_epoch())
        epoch, count = getattr(sampler, "epoch", 0), 0
        begun, skip = getattr(sampler, "begun", (0, 0))  # other samplers: Trainer(overfit_batches)
        if epoch == begun:
            count = skip // (self.batch_size or 1)
        self.given = (epoch, count)
        for batch in super().__iter__():
            count += 1
            self.given = (epoch, count)
            yield batch


def derived_seed(*parts: int) -> int:
    """Return a number of 63 bits that follows from all of some numbers, none of them negative."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def global_seed() -> int:
    """Return the seed that Lightning's ``seed_everything`` was given last; 0 without."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
