"""Fixtures that several test files share."""

import os
import pickle
import warnings
from dataclasses import asdict

import nibabel as nib
import numpy as np
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


HEAD_MM, TUMOUR_MM, TUMOUR_AT = 60.0, 22.0, (25.0, -10.0, 8.0)
"""Radius of a ball-shaped brain around 0, and of the tumour in it, whose centre is in RAS mm."""


@pytest.fixture(scope="session")
def head_on():
    """Make volumes of a head that is known at every point of space, on any grid.

    ``head_on(affine, shape)`` returns sequence -> (x, y, z) float32, and the tumour as a mask. It
    is twice as bright as the brain in FLAIR, and lies on the patient's right.
    """

    def make(affine, shape):
        points = np.moveaxis(np.indices(shape), 0, -1).astype(float)
        mm = nib.affines.apply_affine(affine, points)
        brain = np.linalg.norm(mm, axis=-1) < HEAD_MM
        tumour = np.linalg.norm(mm - TUMOUR_AT, axis=-1) < TUMOUR_MM
        x, y, z = np.moveaxis(mm, -1, 0)
        shades = {"t1": 300 + x, "t1ce": 300 + y, "t2": 300 + z, "flair": 300 + 300 * tumour}
        return {name: np.float32(shade * brain) for name, shade in shades.items()}, tumour

    return make


@pytest.fixture(scope="session")
def grid_over():
    """Make the affine and the shape of a grid that holds this head.

    ``grid_over(*sizes, axes="LPS", angle=0, fov=140)`` in mm; ``angle`` tilts all axes, in radians.
    """

    def make(*sizes, axes="LPS", angle=0.0, fov=(140.0, 140.0, 140.0)):
        order = nib.orientations.axcodes2ornt(axes)
        straight = np.zeros((3, 3))
        straight[order[:, 0].astype(int), range(3)] = order[:, 1]
        c, s = np.cos(angle), np.sin(angle)
        tilt = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
        matrix = tilt @ straight @ np.diag(sizes)
        shape = tuple(round(side / size) for side, size in zip(fov, sizes, strict=True))
        middle = (np.array(shape) - 1) / 2
        return nib.affines.from_matvec(matrix, -matrix @ middle), shape

    return make


@pytest.fixture(scope="session")
def write_head(head_on):
    """Write the head as files of a case: ``write_head(folder, {sequence: (affine, shape)})``."""

    def write(folder, grids, *, name="Head_00001", codes=(1, 1)):
        folder.mkdir(parents=True, exist_ok=True)
        for sequence, (affine, shape) in grids.items():
            volumes, _ = head_on(affine, shape)
            image = nib.Nifti1Image(volumes[sequence], affine)
            image.set_qform(affine, codes[0])
            image.set_sform(affine, codes[1])
            nib.save(image, folder / f"{name}_{sequence}.nii.gz")
        return folder

    return write
