"""Order and random seeds of training samples; both depend on seed, epoch and index only."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from clipseg3d.batch import Sample


class Draw(NamedTuple):
    """Which sample to take, and the seed of what is random about it."""

    sample: int
    """Index of the sample."""
    seed: int
    """Seed of its crop and its augmentation."""


class EpochSampler(DistributedSampler[Draw]):
    """Distribute shuffled samples over ranks; independent of earlier random draws.

    Ranks take turns. So one batch of each of two ranks holds the same samples as one batch of
    twice the size on a single rank.

    Args:
        length: number of samples in an epoch.
        num_replicas: number of ranks.
        rank: index of this rank.
        seed: equal seeds give equal samples in every epoch.
        epoch: first epoch.
        skip: number of this rank's samples to skip in the first epoch, since they were used
            before the fit was interrupted.
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
        self.resume_from = (epoch, skip)

    def __iter__(self) -> Iterator[Draw]:
        """Yield the samples of this rank in the current epoch."""
        epoch, skip = self.resume_from
        indices: list[Any] = list(super().__iter__())
        for index in indices[skip if self.epoch == epoch else 0 :]:
            yield Draw(index, derived_seed(self.seed, self.epoch, index))


class CountingLoader(DataLoader[Sample]):
    """A loader that counts the batches it has given in the current epoch.

    Workers start only when the first batch is requested, because a trainer that resumes an
    interrupted fit does not know the epoch earlier.

    Args:
        *args: arguments of ``DataLoader``.
        current_epoch: returns the current epoch; None leaves that to ``sampler.set_epoch``.
        **options: keyword arguments of ``DataLoader``.

    Attributes:
        progress: the epoch, and the number of its batches given so far.
    """

    def __init__(
        self, *args: Any, current_epoch: Callable[[], int] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.current_epoch = current_epoch
        self.progress = (0, 0)

    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]
        """Yield the batches of an epoch, or the rest of it if the fit was interrupted."""
        sampler: Any = self.sampler
        epoch, count = getattr(sampler, "epoch", 0), 0
        if isinstance(sampler, EpochSampler):  # another one with Trainer(overfit_batches=...)
            if self.current_epoch is not None:
                # Lightning 2.6 sets an epoch too high when it resumes a fit with max_steps.
                epoch = self.current_epoch()
                sampler.set_epoch(epoch)
            first_epoch, skip = sampler.resume_from
            if epoch == first_epoch:
                count = skip // (self.batch_size or 1)
        self.progress = (epoch, count)
        for batch in super().__iter__():
            count += 1
            self.progress = (epoch, count)
            yield batch


def derived_seed(*parts: int) -> int:
    """Return a seed of 63 bits that depends on all of the given non-negative numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def global_seed() -> int:
    """Return the last seed given to Lightning's ``seed_everything``; 0 if it was never called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
