"""What a user may write with the blocks, the modules and the predictor; type checkers accept it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from clipseg3d import BraTSDataModule, CLIPSeg3D, CLIPSeg3DModule, NetworkConfig, Predictor
from clipseg3d.blocks import (
    CBAM,
    AttentionGate,
    CrossModalGuidance,
    NestedRegions,
    PixelFusion,
    RegionMaps,
    ResidualBlock,
    SemanticBridge,
    SemanticFusion,
    Semantics,
)
from clipseg3d.clip import TextBank, load_encoder
from clipseg3d.data import BraTSRelease, get_release
from clipseg3d.inference import Segmentation
from clipseg3d.networks import build_clipseg3d
from clipseg3d.testing import check_block
from clipseg3d.views import Views, cut_views

Volume = npt.NDArray[np.float32]


class GuidedNet(nn.Module):
    """A small encoder-decoder with blocks of the library, as one of MONAI would have them."""

    def __init__(self, fusion: SemanticFusion, *, channels: int = 8) -> None:
        super().__init__()
        self.normalise = PixelFusion(differences=(("t1ce", "t1"),))
        self.top = ResidualBlock(self.normalise.out_channels, channels, cbam=False)
        self.down = ResidualBlock(channels, 2 * channels, stride=2)
        self.up = nn.ConvTranspose3d(2 * channels, channels, 2, stride=2)
        self.gate = AttentionGate(channels, channels)
        self.weights = CBAM(channels)
        self.head: nn.Module = nn.Sequential(nn.Conv3d(channels, 3, 1), NestedRegions())
        self.fusion = fusion

    def forward(self, image: Tensor, semantics: Semantics) -> tuple[Tensor, RegionMaps | None]:
        """Return logits, and the maps of semantic attention."""
        skip: Tensor = self.top(self.normalise(image))
        bottleneck = self.fusion.guide(self.down(skip), semantics)
        decoded: Tensor = self.up(bottleneck)
        features = self.weights(decoded + self.gate(skip, decoded))
        return self.fusion.attend_with_maps(features, semantics, self.head)


def guided_logits(volume: Tensor, report: str) -> Tensor:
    """Return logits of a new network for one case."""
    clip = load_encoder("tiny-random")
    guidance = CrossModalGuidance(clip.embed_dim, 16, num_heads=4)
    fusion = SemanticFusion(
        SemanticBridge(clip), guidance, bottleneck_channels=16, decoder_channels=8
    )
    network = GuidedNet(fusion).eval()
    views: Views = cut_views(volume)
    text, mask = TextBank(clip, ["WT", "TC", "ET"])([report])
    logits, maps = network(volume, fusion.encode(views, text, mask))
    assert isinstance(logits, Tensor)
    assert maps is None or isinstance(maps.scores, Tensor)
    return logits


def check_own_block() -> None:
    """Check a block with the properties of those of the library."""
    check_block(lambda: CBAM(8), torch.rand(2, 8, 4, 5, 6), starts_as_identity=True)


def train(root: Path, *, folder: Path) -> CLIPSeg3DModule:
    """Train on two sequences and two regions."""
    sequences, regions = ("t1ce", "flair"), ("WT", "ET")
    data = BraTSDataModule(
        str(root),
        release="phantom",
        sequences=sequences,
        regions=regions,
        patch_size=(16, 16, 16),
        spacing_mm=8.0,
    )
    release: BraTSRelease = data.release.select(sequences=sequences, regions=regions)
    config = NetworkConfig(sequences=tuple(release.sequences), regions=tuple(release.regions))
    module = CLIPSeg3DModule(config, release=release, spacing_mm=8.0)
    trainer = Trainer(max_epochs=1, default_root_dir=folder)
    trainer.fit(module, datamodule=data)
    network: CLIPSeg3D = module.network
    network.save_pretrained(folder / "network")
    loaded: CLIPSeg3D = CLIPSeg3D.from_pretrained(folder / "network")
    loaded.train()
    return CLIPSeg3DModule.load_from_checkpoint(folder / "last.ckpt")


def predict(
    folder: Path, files: dict[str, Path], volumes: Mapping[str, Volume], stack: Volume
) -> list[Segmentation]:
    """Segment a case that is given in four ways."""
    affine: npt.NDArray[np.float64] = np.eye(4)
    predictor = Predictor.from_pretrained("tiny", device="cpu")
    names: dict[str, str] = {name: str(path) for name, path in files.items()}
    results = [
        predictor(folder),
        predictor(str(folder), text="Left frontal lesion."),
        predictor(files, probabilities=True),
        predictor(names, progress=lambda share: None),
        predictor(volumes, affine),
        predictor(stack, affine, uncertainty=True, explain=True),
    ]
    for result in results:
        label: npt.NDArray[np.uint8] = result.label
        result.save(folder / f"{result.case.case_id}.nii.gz")
        if result.probabilities is not None:
            result.probabilities.mean(axis=0)
        label.any()
    return results


def build_predictor(network: CLIPSeg3D | None = None) -> Predictor:
    """Return a predictor of a network, or of an ensemble."""
    members = [build_clipseg3d("tiny"), build_clipseg3d(NetworkConfig())]
    return Predictor(network or members, release=get_release("brats2020"), roi_size=(64, 64, 64))
