"""A trained network applied to cases: files in, labels in the files' own grid out."""

import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch

from clipseg3d.data.cases import Case, DataError, check_geometry
from clipseg3d.data.nifti import write_label
from clipseg3d.data.preprocess import preprocess
from clipseg3d.data.releases import BraTSRelease, get_release
from clipseg3d.inference.window import segment_volume
from clipseg3d.networks.clipseg3d import CLIPSeg3D, build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.volume import Views


@dataclass(frozen=True)
class Segmentation:
    """What was found in one case.

    Attributes:
        case: what was segmented.
        label: (x, y, z) uint8, in the source's own voxel order and the release's label values.
    """

    case: Case
    label: npt.NDArray[np.uint8]

    def save(self, path: str | Path) -> None:
        """Write the labels as NIfTI with the source's header and affine, all or nothing.

        Raises:
            ValueError: ``path`` ends neither in .nii.gz nor in .nii.
        """
        write_label(Path(path), self.label, source=next(iter(self.case.sequences.values())))


class Predictor:
    """Segment cases with one trained network.

    Args:
        network: trained; moved to ``device`` and put into evaluation mode.
        release: label convention to write.
        spacing_mm: voxel size the network was trained at; scans of another one are refused.
        window: sliding window (x, y, z), in voxels.
        overlap: of neighbouring windows, in [0, 1).
        device: where to compute; None takes a CUDA device if there is one.
    """

    def __init__(
        self,
        network: CLIPSeg3D,
        *,
        release: BraTSRelease,
        spacing_mm: float = 1.0,
        window: tuple[int, int, int] = (128, 128, 128),
        overlap: float = 0.5,
        device: str | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = network.to(self.device).eval()
        self.release = release
        self.spacing_mm = spacing_mm
        self.window = window
        self.overlap = overlap

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, clip: str | None = None, device: str | None = None
    ) -> "Predictor":
        """Load a checkpoint that :class:`CLIPSeg3DModule` wrote; only tensors and plain values.

        Args:
            path: checkpoint file.
            clip: folder or hub name of CLIP, where it is not to be found under the name it had in
                training; its weights must be the same.
            device: as for the class.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no such checkpoint, or CLIP has other weights.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; give a checkpoint written by training")
        checkpoint = _read_checkpoint(path)
        settings = checkpoint["hyper_parameters"]
        config = NetworkConfig(**settings["network"])
        network = build_clipseg3d(config if clip is None else replace(config, clip=clip))
        network.require_encoders(checkpoint["encoders"])
        prefix = "network."
        weights = {
            name.removeprefix(prefix): weight
            for name, weight in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        network.load_state_dict(weights)
        return cls(
            network,
            release=get_release(settings["release"]),
            spacing_mm=settings["spacing_mm"],
            window=tuple(settings["window"]),
            overlap=settings["overlap"],
            device=device,
        )

    @torch.no_grad()
    def __call__(
        self, case: Case, *, text: str | None = None, progress: bool = False
    ) -> Segmentation:
        """Segment one case.

        Args:
            case: its files; an expert mask is not looked at.
            text: report to use; None takes the case's own, an empty string none.
            progress: whether to show a progress bar after 2 seconds.

        Raises:
            DataError: files are missing, broken or of different grids, or the voxel size is not
                the one trained at.
        """
        case = replace(case, label=None)
        faults = check_geometry(case, spacing_mm=self.spacing_mm)
        if faults:
            raise DataError(faults)
        ready = preprocess(case, self.release, view_selection=self.network.view_selection)
        report = case.report if text is None else text
        embedded, mask = self.network.embed_text([report])
        views = Views(*(part[None].to(self.device) for part in ready.views))
        semantics = self.network.encode_semantics(views, embedded, mask)
        logits = segment_volume(
            self.network,
            ready.image[None].to(self.device),
            semantics,
            ready.statistics[None].to(self.device),
            window=self.window,
            overlap=self.overlap,
            progress=case.case_id if progress else None,
        )
        regions = (logits[0] > 0).cpu().numpy()
        return Segmentation(case, ready.grid.restore(self.release.to_labels(regions)))


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path}: not a readable checkpoint; copy or train it again") from error
    keys = {"hyper_parameters", "state_dict", "encoders"}
    if not isinstance(checkpoint, dict) or not keys <= set(checkpoint):
        raise ValueError(f"{path}: not a checkpoint of clipseg3d; give one written by its training")
    return checkpoint
