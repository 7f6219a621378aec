"""Fixtures that several test files share."""

import os
import pickle
import warnings
from dataclasses import asdict

import pytest
import torch
from filelock import FileLock


def pytest_configure(config):
    """Let processes that run tests at the same time, and those they start, share the cores."""
    if hasattr(config, "workerinput"):
        threads = max(1, torch.get_num_threads() // config.workerinput["workercount"])
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


NUM_PHANTOMS = 6
"""Simulated patients that tests share; their seeds and names count from 0."""


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory, worker_id):
    """Simulated patients at 8 mm, made once for all workers of a test run; not to be changed."""
    from clipseg3d.phantom.simulate import simulate_phantom

    def simulate():
        return [simulate_phantom(seed, spacing_mm=8.0) for seed in range(NUM_PHANTOMS)]

    if worker_id == "master":  # a run without workers
        return simulate()
    path = tmp_path_factory.getbasetemp().parent / "phantoms.pickle"
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            path.write_bytes(pickle.dumps(simulate()))
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope="session")
def phantom_folder(phantoms, tmp_path_factory):
    """Folder of the same patients in BraTS layout, Phantom_00000 and so on; only to be read."""
    from clipseg3d.phantom.write import write_phantom

    folder = tmp_path_factory.mktemp("phantoms")
    for seed, phantom in enumerate(phantoms):
        write_phantom(phantom, folder, f"Phantom_{seed:05d}")
    return folder


@pytest.fixture(scope="session")
def tiny_clip():
    """The small CLIP with random weights; frozen, so that tests can share it."""
    from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the weights of the tiny CLIP are random")
        return HuggingFaceCLIP.tiny_random()


@pytest.fixture(scope="session")
def save_checkpoint():
    """Write a checkpoint as training does, of a network for phantoms at 8 mm."""
    from clipseg3d.pretrained.formats import FORMAT

    def save(network, config, path, *, settings=None, **changes):
        values = {
            "network": asdict(config),
            "release": "phantom",
            "spacing_mm": 8.0,
            "roi_size": (16, 20, 12),
            "overlap": 0.25,
            **(settings or {}),
        }
        content = {
            "format": FORMAT,
            "hyper_parameters": values,
            "state_dict": {f"network.{name}": w for name, w in network.state_dict().items()},
            "encoders": network.encoder_identities(),
        }
        torch.save({**content, **changes}, path)

    return save


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


@pytest.fixture(scope="session")
def teach_prompts():
    """Set a prompt head so that it gives prompts known answers, in the place of training."""
    from clipseg3d.blocks.prompt_head import PICKS

    def teach(network, answers):
        """``answers``: prompt -> (weights of the regions, log-odds of presence, pick)."""
        head = network.prompt_head
        inputs = network.text_bank.embed(list(answers)) * head.scale
        weights, presence, picks = zip(*answers.values(), strict=True)
        wanted = {
            head.weights: torch.atanh(0.98 * torch.tensor(weights, dtype=torch.float32)),
            head.presence: torch.tensor(presence, dtype=torch.float32)[:, None],
            head.pick: torch.tensor([[3.0 * (name == pick) for name in PICKS] for pick in picks]),
        }
        with torch.no_grad():
            for layer, outputs in wanted.items():
                layer.bias.zero_()
                layer.weight.copy_(torch.linalg.lstsq(inputs, outputs).solution.T)
        return network

    return teach


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
