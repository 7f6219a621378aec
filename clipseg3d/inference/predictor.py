"""Apply trained networks to cases: from scan files to labels on the grid of the scan."""

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from clipseg3d.blocks.semantic_fusion import RegionMaps, Semantics
from clipseg3d.checksums import sha256_of_tensors
from clipseg3d.clip.encoder import ClipEncoder
from clipseg3d.clip.known_words import is_probably_unknown
from clipseg3d.data.cases import Case, DataError, check_geometry
from clipseg3d.data.preprocessing import Preprocessed, cut_case_views, preprocess
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import get_release
from clipseg3d.data.resampled_case import ResampledCase
from clipseg3d.data.scan_grid import ScanGrid
from clipseg3d.inference.named_lesion import find_unnamed, is_left, read_report
from clipseg3d.inference.named_side import named_side
from clipseg3d.inference.pass_average import PassAverage
from clipseg3d.inference.postprocessing import PostProcessing
from clipseg3d.inference.prompting import (
    PromptWarning,
    ReadPrompt,
    answer_prompt,
    check_prompts,
    read_prompts,
)
from clipseg3d.inference.read_case import ReadCase
from clipseg3d.inference.scan_input import Scan, Voxels, as_case
from clipseg3d.inference.segmentation import (
    ENTROPY,
    VARIANCE,
    Evidence,
    ScanWarning,
    Segmentation,
)
from clipseg3d.inference.sliding_window import segment_volume
from clipseg3d.inference.tta import MIRRORINGS
from clipseg3d.networks.clipseg3d import CLIPSeg3D, Prediction
from clipseg3d.pretrained.reader import TrainedNetwork, read_networks
from clipseg3d.ranges import require_trust
from clipseg3d.views import Views
from clipseg3d.vocabulary import PLANES

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
"""Format of progress bars: a share, not a count."""
PROCEDURE = 2
"""Raised when equal weights and settings begin to give other labels than in a version before."""
Rules = PostProcessing | Literal["weights"] | None
"""Rules of post-processing: given ones, those that were saved with the weights, or none."""


