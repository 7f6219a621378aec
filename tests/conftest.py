"""Fixtures that several test files share."""

import os
import warnings

import pytest
import torch


def pytest_configure(config):
    """Let processes that run tests at the same time, and those they start, share the cores."""
    if hasattr(config, "workerinput"):
        threads = max(1, torch.get_num_threads() // config.workerinput["workercount"])
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


@pytest.fixture(scope="session")
def tiny_clip():
    """The small CLIP with random weights; frozen, so that tests can share it."""
    from clipseg3d.clip.encoder import HuggingFaceCLIP

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the weights of the tiny CLIP are random")
        return HuggingFaceCLIP.tiny_random()


@pytest.fixture
def randomise():
    """Stand in for training: add noise to every trainable weight, also zero-initialised ones."""

    def add_noise(module, *, size=0.3, seed=1):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in module.parameters():
                if weight.requires_grad:
                    weight += size * torch.randn(weight.shape, generator=generator)
        return module

    return add_noise


@pytest.fixture
def dead_weights():
    """List the trainable weights that a backward pass has not reached."""

    def names(module):
        return [
            name
            for name, weight in module.named_parameters()
            if weight.requires_grad and (weight.grad is None or not weight.grad.any())
        ]

    return names
