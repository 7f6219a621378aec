"""From statistics of every window to statistics that are kept: predictions without seams."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from clipseg3d.batch import Batch
from clipseg3d.blocks.feature_fusion import ChannelSpatialAttention, ResidualBlock
from clipseg3d.networks.clipseg3d import CLIPSeg3D

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def fix_statistics(network: CLIPSeg3D, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Return the weights of a trained network for one with ``fixed_statistics``.

    Instance normalisation and the channel attention of CBAM read a whole window: how much
    background and how much tumour are in it changes what they make of each voxel. Here means and
    variances, and the weights of channels, are averaged over crops and kept. Some training with
    the new network should follow; before it, the network is a little worse.

    Args:
        network: without ``fixed_statistics``; it is left in evaluation mode.
        batches: crops as in training, unpacked; some dozen of them.

    Returns:
        What ``load_state_dict`` of ``build_clipseg3d(replace(network.config,
        fixed_statistics=True))`` takes.

    Raises:
        ValueError: there are no batches, or nothing reads whole windows.

    Source: normalisation by averages is that of Ioffe and Szegedy, ICML 2015,
    https://arxiv.org/abs/1502.03167; made afterwards, ours.
    """
    norms = dict(_parts(network, nn.InstanceNorm3d))
    if not norms:
        raise ValueError("nothing in the network reads whole windows; its statistics are fixed")
    sums: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(partial(_note, sums, f"{name}.", read))
        for kind, read in ((nn.InstanceNorm3d, _moments), (ChannelSpatialAttention, _weights))
        for name, module in _parts(network, kind)
    ]
    network.eval()
    count = 0
    try:
        for batch in batches:
            network(batch["image"], statistics=batch["statistics"])
            count += len(batch["image"])
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise ValueError("no batches to take statistics from; give some dozen crops")
    state = network.state_dict()
    for name in norms:
        mean, square = sums[f"{name}."] / count
        state[f"{name}.mean"] = mean
        state[f"{name}.var"] = (square - mean.square()).clamp(min=0)
    for name, block in _parts(network, ResidualBlock):
        if isinstance(block.attention, ChannelSpatialAttention):
            weight = sums[f"{name}.attention."] / count
            for part in ("weight", "bias"):  # of the normalisation before it
                key = f"{name}.residual.{len(block.residual) - 1}.{part}"
                state[key] = state[key] * weight.to(state[key].dtype)
            for part in block.attention.channel.state_dict():
                del state[f"{name}.attention.channel.{part}"]
    return state


def _parts(network: nn.Module, kind: type[Module]) -> Iterable[tuple[str, Module]]:
    """Return the modules of a kind, by name."""
    return [(name, part) for name, part in network.named_modules() if isinstance(part, kind)]


def _moments(norm: nn.Module, features: Tensor) -> Tensor:
    """Return mean and mean square (2, b, c) of features (b, c, x, y, z)."""
    features = features.float()
    return torch.stack([features.mean(dim=(2, 3, 4)), features.square().mean(dim=(2, 3, 4))])


def _weights(attention: nn.Module, features: Tensor) -> Tensor:
    """Return the weights of channels (b, c)."""
    weight: Tensor = attention.weigh_channels(features)  # type: ignore[operator]
    return weight.float()


def _note(
    sums: dict[str, Tensor],
    name: str,
    read: Callable[[nn.Module, Tensor], Tensor],
    module: nn.Module,
    given: tuple[Tensor],
) -> None:
    """Add what is read of a batch, summed over its cases."""
    sums[name] = sums.get(name, 0) + read(module, given[0]).sum(dim=-2)