class Predictor:
    """Segment cases with one trained network, or with the mean of several.

    Memory: on the device, the networks and one forward pass of one window. In addition, volumes of
    float32 on the brain box: the sequences, the regions and 1 weight, and the regions once more if
    there are several passes. For a BraTS brain of 3.4 million voxels, four sequences and three
    regions these take 110 to 150 MB, for any number of cases, networks and mirrorings. Variance
    takes the regions once more, an explanation 2 volumes for each guided region. Maps that are
    returned lie on the grid of the scan, 36 MB each for 240 x 240 x 155 voxels. The volumes lie on
    the device as long as it has enough memory, otherwise on the CPU. Scans that are resampled need
    more: one sequence at a time as float32 in its own voxels, with a few copies of its brain, and
    then the regions of the brain box in the voxels of the labels.

    Args:
        network: trained; or the members of an ensemble, whose probabilities are averaged. They are
            moved to ``device`` and put into evaluation mode.
        release: whose labels are written; it must have the sequences and regions of the networks.
        spacing_mm: voxel size that the networks were trained at; scans with another voxel size, or
            whose sequences have several grids, are resampled to it.
        roi_size: size of the sliding window (x, y, z), in voxels.
        overlap: of neighbouring windows, in [0, 1).
        device: where to compute, such as ``cpu`` or ``cuda:1``; None takes a CUDA device if there
            is one.
        tta: whether to average over all 8 mirrorings of the volume too, at 8 times the cost; see
            :mod:`clipseg3d.inference.tta`.
        postprocessing: rules that clean up the regions; ``"weights"`` takes those that were saved
            with the networks (:attr:`PredictionSettings.postprocessing`), if any, which must be the
            same for all; None leaves the regions as they are.
        allow_missing: whether cases may lack sequences; for networks that were trained with
            ``sequence_dropout``.
        grid_of: sequence whose grid and header labels and maps get, where those of a case differ;
            None takes ``t1ce``, or without it the first.
        weights: name -> SHA-256 of the networks' weights, to be shown on case pages.

    Raises:
        ValueError: no network is given, the networks have different sequences or regions, or some
            that the release has not; the device is not there; the rules are for a region that the
            release has not; the networks come with different rules; or ``grid_of`` is no sequence.
    """

    def __init__(
        self,
        network: CLIPSeg3D | Sequence[CLIPSeg3D],
        *,
        release: BraTSRelease,
        spacing_mm: float = 1.0,
        roi_size: tuple[int, int, int] = (128, 128, 128),
        overlap: float = 0.5,
        device: str | None = None,
        tta: bool = False,
        postprocessing: Rules = "weights",
        allow_missing: bool = False,
        grid_of: str | None = None,
        weights: Mapping[str, str] | None = None,
    ) -> None:
        networks = list(network) if isinstance(network, Sequence) else [network]
        if not networks:
            raise ValueError("no network is given; give one, or the members of an ensemble")
        self.device = find_device(device)
        self.networks = [member.to(self.device).eval() for member in networks]
        self.release = _select(release, self.networks)
        self.postprocessing = _resolve(postprocessing, self.networks)
        if self.postprocessing is not None:
            self.postprocessing.require_regions(self.release)
        self.spacing_mm = spacing_mm
        self.roi_size = roi_size
        self.overlap = overlap
        self.mirrorings = MIRRORINGS if tta else MIRRORINGS[:1]
        self.allow_missing = allow_missing
        self.grid_of = grid_of
        if grid_of not in (None, *self.release.sequences):
            raise ValueError(
                f"grid_of={grid_of!r} is no sequence of these weights; choose from "
                f"{', '.join(self.release.sequences)}"
            )
        self.weights = dict(weights or {})
        self._stitch_on_cpu = False
        self._read: dict[tuple[str, ...], tuple[ReadPrompt, ...]] = {}

    @classmethod
    def from_pretrained(cls, source: str | Path = "tiny", **options: Any) -> "Predictor":
        """Load trained weights by name, folder, hub id or checkpoint.

        Args:
            source: as for :meth:`from_checkpoints`; the default comes with the package.
            **options: as for :meth:`from_checkpoints`.

        Raises:
            FileNotFoundError, OSError, ValueError: as for :meth:`from_checkpoints`.
        """
        return cls.from_checkpoints([source], **options)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        clip: ClipEncoder | str | None = None,
        device: str | None = None,
        tta: bool = False,
        postprocessing: Rules = "weights",
        grid_of: str | None = None,
    ) -> "Predictor":
        """Load one checkpoint; see :meth:`from_checkpoints`."""
        return cls.from_checkpoints(
            [path],
            clip=clip,
            device=device,
            tta=tta,
            postprocessing=postprocessing,
            grid_of=grid_of,
        )

    @classmethod
    def from_checkpoints(
        cls,
        paths: Sequence[str | Path],
        *,
        clip: ClipEncoder | str | None = None,
        device: str | None = None,
        tta: bool = False,
        postprocessing: Rules = "weights",
        grid_of: str | None = None,
    ) -> "Predictor":
        """Load checkpoints or published weights, as an ensemble if several.

        ROI size and overlap are those of the first. Cases may lack sequences if all members were
        trained with ``sequence_dropout``.

        Args:
            paths: checkpoint files of :class:`CLIPSeg3DModule`, such as one per fold; or what
                :meth:`CLIPSeg3D.from_pretrained` takes: a folder, the name of weights that come
                with the package, or a hub id.
            clip: CLIP itself, its folder or its hub name; needed if CLIP is no longer available
                under the name that it had in training. Its weights must be the same.
            device: as for the class.
            tta: as for the class.
            postprocessing: as for the class.
            grid_of: as for the class.

        Raises:
            FileNotFoundError: there is no such file or folder.
            OSError: the hub has no such weights, or cannot be reached.
            ValueError: a file is not such a checkpoint, or CLIP has other weights; see
                :func:`clipseg3d.pretrained.reader.read_networks`.
        """
        find_device(device)  # a wrong name is found out before seconds of reading
        members = read_networks(paths, clip=clip)
        settings = members[0].settings
        try:
            release = get_release(settings.release)
        except ValueError as error:
            raise ValueError(f"{paths[0]}: trained on an {error}") from error
        for path, member in zip(paths, members, strict=True):
            try:
                selected = _select(release, [member.network])
                if postprocessing == "weights" and (rules := _saved_rules(member.network)):
                    rules.require_regions(selected)
            except ValueError as error:
                raise ValueError(f"{path}: damaged ({error}); copy or download it again") from error
        return cls(
            [member.network for member in members],
            release=release,
            spacing_mm=settings.spacing_mm,
            roi_size=settings.roi_size,
            overlap=settings.overlap,
            device=device,
            tta=tta,
            postprocessing=postprocessing,
            allow_missing=all(member.settings.allow_missing for member in members),
            grid_of=grid_of,
            weights=_hash_by_name(members),
        )

    @property
    def network(self) -> CLIPSeg3D:
        """The network, or the first of the ensemble."""
        return self.networks[0]

    @property
    def num_passes(self) -> int:
        """How often a case is segmented: networks times mirrorings."""
        return len(self.networks) * len(self.mirrorings)

    @property
    def uncertainty_names(self) -> tuple[str, ...]:
        """Names of the uncertainty maps that this predictor can compute."""
        return (ENTROPY, VARIANCE) if self.num_passes > 1 else (ENTROPY,)

    def read_prompts(self, prompts: Sequence[str]) -> tuple[ReadPrompt, ...]:
        """Read prompts, for all cases: the same ones cost nothing when they are asked again.

        Args:
            prompts: texts, each about one thing; of equal ones, one is kept.

        Raises:
            ValueError: a prompt is empty or too long, or a network answers none.

        Warns:
            PromptWarning: a prompt is probably not understood.
        """
        texts = check_prompts(prompts)
        if texts and texts not in self._read:
            self._read = {texts: read_prompts(self.networks, texts)}  # only the newest is kept
            for prompt in self._read[texts]:
                if prompt.note:
                    warnings.warn(prompt.note, PromptWarning, stacklevel=2)
        return self._read.get(texts, ())

    def read(self, scan: Scan, affine: Voxels | None = None) -> ReadCase:
        """Read, check and normalise a case, and resample it where needed; no network runs.

        Another case can be segmented meanwhile, in another thread.

        Args:
            scan: a case, the folder of one, sequence -> file, or arrays; see
                :data:`clipseg3d.inference.scan_input.Scan`. An expert mask is not read.
            affine: of arrays, (4, 4), from voxels to mm.

        Raises:
            FileNotFoundError: there is no such folder, or no case in it.
            DataError: files are missing or broken, show different places, have voxel sizes that are
                not in millimetres, or a sequence is missing that the networks need.
            ValueError: a folder holds several cases, or arrays have no affine.
        """
        case = as_case(scan, self.release, affine=affine, allow_missing=self.allow_missing)
        inputs, scan_grid, notes, grid_of = self._preprocess(replace(case, label=None))
        notes = (*_notes_on_missing(case, self.release), *notes)
        return ReadCase(case, inputs, scan_grid, notes, grid_of)

    @torch.no_grad()
    def __call__(
        self,
        scan: Scan | ReadCase,
        affine: Voxels | None = None,
        *,
        text: str | None = None,
        trust: float = 1.0,
        prompts: Sequence[str] = (),
        probabilities: bool = False,
        uncertainty: bool = False,
        explain: bool = False,
        progress: bool | Callable[[float], object] = False,
        warn: bool = True,
    ) -> Segmentation:
        """Segment one case.

        Args:
            scan: as for :meth:`read`, or what that has returned.
            affine: as for :meth:`read`.
            text: report to use; None takes the case's own, an empty string none. Of two lesions of
                like size on different sides, a report on one leaves the other out; a note says so.
            trust: how far the report is trusted, from 0, as if there were none, to 1.
            prompts: what else to segment, such as ``"the enhancing rim"``; each is answered with a
                mask of its own (:attr:`Segmentation.prompts`), and changes nothing else. They are
                answered one by one on the final regions, and on lesions that the report leaves out.
            probabilities: whether to return the probabilities of the regions.
            uncertainty: whether to return uncertainty maps.
            explain: whether to keep what :meth:`Segmentation.save_case_page` shows, uncertainty
                maps included.
            progress: True shows a bar after 2 seconds. A function is called many times, each time
                with the share of the case that has been done since the last call.
            warn: whether the notes of the segmentation are warnings, too. Where threads run, those
                cannot be silenced from outside: filters of warnings are the same for all threads.

        Raises:
            FileNotFoundError, DataError: as :meth:`read`.
            ValueError: the device has too little memory for one window, or the network gives values
                that are not finite; ``trust`` is not in [0, 1]; or as :meth:`read` and
                :meth:`read_prompts`.

        Warns:
            PromptWarning: as :meth:`read_prompts`.
            ScanWarning: something about the scan may make the result wrong; the words are also the
                notes of the segmentation.
        """
        require_trust(trust)
        asked = self.read_prompts(prompts)
        read = scan if isinstance(scan, ReadCase) else self.read(scan, affine)
        case, preprocessed, scan_grid, notes = read.case, read.inputs, read.scan_grid, read.notes
        report = case.report if text is None else text
        readers = [network.text_encoder for network in self.networks if network.text_bank]
        if report and any(is_probably_unknown(encoder, report) for encoder in readers):
            notes += (
                f"{case.case_id}: the words of the report are unknown to the text encoder, and it "
                "is probably not understood; write it in plain English",
            )
        keep_maps = uncertainty or explain
        average = PassAverage(with_variance=keep_maps and self.num_passes > 1)
        views: Views | None = None
        num_regions = len(self.release.regions)
        presences: list[Tensor] = []  # (r,) of each pass that tells it
        with tqdm(
            total=1.0, desc=case.case_id, bar_format=BAR, delay=2, disable=progress is not True
        ) as bar:
            advance = progress if callable(progress) else bar.update
            for network in self.networks:
                own_views, semantics = self._encode_semantics(network, preprocessed, report, trust)
                if views is None and semantics is not None:
                    views = own_views
                for mirrored in self.mirrorings:
                    seen: list[Tensor] = []  # (r,) of each window
                    output = self._segment(
                        network, preprocessed, semantics, mirrored, explain, advance, seen
                    )
                    presences += [torch.stack(seen).amax(dim=0)] if seen else []
                    logits, maps = output[:num_regions], output[num_regions:]
                    if not logits.isfinite().all():
                        raise ValueError(
                            f"{case.case_id}: the network gives values that are not finite; its "
                            "weights, or the intensities of the scan, are damaged"
                        )
                    average.add(logits, _maps_by_name(network, maps))
        carry = partial(preprocessed.grid.carry, to=scan_grid)
        mean = carry(average.probabilities().cpu().numpy())
        label = self.release.to_labels(mean > 0.5)
        if self.postprocessing is not None:
            regions = self.postprocessing(
                self.release.to_regions(label),
                self.release,
                spacing_mm=scan_grid.spacing_mm,
            )
            label = self.release.to_labels(regions)
        final = self.release.to_regions(label)
        crop_box = scan_grid.position_in(preprocessed.grid)
        for lesion in self._find_unnamed(report, trust, final, crop_box):
            label[lesion] = 0
            ml = lesion.sum() * math.prod(scan_grid.spacing_mm) / 1000
            here, there = ("left", "right") if is_left(lesion, crop_box) else ("right", "left")
            notes += (
                f"{case.case_id}: the report places the tumour on the {there}, where there is one; "
                f"another lesion of like size on the {here} ({ml:.1f} ml) is left out; with less "
                "trust (--trust 0) it is kept",
            )
        if not label.any():
            notes += (f"{case.case_id}: no tumour was found; every voxel is labelled 0",)
        for note in notes if warn else ():
            warnings.warn(note, ScanWarning, stacklevel=3)  # skips the frame of the decorator
        uncertainty_maps = {ENTROPY: average.entropy()} if keep_maps else {}
        if average.with_variance:
            uncertainty_maps[VARIANCE] = average.variance()
        restore = scan_grid.restore
        return Segmentation(
            case,
            restore(label),
            self.release,
            probabilities=restore(mean) if probabilities else None,
            uncertainty={name: restore(carry(values)) for name, values in uncertainty_maps.items()},
            evidence=(
                self._evidence(case, preprocessed, scan_grid, report, trust, views, average)
                if explain
                else None
            ),
            notes=notes,
            prompts=tuple(
                answer_prompt(prompt, final, scan_grid, crop_box=crop_box) for prompt in asked
            ),
            presence=_mean_by_region(presences, self.release),
            grid_of=read.grid_of,
        )

    def _preprocess(self, case: Case) -> tuple[Preprocessed, ScanGrid, Sequence[str], str | None]:
        """Return the inputs of the networks, the labels' grid, notes, and whose grid it is.

        Raises:
            DataError: these networks cannot segment the case.
        """
        faults = check_geometry(case, spacing_mm=self.spacing_mm)
        if is_resampled := bool(faults):
            faults = check_geometry(case, one_grid=False)
        missing = [name for name in self.release.sequences if name not in case.sequences]
        if missing and not self.allow_missing:
            faults.append(
                f"{case.case_id}: has no {', '.join(missing)}, but these weights need all of "
                f"{', '.join(self.release.sequences)}; add it, or use weights trained with "
                "sequence_dropout"
            )
        elif self.grid_of is not None and self.grid_of not in case.sequences:
            faults.append(
                f"{case.case_id}: has no {self.grid_of}, whose grid the labels are to have; name "
                f"one of {', '.join(case.sequences)} (grid_of, --grid-of)"
            )
        if faults:
            raise DataError(faults)
        options: dict[str, Any] = {"view_selection": self.network.view_selection}
        if not is_resampled:
            ready = preprocess(case, self.release, **options)
            return ready, ready.grid, ready.notes, self.grid_of
        resampled = ResampledCase.make(
            case, self.release, spacing_mm=self.spacing_mm, grid_of=self.grid_of
        )
        ready = preprocess(resampled.case, self.release, **options)
        notes = tuple(dict.fromkeys((*resampled.notes, *ready.notes)))
        return ready, resampled.scan_grid.around(ready.grid), notes, resampled.grid_of

    def _encode_semantics(
        self, network: CLIPSeg3D, preprocessed: Preprocessed, report: str, trust: float
    ) -> tuple[Views, Semantics | None]:
        """Return the views that a network takes, and the semantics of the case."""
        views = preprocessed.views
        if network.view_selection != self.network.view_selection:
            views = cut_case_views(
                preprocessed.image,
                preprocessed.statistics,
                preprocessed.grid,
                selection=network.view_selection,
                sequences=list(self.release.sequences),
            )
        views = Views(*(part[None].to(self.device) for part in views))
        text = network.embed_text([report])
        return views, network.encode_semantics(views, *text, trust=trust)

    def _find_unnamed(
        self,
        report: str,
        trust: float,
        regions: npt.NDArray[np.bool_],
        crop_box: npt.NDArray[np.float64],
    ) -> list[npt.NDArray[np.bool_]]:
        """Return the lesions (x, y, z) that a report does not mean; a resection cavity is none."""
        if not report or not trust:
            return []
        names = list(self.release.regions)
        whole = [names.index("WT")] if "WT" in names else slice(None)
        lesions = np.asarray(regions[whole].any(axis=0))
        readings = read_report(self.networks, report)
        side = named_side(report)
        return find_unnamed(readings, lesions, side=side, crop_box=crop_box, trust=trust)

    def _segment(
        self,
        network: CLIPSeg3D,
        preprocessed: Preprocessed,
        semantics: Semantics | None,
        mirrored: Sequence[int],
        with_maps: bool,
        advance: Callable[[float], object],
        seen: list[Tensor],
    ) -> Tensor:
        """Return logits, and maps if wanted, of one pass over the brain box, (c, x, y, z).

        The volumes lie on the device until it runs out of memory, and from then on on the CPU. The
        log-odds of presence of each window (r,) are added to ``seen``, if the network tells them.
        """

        def observe(prediction: Prediction) -> None:
            if prediction.presence is not None:
                seen.append(prediction.presence.log_odds[0].float().cpu())

        def run(image: Tensor) -> Tensor:
            seen.clear()  # a pass that ran out of memory is done again
            logits = segment_volume(
                network,
                image,
                semantics,
                preprocessed.statistics[None].to(self.device),
                roi_size=self.roi_size,
                overlap=self.overlap,
                mirrored=mirrored,
                with_maps=with_maps,
                device=self.device,
                advance=lambda share: advance(share / self.num_passes),
                observe=observe,
            )
            return logits[0]

        if not self._stitch_on_cpu:
            try:
                return run(preprocessed.image[None].to(self.device))
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._stitch_on_cpu = True
                torch.cuda.empty_cache()
        try:
            return run(preprocessed.image[None])
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            elsewhere = ", or compute on another device, such as cpu"
            raise ValueError(
                f"{self.device} has too little memory for a window of "
                f"{'x'.join(map(str, self.roi_size))} voxels; free some"
                f"{'' if self.device.type == 'cpu' else elsewhere}"
            ) from error

    def _evidence(
        self,
        case: Case,
        preprocessed: Preprocessed,
        scan_grid: ScanGrid,
        report: str,
        trust: float,
        views: Views | None,
        average: PassAverage,
    ) -> Evidence:
        """Collect what a case page shows."""
        attention, similarity = (
            {
                region: values
                for region in self.release.regions
                if (values := average.map(f"{kind} {region}")) is not None
            }
            for kind in RegionMaps._fields
        )
        fusion = self.network.semantic_fusion
        rgb = [] if fusion is None else fusion.bridge.rgb
        pictures = [] if views is None else list(views.images[0].cpu().numpy()[..., rgb])
        per_plane = len(pictures) // len(PLANES)
        names = [
            f"{plane} {number + 1}" if per_plane > 1 else plane
            for plane in PLANES
            for number in range(per_plane)
        ]
        return Evidence(
            grid=preprocessed.grid,
            scan_grid=scan_grid,
            images={
                name: volume.numpy()
                for name, volume in zip(self.release.sequences, preprocessed.image, strict=True)
                if name in case.sequences
            },
            text=report if any(n.text_bank is not None for n in self.networks) else "",
            attention=attention,
            similarity={name: values.clip(-1, 1) for name, values in similarity.items()},
            views=list(zip(names, pictures, strict=True)),
            view_colours=[list(self.release.sequences)[index] for index in rgb],
            provenance={**self.provenance(), "trust in the report": f"{trust:g}"},
        )

    def fingerprint(self) -> dict[str, object]:
        """Return what decides a segmentation beside the case, as plain values: weights, settings.

        Equal fingerprints give equal labels of a case, up to rounding on another device or with
        another version of torch.
        """
        return {
            "procedure": PROCEDURE,
            "loaded_weights": [
                sha256_of_tensors(network.state_dict()) for network in self.networks
            ],
            "encoders": [
                {
                    role: identity["sha256"]
                    for role, identity in network.encoder_identities().items()
                }
                for network in self.networks
            ],
            "release": self.release.name,
            "roi_size": list(self.roi_size),
            "overlap": self.overlap,
            "spacing_mm": self.spacing_mm,
            "grid_of": self.grid_of,
            "mirrorings": len(self.mirrorings),
            "postprocessing": (self.postprocessing and self.postprocessing.values()) or None,
        }

    def provenance(self) -> dict[str, str]:
        """Return what a segmentation was made with: weights, versions and settings, as text."""
        encoders: dict[str, list[str]] = {}
        for network in self.networks:
            for role, identity in network.encoder_identities().items():
                name = f"{_without_folder(identity['name'])} (SHA-256 {identity['sha256']})"
                names = encoders.setdefault(f"{role} encoder", [])
                names += [] if name in names else [name]
        rules = "none" if self.postprocessing is None else self.postprocessing.describe()
        return {
            **{f"weights {name}": f"SHA-256 {digest}" for name, digest in self.weights.items()},
            **{role: ", ".join(names) for role, names in encoders.items()},
            "release": self.release.name,
            "voxel size": f"{self.spacing_mm:g} mm",
            "ROI size": "x".join(map(str, self.roi_size)),
            "overlap": f"{self.overlap:g}",
            "networks": str(len(self.networks)),
            "mirrorings": str(len(self.mirrorings)),
            "post-processing": rules,
            "device": str(self.device),
            **{name: version(name) for name in ("clipseg3d", "torch")},
        }


