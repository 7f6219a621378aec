"""Change the source in many small ways, and see whether the tests notice: run on demand.

``python tests/mutants.py`` copies the repository, applies one mutant after the other, and runs the
tests that should fail. It prints a line per mutant, and how many were killed. ``--slow`` runs the
slow tests too for those that survive; ``--only TEXT`` takes the mutants with this text in their
name.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """One change of one file, and the tests that are to notice."""

    name: str
    file: str
    before: str
    after: str
    tests: str


MUTANTS = [
    # House style: swapped axes, dropout in evaluation, dead gates, masked tokens that count, ...
    Mutant(
        "voxel positions: axes swapped",
        "blocks/positions.py",
        "rearrange(edges[:, axis],",
        "rearrange(edges[:, 2 - axis],",
        "blocks/test_positions.py",
    ),
    Mutant(
        "patches: rows and columns swapped",
        "blocks/patch_lifting.py",
        "((2, 0, 1), (1, 0, 2), (0, 1, 2))",
        "((2, 1, 0), (1, 2, 0), (0, 2, 1))",
        "blocks/test_patch_lifting.py blocks/test_semantic_fusion.py",
    ),
    Mutant(
        "space to depth: axes swapped on the way back",
        "blocks/space_to_depth.py",
        "b (c i j k) x y z -> b c (x i) (y j) (z k)",
        "b (c k j i) x y z -> b c (x i) (y j) (z k)",
        "blocks/test_space_to_depth.py",
    ),
    Mutant(
        "views: coronal and sagittal swapped",
        "views.py",
        "_AXES = ((2, 0, 1), (1, 0, 2), (0, 1, 2))",
        "_AXES = ((2, 0, 1), (0, 1, 2), (1, 0, 2))",
        "test_views.py",
    ),
    Mutant(
        "views: the choice ignores that a sequence is withheld",
        "views.py",
        "if not reduced.images.shape[1]:",
        "if True:",
        "test_views.py training/test_sequence_dropout.py",
    ),
    Mutant(
        "paper: the middle of the brain box",
        "data/preprocessing.py",
        'if selection == "volume_center":',
        "if False:",
        "data/test_preprocessing.py",
    ),
    Mutant(
        "paper: equation 6 starts near 1",
        "blocks/semantic_attention.py",
        '(_DAMPED_BIAS if mode == "damped" else 0)',
        "_DAMPED_BIAS",
        "networks/test_paper.py",
    ),
    Mutant(
        "paper: a report replaces the prompts",
        "blocks/semantic_fusion.py",
        'or self.guiding_text == "all":',
        "or False:",
        "networks/test_paper.py",
    ),
    Mutant(
        "guidance: gate inverted",
        "blocks/guidance.py",
        "views * gate + text * (1 - gate)",
        "views * (1 - gate) + text * gate",
        "blocks/test_guidance.py",
    ),
    Mutant(
        "guidance: masked text counts",
        "blocks/guidance.py",
        "rearrange(text_mask.to(self.norm.weight.dtype),",
        "rearrange(torch.ones_like(text_mask).to(self.norm.weight.dtype),",
        "blocks/test_guidance.py",
    ),
    Mutant(
        "guidance: attention left out",
        "blocks/guidance.py",
        "return content + attended",
        "return content",
        "blocks/test_guidance.py",
    ),
    Mutant(
        "semantic attention: temperature left out",
        "blocks/semantic_attention.py",
        "torch.cat([cosine / TEMPERATURE, position], dim=1)",
        "torch.cat([cosine, position], dim=1)",
        "blocks/test_semantic_attention.py",
    ),
    Mutant(
        "scores: sign",
        "blocks/semantic_attention.py",
        "regions[index] = regions[index] + weight * score",
        "regions[index] = regions[index] - weight * score",
        "blocks/test_semantic_attention.py",
    ),
    Mutant(
        "scores: weight ignored",
        "blocks/semantic_attention.py",
        "regions[index] = regions[index] + weight * score",
        "regions[index] = regions[index] + score",
        "blocks/test_semantic_attention.py",
    ),
    Mutant(
        "CBAM slabs: gradient of the maximum forgotten",
        "blocks/cbam_slabs.py",
        "inner.scatter_add_(1, max_channel[:, :, slab].long(), grad_pooled[:, 1:, slab])",
        "inner.sum()",
        "blocks/test_cbam_slabs.py blocks/test_cbam.py",
    ),
    Mutant(
        "CBAM slabs: voxel weight forgotten",
        "blocks/cbam_slabs.py",
        ".mul_(voxel[:, :, slab])",
        ".mul_(1.0)",
        "blocks/test_cbam_slabs.py blocks/test_cbam.py",
    ),
    Mutant(
        "nested regions: a factor too few",
        "blocks/nested_regions.py",
        "inside = inside + F.logsigmoid(score)",
        "inside = F.logsigmoid(score)",
        "blocks/test_nested_regions.py",
    ),
    Mutant(
        "pixel fusion: power loses the sign",
        "blocks/pixel_fusion.py",
        "normal.sign() * normal.abs()",
        "normal.abs()",
        "blocks/test_pixel_fusion.py",
    ),
    Mutant(
        "pixel fusion: true regions in evaluation",
        "blocks/pixel_fusion.py",
        "if regions is not None and not self.training:",
        "if False:",
        "blocks/test_pixel_fusion.py",
    ),
    Mutant(
        "statistics: background counts",
        "intensity.py",
        "values = sequence[sequence != 0]",
        "values = sequence.flatten()",
        "test_intensity.py",
    ),
    Mutant(
        "batch: codes off by one",
        "batch.py",
        "(LEVELS - 1)).round() + 1",
        "(LEVELS - 1)).round()",
        "test_batch.py",
    ),
    Mutant(
        "withheld sequences stay in the views",
        "training/sequence_dropout.py",
        'views._replace(images=views.images * rearrange(kept, "b s -> b 1 1 1 s"))',
        "views",
        "training/test_sequence_dropout.py",
    ),
    Mutant(
        "loss: levels weigh the same",
        "losses.py",
        "weights = [0.5**level for level in range(len(logits))]",
        "weights = [1.0 for level in range(len(logits))]",
        "test_losses.py",
    ),
    Mutant(
        "loss: unknown grades count",
        "losses.py",
        ">= 0",
        ">= -1",
        "test_losses.py",
    ),
    Mutant(
        "loss: empty regions have no gradient",
        "losses.py",
        "_EMPTY_SHARE * label[0, 0].numel()",
        "_SMOOTH",
        "test_losses.py",
    ),
    # CLIP
    Mutant(
        "frozen encoders train",
        "clip/frozen_encoder.py",
        "return super().train(False)",
        "return super().train(mode)",
        "clip/test_hugging_face_clip.py clip/test_frozen_encoder.py",
    ),
    Mutant(
        "text bank: mask always true",
        "clip/text_bank.py",
        "mask = torch.arange(text.shape[1]) < lengths[:, None]",
        "mask = torch.ones(text.shape[:2], dtype=torch.bool)",
        "clip/test_text_bank.py",
    ),
    # networks and files of networks
    Mutant(
        "padded crop box: growth forgotten",
        "networks/clipseg3d.py",
        "longer = edges * (",
        "longer = edges + 0 * (",
        "networks/test_clipseg3d.py",
    ),
    Mutant(
        "semantic strength ignored",
        "networks/clipseg3d.py",
        "semantics.weight * self.semantic_strength",
        "semantics.weight",
        "networks/test_clipseg3d.py",
    ),
    Mutant(
        "checkpoints: check sums not verified",
        "pretrained/checkpoint.py",
        "damaged = archive.testzip()",
        "damaged = None",
        "pretrained training/test_checkpoint_io.py",
    ),
    Mutant(
        "pretrained: encoders not compared",
        "networks/clipseg3d.py",
        'if own["sha256"] != expected["sha256"]:',
        "if False:",
        "pretrained networks/test_clipseg3d.py",
    ),
    # data
    Mutant(
        "release: core of 2023 is oedema",
        "data/releases.py",
        '"TC": (1, 3), "ET": (3,), **',
        '"TC": (1, 2), "ET": (3,), **',
        "data/test_releases.py testing/test_release_properties.py",
    ),
    Mutant(
        "release: patients of 2023 are time points",
        "data/release.py",
        'return match["patient"] if match else case_id',
        "return case_id",
        "data/test_releases.py data/test_splits.py data/test_cases.py",
    ),
    Mutant(
        "splits: patients separated",
        "data/splits.py",
        "folds[fold] += scans[patient]",
        "folds[fold] += scans[patient][:1]; folds[0] += scans[patient][1:]",
        "data/test_splits.py",
    ),
    Mutant(
        "NIfTI: check sum of gzip not read",
        "data/nifti.py",
        "if not member.eof:",
        "if False:",
        "data/test_nifti.py",
    ),
    Mutant(
        "NIfTI: labels on the grid of no scan",
        "data/nifti.py",
        "header = _geometry_of(reference.header)",
        "header = type(reference.header)(); header.set_data_shape(volume.shape)",
        "data/test_nifti.py",
    ),
    Mutant(
        "geometry: affines not compared",
        "data/cases.py",
        "elif not same_grid(image, first[1]):",
        "elif False:",
        "data/test_cases.py",
    ),
    Mutant(
        "scan grid: restored mirrored",
        "data/scan_grid.py",
        "nib.apply_orientation(full[index], transform)[inside]",
        "nib.apply_orientation(full[index], np.abs(transform))[inside]",
        "data/test_scan_grid.py data/test_preprocessing.py",
    ),
    Mutant(
        "scan checks: background kept",
        "data/scan_checks.py",
        "if border != 0 and counts.max()",
        "if False and counts.max()",
        "data/test_scan_checks.py",
    ),
    Mutant(
        "cache: key without the release",
        "data/cache.py",
        "*(FORMAT, VERSION, release.name,",
        "*(FORMAT, VERSION, 0,",
        "data/test_cache.py",
    ),
    Mutant(
        "cache: key without the labels of a release",
        "data/cache.py",
        "*(list(release.sequences), tumour_labels(release)),",
        "*(list(release.sequences), 0),",
        "data/test_cache.py",
    ),
    Mutant(
        "augmentation: mirrored without telling",
        "data/transforms.py",
        "size[mirrored] *= -1",
        "size[mirrored] *= 1",
        "data/test_transforms.py",
    ),
    Mutant(
        "augmentation: rotated without telling",
        "data/transforms.py",
        "return torch.cat([(centre - edges.sum(dim=0) / 2)[None], edges]), mapping",
        "return crop_box, mapping",
        "data/test_transforms.py",
    ),
    Mutant(
        "augmentation: label not mirrored",
        "batch.py",
        "image, label = parameters.mirror(image), parameters.mirror(label)",
        "image, label = parameters.mirror(image), label.clone()",
        "test_augmentation.py",
    ),
    Mutant(
        "augmentation: noise of a sample depends on the others of its batch",
        "augmentation.py",
        ".manual_seed(int(parameters.noise_seed))",
        ".manual_seed(torch.initial_seed())",
        "test_augmentation.py",
    ),
    Mutant(
        "augmentation: codes and intensities in one batch",
        "data/dataset.py",
        'image = unpack_image(sample["image"], sample["statistics"]).half()',
        'image = sample["image"]',
        "data/test_brats.py",
    ),
    # metrics
    Mutant(
        "methods are compared as if seeds did not matter",
        "metrics/comparison.py",
        "spread = ms_seed + max(ms_case - ms_rest, 0.0)",
        "spread = ms_case",
        "metrics/test_comparison.py",
    ),
    Mutant(
        "Dice: empty masks score 0",
        "metrics/dice.py",
        "2 * overlap / size.clamp(min=1), 1.0)",
        "2 * overlap / size.clamp(min=1), 0.0)",
        "metrics/test_dice.py",
    ),
    Mutant(
        "case metric: the last of repeated cases counts",
        "metrics/case_metric.py",
        "reversed(list(enumerate(names)))",
        "list(enumerate(names))",
        "metrics/test_case_metric.py",
    ),
    Mutant(
        "HD95: the smaller direction",
        "metrics/hausdorff.py",
        "larger = max(larger, ",
        "larger = min(larger or 1e9, ",
        "metrics/test_hausdorff.py",
    ),
    Mutant(
        "lesion-wise: false positives free of charge",
        "metrics/lesionwise.py",
        "[missed] * fp if",
        "[missed] * 0 if",
        "metrics/test_lesionwise.py",
    ),
    Mutant(
        "lesions of 2024: small predicted ones stay",
        "metrics/region_scores.py",
        "min_volume_mm3=volume, spacing_mm",
        "min_volume_mm3=0, spacing_mm",
        "metrics/test_region_scores.py",
    ),
    Mutant(
        "lesions of 2024: those at one core stay apart",
        "metrics/lesions.py",
        "np.where(first <= count, first,",
        "np.where(first < 0, first,",
        "metrics/test_lesions.py",
    ),
    Mutant(
        "lesions of 2026: the worst matching",
        "metrics/one_to_one.py",
        "maximize=True",
        "maximize=False",
        "metrics/test_one_to_one.py",
    ),
    # inference and training
    Mutant(
        "mirrored crop box: left becomes right",
        "inference/tta.py",
        "crop_box[1, axes] *= -1",
        "crop_box[1, axes] *= 1",
        "inference/test_tta.py inference/test_sliding_window.py",
    ),
    Mutant(
        "post-processing: holes of any size are filled",
        "inference/postprocessing.py",
        "parts = parts[1:-1, 1:-1, 1:-1]",
        "parts = parts[1:-1, 1:-1, 1:-1]; thresholds = tuple(10**9 * t for t in thresholds)",
        "inference/test_postprocessing.py",
    ),
    Mutant(
        "post-processing: thresholds in ml for voxels of 1 mm only",
        "inference/postprocessing.py",
        "voxel_ml = math.prod(spacing_mm) / 1000",
        "voxel_ml = 0.001",
        "inference/test_postprocessing.py",
    ),
    Mutant(
        "post-processing: shares of all components together",
        "inference/postprocessing.py",
        "sizes / sizes[1:].max(initial=1)",
        "sizes / max(sizes[1:].sum(), 1)",
        "inference/test_postprocessing.py",
    ),
    Mutant(
        "post-processing: that of the weights cannot be switched off",
        "inference/predictor.py",
        "if not isinstance(rules, str):",
        "if isinstance(rules, PostProcessing):",
        "inference/test_predictor.py",
    ),
    Mutant(
        "post-processing: members with other rules form an ensemble",
        "inference/predictor.py",
        "if each != values[0]]:",
        "if each and values[0] and each != values[0]]:",
        "inference/test_predictor.py",
    ),
    Mutant(
        "plan: semantic ramp an epoch late",
        "training/plan.py",
        "(epoch - first + 1) / (last - first + 1)",
        "(epoch - first) / (last - first + 1)",
        "training/test_plan.py",
    ),
    Mutant(
        "plan: the rate grows with the batch itself",
        "training/plan.py",
        "math.sqrt(global_batch)",
        "global_batch",
        "training/test_plan.py",
    ),
    Mutant(
        "training: weight decay alone moves semantics",
        "training/module.py",
        "if not keep:",
        "if False:",
        "training/test_module.py",
    ),
    Mutant(
        "training: reports never withheld",
        "training/module.py",
        'dropped = self._draw(count, generator=generator) < self.hparams["report_dropout"]',
        'dropped = self._draw(count, generator=generator) < 0 * self.hparams["report_dropout"]',
        "training/test_module.py",
    ),
    Mutant(
        "training: a case may lose all its sequences",
        "training/module.py",
        "kept |= ~(kept & acquired).any(dim=1, keepdim=True)",
        "kept |= False",
        "training/test_module.py",
    ),
    Mutant(
        "training: NaN weights are saved",
        "training/module.py",
        "if not weight.isfinite().all():",
        "if False:",
        "training/test_non_finite.py",
    ),
    Mutant(
        "atomic write: written in place",
        "atomic_write.py",
        "temporary.append(stack.enter_context(_temporary(path.parent, suffixes, _touch)))",
        "temporary.append(path)",
        "test_atomic_write.py",
    ),
    Mutant(
        "atomic write: what others are writing is removed",
        "atomic_write.py",
        "fcntl.LOCK_EX",
        "fcntl.LOCK_SH",
        "test_atomic_write.py",
    ),
    Mutant(
        "prompts: the place is one of the tumour",
        "inference/prompting.py",
        "head(reading, inside, crop_box)",
        "head(reading, inside)",
        "inference/test_prompting.py",
    ),
    Mutant(
        "prompts: taught on where they are right already",
        "training/prompt_task.py",
        "F.relu(1 - mixture)",
        "(1 - mixture)",
        "training/test_prompt_task.py",
    ),
    Mutant(
        "prompts: the smallest part for the largest",
        "inference/prompting.py",
        'if pick == "largest" else',
        'if pick != "largest" else',
        "inference/test_prompting.py",
    ),
    Mutant(
        "prompts: answered before post-processing",
        "inference/predictor.py",
        "final = self.release.to_regions(label)",
        "final = self.release.to_regions(self.release.to_labels(mean > 0.5))",
        "inference/test_predictor.py",
    ),
    Mutant(
        "prompts: names of files collide",
        "inference/prompt_answer.py",
        "if _PLAIN.fullmatch(text) and",
        "if",
        "inference/test_prompt_answer.py",
    ),
    # Resampling of scans
    Mutant(
        "resampling: labels instead of probabilities",
        "inference/predictor.py",
        "mean = carry(average.probabilities().cpu().numpy())",
        "mean = carry((average.probabilities() > 0.5).cpu().numpy(), order=0).astype('float32')",
        "inference/test_scanner_grids.py",
    ),
    Mutant(
        "resampling: the brain mixed with its background",
        "data/resampling.py",
        "np.divide(total, weight,",
        "np.divide(total, np.ones_like(weight),",
        "data/test_resampling.py",
    ),
    Mutant(
        "resampling: samples where voxels become larger",
        "data/resampling.py",
        "if (variance > 1e-3).any():",
        "if False:",
        "data/test_resampling.py",
    ),
    Mutant(
        "resampling: half a voxel off",
        "data/resampled_case.py",
        "from_matvec(np.diag(steps), (steps - 1) / 2)",
        "from_matvec(np.diag(steps), 0 * steps)",
        "inference/test_scanner_grids.py",
    ),
    Mutant(
        "presence: told in training too",
        "networks/clipseg3d.py",
        "presence.log_odds if regions is None else known_presence(regions)",
        "presence.log_odds",
        "networks/test_clipseg3d.py",
    ),
    Mutant(
        "presence: regions in doubt shrink",
        "blocks/region_presence.py",
        "2 * presence.detach().float().clamp(max=0)",
        "2 * (presence.detach().float() - 4).clamp(max=0)",
        "blocks/test_region_presence.py",
    ),
    Mutant(
        "presence: maps learn from the score",
        "blocks/region_presence.py",
        "rearrange(maps.detach().float(),",
        "rearrange(maps.float(),",
        "blocks/test_region_presence.py",
    ),
]


def main() -> int:
    """Run the mutants; the exit code is 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="in the name of the mutants")
    parser.add_argument("--slow", action="store_true", help="slow tests for those that survive")
    arguments = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if arguments.only in mutant.name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in (".github", "clipseg3d", "tests", "examples", "pyproject.toml", "README.md"):
            source = REPO / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        survivors = [mutant for mutant in mutants if not is_killed(mutant, copy, arguments.slow)]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants killed")
    return 1 if survivors else 0


def is_killed(mutant: Mutant, copy: Path, slow: bool) -> bool:
    """Apply a mutant to a copy of the repository, run its tests, and undo it."""
    path = copy / "clipseg3d" / mutant.file
    text = path.read_text(encoding="utf-8")
    if (count := text.count(mutant.before)) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} holds {mutant.before!r} {count} times")
    path.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
    tests = [str(test) for name in mutant.tests.split() if (test := copy / "tests" / name).exists()]
    try:
        killed = fails(copy, tests) or (slow and fails(copy, ["-m", "slow", *tests]))
    finally:
        path.write_text(text, encoding="utf-8")
    print("killed  " if killed else "SURVIVES", mutant.name, flush=True)
    return killed


def fails(copy: Path, tests: list[str]) -> bool:
    """Say whether tests fail in a copy of the repository."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False)
    return run.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
