"""Simulated heads as a scanner gives them: the brain of a phantom in skull, scalp, face and neck.

Every sequence has a grid of its own, and the patient has moved between them. What is to be found
out by preparing such scans is known here: where the brain is, and how each sequence was displaced.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from nibabel.affines import apply_affine, from_matvec, to_matvec
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from clipseg3d.phantom.grid import CENTRE_MM, Bool, Float
from clipseg3d.phantom.head_scan import Affine, HeadScan
from clipseg3d.phantom.simulate import Phantom, simulate_phantom
from clipseg3d.ranges import require_names
from clipseg3d.vocabulary import SEQUENCES

MAX_SHIFT_MM = 20.0
"""How far a sequence is displaced at most."""
MAX_DEGREES = 15.0
"""How far a sequence is rotated at most."""
_BELOW, _ABOVE = 75, 20
"""Slices of 1 mm that the head has below and above the field of view of BraTS."""
_COARSE = 2
"""Voxels of the map of distances to the brain, along each axis of the head."""

# Signal as a share of that of the brain, in t1, t1ce, t2 and flair; whatever air is, is noise.
_SIGNALS = {
    "air": (0.0, 0.0, 0.0, 0.0),
    "fluid": (0.30, 0.30, 2.3, 0.25),
    "bone": (0.12, 0.12, 0.10, 0.10),
    "marrow": (1.25, 1.15, 0.65, 0.60),
    "fat": (1.85, 1.65, 1.05, 1.00),
    "muscle": (0.70, 0.80, 0.40, 0.50),
    "mucosa": (0.75, 1.60, 1.50, 1.20),
    "skin": (0.95, 1.00, 0.55, 0.60),
    "cord": (1.10, 1.05, 0.75, 0.85),
}


@dataclass(frozen=True)
class _Protocol:
    """Voxels of a sequence: patient directions of its axes, sizes in mm, and field of view."""

    axes: str
    sizes: tuple[float, float, float]
    field_mm: tuple[float, float, float]


_AXIAL_FIELD = (230.0, 240.0, 160.0)
_VOLUMES = (
    _Protocol("PIR", (1.0, 1.0, 1.0), (250.0, 250.0, 190.0)),
    _Protocol("LPS", (1.0, 1.0, 1.0), (230.0, 250.0, 190.0)),
    _Protocol("PIR", (0.9, 0.9, 1.2), (240.0, 240.0, 190.0)),
)
_SLICES = (
    _Protocol("LPS", (0.9, 0.9, 5.0), _AXIAL_FIELD),
    _Protocol("LPS", (0.5, 0.5, 5.0), _AXIAL_FIELD),
    _Protocol("RPS", (0.9, 0.9, 3.0), _AXIAL_FIELD),
    _Protocol("RIA", (0.9, 0.9, 5.0), (230.0, 230.0, 220.0)),
)
_PROTOCOLS: Mapping[str, Sequence[_Protocol]] = {
    "t1": (_VOLUMES[1], _SLICES[0], _SLICES[2]),
    "t1ce": _VOLUMES,
    "t2": _SLICES,
    "flair": (_VOLUMES[0], _SLICES[0], _SLICES[2], _SLICES[3]),
}


@dataclass(frozen=True, eq=False)
class Head:
    """A simulated head, and the truth about it.

    Attributes:
        scans: sequence -> scan.
        brain: true brain mask, on the grid of the phantom.
        phantom: the brain alone, as BraTS would give it; labels and report are true of the head.
    """

    scans: Mapping[str, HeadScan] = field(repr=False)
    brain: Bool = field(repr=False)
    phantom: Phantom

    def on_scan(self, volume: NDArray[np.generic], sequence: str) -> Float:
        """Return the mean of a volume on the grid of the phantom in each voxel of a scan.

        Args:
            volume: (x, y, z), such as the brain mask, or where a label is.
            sequence: whose scan.
        """
        scan = self.scans[sequence]
        placed = scan.motion @ self.phantom.affine
        return _mean_in_voxels(
            np.asarray(volume, np.float32), placed, scan.affine, scan.voxels.shape
        )


def simulate_head(seed: int, *, sequences: Sequence[str] = SEQUENCES) -> Head:
    """Simulate the head of a patient with a glioma, as a scanner gives it.

    The brain is that of :func:`clipseg3d.phantom.simulate_phantom` at 1 mm with the same seed.
    T1ce is a volume of about 1 mm; the other sequences often have slices of 3 or 5 mm. Each one is
    displaced by up to 20 mm and rotated by up to 15 degrees, is brighter on one side than on the
    other, and has noise.

    Args:
        seed: non-negative; the same seed gives the same head.
        sequences: those that are acquired; a sequence is the same whatever the others are.

    Raises:
        ValueError: ``seed`` is negative, or a sequence is unknown.
        ImportError: nilearn is not installed; its tissue maps are used.
    """
    require_names(sequences, SEQUENCES, of="sequences")
    phantom = simulate_phantom(seed, spacing_mm=1.0)
    brain = np.asarray(phantom.image.any(axis=0))
    rng = np.random.default_rng((seed, 1))
    tissues = _tissues(rng, brain)
    head_affine = phantom.affine @ from_matvec(np.eye(3), (0, 0, -_BELOW))
    scans = {}
    for index, sequence in enumerate(SEQUENCES):
        own_rng = np.random.default_rng((seed, 2, index))
        if sequence in sequences:
            head = _signal(own_rng, phantom.image[index], brain, tissues, index)
            scans[sequence] = _acquire(own_rng, head, head_affine, _PROTOCOLS[sequence])
    return Head(scans, brain, phantom)


def _tissues(rng: np.random.Generator, brain: Bool) -> dict[str, Float]:
    """Return the fraction of each tissue around the brain, on the grid of the head."""
    brain = np.pad(brain, ((0, 0), (0, 0), (_BELOW, _ABOVE)))
    shape = brain.shape
    u, v, w = (
        np.arange(n, dtype=np.float32) + 0.5 - c
        for n, c in zip(shape, (*CENTRE_MM[:2], CENTRE_MM[2] + _BELOW), strict=True)
    )
    u, v, w = u[:, None, None], v[None, :, None], w[None, None, :]
    distance = _distance(brain)
    # Thickness of what lies around the brain, in mm; it differs between people and places.
    fluid = np.clip(rng.uniform(1.0, 3.0) + 0.8 * _noise(rng, shape, 25), 0.3, None)
    skull = fluid + np.clip(rng.uniform(4.5, 8.0) + 1.2 * _noise(rng, shape, 30), 2.5, None)
    scalp = skull + np.clip(rng.uniform(4.0, 8.0) + 1.0 * _noise(rng, shape, 30), 2.5, None)
    face = _ellipsoid((u, v, w), (0, -45, -62), (60, 58, 78))
    neck = np.hypot(u / 56, (v - 15 + 0.1 * w) / 60) - 1 + np.zeros_like(w)
    outline_mm = np.minimum(distance - scalp, 40 * face)
    outline_mm = np.minimum(outline_mm, np.where(w < -45, 50 * neck, 50.0))
    outline_mm = ndimage.gaussian_filter(outline_mm, 4)
    inside = _soft(-outline_mm)

    # Later ones lie over those before.
    layers: list[tuple[str, Float]] = [("muscle", inside)]
    lumps = _noise(rng, shape, 9)
    layers.append(("fat", inside * _soft(6 * (lumps - 0.7))))
    layers.append(("bone", inside * _soft(6 * (_noise(rng, shape, 12) - 1.3)) * (w < -35)))
    layers.append(("fat", inside * _soft(outline_mm + rng.uniform(5, 8))))
    layers.append(("skin", inside * _soft(outline_mm + 2)))
    layers += _face((u, v, w), inside, lumps, rng)
    shell = _soft(skull - distance)
    middle = (fluid + skull) / 2
    half = (skull - fluid) / 2 - rng.uniform(1.4, 2.0)
    layers.append(("bone", shell))
    layers.append(("marrow", shell * _soft(half - np.abs(distance - middle))))
    layers.append(("fluid", _soft(fluid - distance)))
    canal = np.hypot(u, v - 16) + np.zeros_like(w)
    low = _soft(-58 - w)
    layers.append(("fluid", inside * low * _soft(10 - canal)))
    layers.append(("cord", inside * low * _soft(6 - canal)))
    tissues: dict[str, Float] = {"air": np.ones(shape, np.float32)}
    for name, share in layers:
        share = np.broadcast_to(share, shape).astype(np.float32)
        rest = 1 - share
        for other in tissues.values():
            other *= rest
        tissues[name] = tissues.get(name, 0) + share
    for other in tissues.values():
        other[brain] = 0
    del tissues["air"]
    return tissues


def _face(
    mesh: tuple[Float, Float, Float], inside: Float, lumps: Float, rng: np.random.Generator
) -> list[tuple[str, Float]]:
    """Return eyes, sinuses, airway and spine, in the order in which they are laid over."""
    u, v, w = mesh
    side = np.abs(u)
    eyes = (side, v, w)
    place = (float(rng.uniform(29, 34)), float(rng.uniform(-80, -74)), float(rng.uniform(-42, -36)))
    sinus = float(rng.uniform(0.7, 1.1))
    canal = np.hypot(u, v - 16) + np.zeros_like(w)
    spine = np.hypot(u, v + 6) + np.zeros_like(w)
    low = _soft(-64 - w)
    return [
        ("fat", inside * _soft(-15 * _ellipsoid(eyes, place, (19, 24, 19)))),
        ("skin", inside * _soft(-12 * _ellipsoid(eyes, place, (13, 13, 13)))),
        ("fluid", inside * _soft(-12 * _ellipsoid(eyes, place, (12, 12, 12)))),
        ("mucosa", inside * _soft(-10 * _ellipsoid(mesh, (0, -66, -62), (14, 28, 18)))),
        ("air", _soft(-10 * _ellipsoid(mesh, (0, -66, -62), (9, 25, 14)) + 3 * lumps)),
        ("mucosa", inside * _soft(-10 * _ellipsoid(eyes, (27, -62, -66), (15, 17, 17)))),
        (
            "air",
            _soft(-10 * _ellipsoid(eyes, (27, -62, -66), (13 * sinus, 15 * sinus, 15 * sinus))),
        ),
        ("air", _soft(-10 * _ellipsoid(mesh, (0, -36, -42), (11 * sinus, 11, 9)))),
        ("air", low * _soft(8 - np.hypot(u, v + 26))),
        ("bone", inside * low * _soft(17 - spine)),
        ("marrow", inside * low * _soft(14 - spine)),
        ("bone", inside * low * _soft(15 - canal)),
    ]


def _ellipsoid(
    mesh: tuple[Float, Float, Float], centre: Sequence[float], radii: Sequence[float]
) -> Float:
    """Return a field that is 0 on an ellipsoid, -1 in its middle, and grows outwards."""
    squares = [((p - c) / r) ** 2 for p, c, r in zip(mesh, centre, radii, strict=True)]
    return np.asarray(np.sqrt(squares[0] + squares[1] + squares[2]) - 1, np.float32)


def _soft(value_mm: Float) -> Float:
    """Return 1 where a value is above 0 and 0 where it is below, with a transition of 1 mm."""
    return np.asarray(np.clip(value_mm + 0.5, 0, 1), np.float32)


def _distance(brain: Bool) -> Float:
    """Return the distance from the brain without its narrow gaps, in mm; 0 in it."""
    radius = 6 // _COARSE
    coarse = np.pad(brain[::_COARSE, ::_COARSE, ::_COARSE], radius)
    ball = ndimage.distance_transform_edt(~coarse) <= radius
    closed = ndimage.distance_transform_edt(ball) > radius
    closed = (closed | coarse)[(slice(radius, -radius),) * 3]
    distance = _COARSE * ndimage.distance_transform_edt(~closed).astype(np.float32)
    return _enlarge(ndimage.gaussian_filter(distance, 1.0), brain.shape, _COARSE)


def _noise(rng: np.random.Generator, shape: Sequence[int], scale_mm: float) -> Float:
    """Return smooth noise with mean 0 and SD of 1 that varies over a scale."""
    step = max(1, int(scale_mm // 3))
    coarse = rng.standard_normal([math.ceil(n / step) + 2 for n in shape], dtype=np.float32)
    coarse = ndimage.gaussian_filter(coarse, scale_mm / step / 3, mode="wrap")
    return _enlarge(coarse / coarse.std(), shape, step)


def _enlarge(coarse: Float, shape: Sequence[int], step: int) -> Float:
    """Return a volume on a grid whose voxels are smaller by a whole factor."""
    nodes = torch.from_numpy(np.pad(coarse, ((0, 1),) * 3, mode="edge"))[None, None]
    size = [(n - 1) * step + 1 for n in nodes.shape[2:]]
    fine = F.interpolate(nodes, size, mode="trilinear", align_corners=True)[0, 0].numpy()
    return np.ascontiguousarray(fine[tuple(map(slice, shape))])


def _signal(
    rng: np.random.Generator,
    image: Float,
    brain: Bool,
    tissues: Mapping[str, Float],
    index: int,
) -> Float:
    """Return one sequence of the head, 1 being the median of the brain."""
    values = image[brain]
    shown = image.any(axis=(0, 1)) | ~brain.any(axis=(0, 1))
    head = np.pad(
        image / np.float32(np.median(values[values > 0])), ((0, 0), (0, 0), (_BELOW, _ABOVE))
    )
    texture = 1 + 0.08 * _noise(rng, head.shape, 6)
    for name, share in tissues.items():
        head += share * np.float32(_SIGNALS[name][index] * math.exp(rng.normal(0, 0.12))) * texture
    if not shown.all():  # the field of view of a phantom's sequence may end within the head
        head[..., _BELOW + int(np.flatnonzero(~shown)[0]) :] = 0
    return head


def _acquire(
    rng: np.random.Generator, head: Float, head_affine: Affine, protocols: Sequence[_Protocol]
) -> HeadScan:
    """Return a scan of a head that has moved."""
    protocol = protocols[int(rng.integers(len(protocols)))]
    centre = apply_affine(head_affine, np.array([*CENTRE_MM[:2], CENTRE_MM[2] + _BELOW]) - 0.5)
    direction, shift = rng.standard_normal(3), rng.standard_normal(3)
    degrees, shift_mm = rng.uniform(0, MAX_DEGREES), rng.uniform(0, MAX_SHIFT_MM)
    turn = Rotation.from_rotvec(
        np.deg2rad(degrees) * direction / np.linalg.norm(direction)
    ).as_matrix()
    moved_to = centre + shift_mm * shift / np.linalg.norm(shift)
    motion = from_matvec(turn, moved_to - turn @ centre)
    shape, affine = _grid(protocol, moved_to + np.array((0, 0, rng.uniform(-10, 0))))
    volume = _mean_in_voxels(head, motion @ head_affine, affine, shape)
    # Coils nearby are more sensitive.
    volume *= np.exp(rng.uniform(0.08, 0.25) * _noise(rng, shape, 60 / min(protocol.sizes)))
    level = rng.uniform(0.01, 0.03)
    real, imaginary = level * rng.standard_normal((2, *shape), dtype=np.float32)
    volume = np.hypot(volume + real, imaginary) * np.float32(rng.uniform(150, 900))
    return HeadScan(np.rint(volume).astype(np.int16), affine, motion)


def _grid(protocol: _Protocol, centre: NDArray[np.float64]) -> tuple[tuple[int, int, int], Affine]:
    """Return shape and affine of a scan around a place."""
    directions = {"L": (-1, 0, 0), "P": (0, -1, 0), "S": (0, 0, 1)}
    directions |= {"R": (1, 0, 0), "A": (0, 1, 0), "I": (0, 0, -1)}
    sizes = np.array(protocol.sizes)
    steps = np.array([directions[code] for code in protocol.axes], float).T * sizes
    x, y, z = (round(mm / size) for mm, size in zip(protocol.field_mm, sizes, strict=True))
    middle = (np.array((x, y, z)) - 1) / 2
    return (x, y, z), from_matvec(steps, centre - steps @ middle)


def _mean_in_voxels(
    volume: Float, affine: Affine, to_affine: Affine, shape: tuple[int, ...]
) -> Float:
    """Return the mean of a volume in each voxel of another grid."""
    steps = np.linalg.inv(affine) @ to_affine
    counts = np.ceil(np.linalg.norm(steps[:3, :3], axis=0) - 0.05).astype(int)
    total = np.zeros(shape, np.float32)
    for index in product(*map(range, counts)):
        within = (np.array(index) + 0.5) / counts - 0.5
        matrix, offset = to_matvec(steps @ from_matvec(np.eye(3), within))
        total += ndimage.affine_transform(
            volume, matrix, offset, shape, order=1, mode="constant", output=np.float32
        )
    mean: Float = total / np.float32(np.prod(counts))
    return mean