def _hash_by_name(members: Sequence[TrainedNetwork]) -> dict[str, str]:
    """Return the hashes of weights by name; of equal names, all but the first get a number."""
    hashes: dict[str, str] = {}
    for member in members:
        names = (f"{member.name} ({n})" if n > 1 else member.name for n in itertools.count(1))
        hashes[next(name for name in names if name not in hashes)] = member.sha256
    return hashes


def _without_folder(name: str) -> str:
    """Return the name of an encoder, such as ``texts:/data/a.npz``, without where its file lies."""
    prefix, colon, rest = ("", "", name) if Path(name).is_absolute() else name.rpartition(":")
    return prefix + colon + Path(rest).name if rest.startswith("~") or Path(rest).root else name


def _mean_by_region(presences: Sequence[Tensor], release: BraTSRelease) -> dict[str, float]:
    """Return the mean probability of presence of each region, from log-odds (r,) of passes."""
    if not presences:
        return {}
    mean = torch.stack([log_odds.sigmoid() for log_odds in presences]).mean(dim=0)
    return dict(zip(release.regions, mean.tolist(), strict=True))


def _maps_by_name(network: CLIPSeg3D, maps: Tensor) -> dict[str, Tensor]:
    """Return scores, and cosines if there are, (n or 2 n, x, y, z), named by kind and region."""
    fusion = network.semantic_fusion if len(maps) else None
    if fusion is None:
        return {}
    guided = [region for region in fusion.regions if region in fusion.guided]
    names = [f"{kind} {region}" for kind in RegionMaps._fields for region in guided]
    return dict(zip(names, maps, strict=False))


