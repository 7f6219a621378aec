"""Cost of the semantic path in a training step and in the inference of a whole volume.

The ``recommended`` network runs with its semantic path, with one that obeys text (sentences, all
regions and two more levels guided, presence and its loss), and without, in turn, in one run. CLIP
has the size of the named one, and random weights, on which time does not depend. Views are cut and
text is embedded beforehand, as the cache and the text bank do it. The image tower runs once per
volume: in the warm-up step, and in inference. With RGB mixing it runs in every training step.

Freed memory stays with the process, as allocators of GPUs keep it. Returned to the system and
mapped again page by page, it would take up to a third of a step, and cause most of the noise.

``ratio`` is the median over pairs of (training step with semantics) / (without).
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import CLIPConfig, CLIPModel

from clipseg3d.cli.freed_memory import keep_freed_memory
from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.inference.sliding_window import segment_volume
from clipseg3d.intensity import intensity_statistics
from clipseg3d.losses import RegionLoss, presence_loss
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.presets import network_config
from clipseg3d.views import cut_views

BRAIN = (140, 175, 140)
REPORT = "A mass in the left temporal lobe. Marked oedema. A thick enhancing rim."
PLAIN, USUAL, OBEDIENT = "without semantics", "ViT-B/32", "ViT-B/32, text that is obeyed"


def full_size_clip(patch_size: int) -> HuggingFaceCLIP:
    """Return a CLIP of the size of ViT-B with this patch size, its weights random."""
    tokenizer = HuggingFaceCLIP.tiny_random().tokenizer
    config = CLIPConfig(
        text_config={"vocab_size": 49408},
        vision_config={"patch_size": patch_size},
    )
    return HuggingFaceCLIP(CLIPModel(config), tokenizer, name=f"random ViT-B/{patch_size}")


def training_step(network: CLIPSeg3D, size: int) -> Callable[[], None]:
    """Return one forward, backward and optimiser step on a cube of ``size`` voxels."""
    brain = torch.rand(1, 4, *BRAIN) + 0.1
    views = cut_views(brain, selection="energy")
    statistics = intensity_statistics(brain)
    image = brain[..., :size, :size, :size].contiguous()
    label = (torch.rand(1, 3, size, size, size) > 0.9).float()
    text, mask = network.embed_text([REPORT])
    loss = RegionLoss()
    optimizer = torch.optim.AdamW([w for w in network.parameters() if w.requires_grad], 1e-4)

    def step() -> None:
        network.train()
        semantics = network.encode_semantics(views, text, mask)
        prediction = network.segment(image, semantics, statistics=statistics, deep=True)
        optimizer.zero_grad()
        total = loss([prediction.logits, *prediction.auxiliary], label)
        if prediction.presence is not None:
            total = total + presence_loss(*prediction.presence, label)
        total.backward()
        optimizer.step()

    return step


def inference(network: CLIPSeg3D, size: int) -> Callable[[], None]:
    """Return the segmentation of a brain box with a sliding window."""
    brain = torch.rand(1, 4, *BRAIN) + 0.1
    views = cut_views(brain, selection="energy")
    statistics = intensity_statistics(brain)
    text, mask = network.embed_text([REPORT])

    @torch.no_grad()
    def segment() -> None:
        network.eval()
        semantics = network.encode_semantics(views, text, mask)
        segment_volume(network, brain, semantics, statistics, roi_size=(size,) * 3)

    return segment


def seconds(action: Callable[[], None]) -> float:
    """Return the time of an action."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="patch edge in voxels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-inference", action="store_true", help="training steps only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message="the weights of the tiny CLIP are random")

    base = network_config("recommended")
    clip, large = full_size_clip(32), full_size_clip(16)
    networks = {
        PLAIN: build_clipseg3d(network_config(base, ablation="no_semantic")),
        USUAL: build_clipseg3d(base, encoder=clip),
        OBEDIENT: build_clipseg3d(
            replace(base, guided=("WT", "TC", "ET"), sentences=True, presence=True, guided_skips=2),
            encoder=clip,
        ),
        "ViT-B/32, learned RGB mixing": build_clipseg3d(replace(base, mix_rgb=True), encoder=clip),
        "ViT-B/16": build_clipseg3d(base, encoder=large),
    }
    tasks = {"training step": training_step}
    if not arguments.no_inference:
        tasks["inference, brain box 140x175x140"] = inference
    ratios: dict[str, dict[str, float]] = {}
    medians: dict[str, float] = {}
    for task, make in tasks.items():
        chosen = networks if make is training_step else dict(list(networks.items())[:3])
        actions = {name: make(network, arguments.size) for name, network in chosen.items()}
        for action in actions.values():
            action()
        times = [
            {name: seconds(action) for name, action in actions.items()}
            for _ in range(arguments.rounds)
        ]
        ratios[task] = {
            name: statistics.median(row[name] / row[PLAIN] for row in times) for name in actions
        }
        for name in actions:
            median = statistics.median(row[name] for row in times)
            medians.setdefault(name, median)
            print(f"{task:36s} {name:30s} {median:8.2f} s   x {ratios[task][name]:.3f}")
    print(
        json.dumps(
            {
                "benchmark": "semantic_cost",
                "ratio": ratios["training step"][USUAL],
                "ours": medians[USUAL],
                "peer": medians[PLAIN],
                "unit": "s per training step",
                "size": arguments.size,
                "rounds": arguments.rounds,
                "threads": arguments.threads,
                "ratios": ratios,
            }
        )
    )


if __name__ == "__main__":
    main()
