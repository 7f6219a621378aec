"""Prediction of the peak memory of a training step, without running one."""

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from clipseg3d.losses import RegionLoss
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.views import cut_views

AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Precision, as Lightning names it -> what autocast computes in; None for no autocast."""


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of the tensors that a training step needs on its device.

    Memory that an operation allocates for its own use is not counted. For convolutions on CPUs,
    this workspace is 27 times the input if that is small (one crop, channels * x * y < 20,480).

    Attributes:
        weights: parameters and buffers, frozen ones included.
        training: gradients, and the two moments that Adam keeps for each.
        activations: everything else at the peak of a step: the batch, and tensors kept for the
            backward pass.
    """

    weights: int
    training: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all three."""
        return self.weights + self.training + self.activations


def predict_peak_memory(
    network: CLIPSeg3D,
    patch_size: Sequence[int],
    *,
    batch_size: int = 1,
    precision: str = "32-true",
) -> PeakMemory:
    """Predict the memory of a training step, in a few seconds and without allocating it.

    Two steps run on fake tensors, which have a shape but no content, and their bytes are counted.
    Semantics are those of a small volume. Tensors kept for their own backward pass are not
    counted; without ``mix_rgb`` these are a few MB.

    Args:
        network: on any device; it is not changed.
        patch_size: (x, y, z) in voxels.
        batch_size: crops per device and step.
        precision: a key of :data:`AUTOCAST`.

    Raises:
        ValueError: unknown precision, or a patch that the network refuses.
    """
    if precision not in AUTOCAST:
        raise ValueError(f"precision={precision!r}: choose from {', '.join(AUTOCAST)}")
    dtype = AUTOCAST[precision]
    config = network.config or NetworkConfig()
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    semantics = _example_semantics(network, batch_size)
    if semantics is not None:
        semantics = tree_map_only(Tensor, fakes.from_tensor, semantics)
    fake = _fake_copy(network, fakes).train()
    loss = RegionLoss()
    live = _LiveBytes()
    with fakes, live:
        image = torch.empty(batch_size, len(config.sequences), *patch_size)
        label = torch.empty(batch_size, len(config.regions), *patch_size)
        statistics = torch.empty(batch_size, len(config.sequences), 4)
    for _ in range(2):  # the second forward pass runs while gradients of the first step exist
        autocast = torch.autocast("cpu", dtype, enabled=dtype is not None)
        with fakes, live, autocast:
            prediction = fake.segment(image, semantics, statistics=statistics, deep=True)
        with fakes, live:
            error = loss([prediction.logits, *prediction.auxiliary], label)
            fake.zero_grad()
            error.backward()
        del prediction, error
    counted = sum(weight.grad.nbytes for weight in fake.parameters() if weight.grad is not None)
    # From weights, not from gradients: those of semantics have no gradient here.
    training = 3 * sum(weight.nbytes for weight in fake.parameters() if weight.requires_grad)
    weights = sum(tensor.nbytes for tensor in (*fake.parameters(), *fake.buffers()))
    return PeakMemory(weights, training, live.peak - counted)


def _example_semantics(network: CLIPSeg3D, batch_size: int) -> Any:
    """Return the semantics of a small volume; their shape is the same for every volume."""
    mode = network.training
    network.eval()
    device = network.semantic_strength.device
    try:
        with torch.no_grad():
            sequences = (network.config or NetworkConfig()).sequences
            views = cut_views(
                torch.rand(batch_size, len(sequences), 24, 24, 24),
                selection=network.view_selection,
                sequences=sequences,
            )
            text, mask = network.embed_text([""] * batch_size)
            moved = type(views)(*(part.to(device) for part in views))
            return network.encode_semantics(moved, text, mask)
    finally:
        network.train(mode)


def _fake_copy(network: CLIPSeg3D, fakes: FakeTensorMode) -> CLIPSeg3D:
    """Return a copy with fake weights; frozen encoders are shared with the original."""
    memo: dict[int, Any] = {
        id(module): module
        for module in network.modules()
        if not any(weight.requires_grad for weight in module.parameters())
        and any(True for _ in module.parameters())
    }
    for weight in network.parameters():
        fake = fakes.from_tensor(weight.detach().cpu())
        memo[id(weight)] = nn.Parameter(fake, requires_grad=weight.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = fakes.from_tensor(buffer.cpu())
    return copy.deepcopy(network, memo)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of all tensors that operations return, as long as they are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.counted: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count the tensors that it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, once, until it is freed."""
        key = storage._cdata
        if key not in self.counted:
            self.counted.add(key)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._uncount, key, storage.nbytes())

    def _uncount(self, key: int, size: int) -> None:
        """Subtract a freed storage."""
        self.counted.discard(key)
        self.live -= size