def find_device(name: str | None) -> torch.device:
    """Return a device of this machine; None takes a CUDA device if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here, or it cannot be used.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    except Exception as error:  # each kind of device has its own errors
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"device {name!r} cannot be used here ({reason}); give another one, such as cpu, or "
            "none"
        ) from error
    return device


def _select(release: BraTSRelease, networks: Sequence[CLIPSeg3D]) -> BraTSRelease:
    """Return the release with the sequences and regions of the networks.

    Raises:
        ValueError: they differ, or the release has not all of them.
    """
    configs = [network.config for network in networks if network.config is not None]
    if not configs:
        return release
    first = configs[0]
    for config in configs:
        if (config.sequences, config.regions) != (first.sequences, first.regions):
            raise ValueError(
                "the networks have different sequences or regions, so they form no ensemble; "
                "predict with each alone"
            )
    return release.select(sequences=first.sequences, regions=first.regions)


def _resolve(rules: Rules, networks: Sequence[CLIPSeg3D]) -> PostProcessing | None:
    """Return the rules to apply; those of the weights must be the same for all networks."""
    if not isinstance(rules, str):
        return rules
    if rules != "weights":
        raise ValueError(
            f"postprocessing={rules!r}: give rules of post-processing, 'weights' for those of the "
            "weights, or None"
        )
    saved = [_saved_rules(network) for network in networks]
    values = [each.values() if each else {} for each in saved]
    if different := [index for index, each in enumerate(values) if each != values[0]]:
        first, other = (
            "none" if r is None else r.describe() for r in (saved[0], saved[different[0]])
        )
        raise ValueError(
            f"the networks come with different rules of post-processing ({first}; and {other}); "
            "say which ones to apply to their mean (postprocessing=, --postprocessing FILE), or "
            "none (None, --no-postprocessing)"
        )
    return saved[0]


def _saved_rules(network: CLIPSeg3D) -> PostProcessing | None:
    """Return the rules that were saved with a network; None if there are none.

    Raises:
        ValueError: they are no rules of post-processing.
    """
    values = None if network.settings is None else network.settings.postprocessing
    return PostProcessing.from_values(values) if values else None


def _notes_on_missing(case: Case, release: BraTSRelease) -> list[str]:
    """Return notes on sequences that a case lacks."""
    missing = [name for name in release.sequences if name not in case.sequences]
    if not missing:
        return []
    if {"t1ce", "flair"} <= set(missing):
        return [
            f"{case.case_id}: has neither t1ce nor flair; without them tumours can hardly be "
            "recognised, so do not rely on this segmentation"
        ]
    return [f"{case.case_id}: segmented without {', '.join(missing)}, which makes it less exact"]


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a device ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # of MPS and of the CPU, which raise a plain RuntimeError
    return any(text in str(error) for text in ("out of memory", "can't allocate memory"))
