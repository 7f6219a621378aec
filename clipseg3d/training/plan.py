"""Optimiser, schedule and loss weights of a fit as plain values, and named plans."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.ranges import (
    UnknownNameError,
    require_above_zero,
    require_count,
    require_names,
    require_not_negative,
    require_share,
)

_OPTIMIZERS = {"adam": Adam, "adamw": AdamW}
_SCHEDULES = ("cosine", "onecycle")


@dataclass(frozen=True)
class TrainingPlan:
    """Optimiser, schedule and losses.

    Attributes:
        optimizer: ``adam`` or ``adamw``.
        lr: peak learning rate; groups multiply it.
        weight_decay: of the optimiser.
        schedule: ``cosine`` falls from the peak to 0; ``onecycle`` rises to it first.
        warmup: share of all steps over which ``onecycle`` rises.
        start_div: ``onecycle`` starts at the peak divided by this.
        final_div: ``onecycle`` ends at its start divided by this.
        backbone_lr: factor for pixel fusion, U-Net and grade classifier.
        bridge_lr: factor for the trainable parts around CLIP's image tower.
        semantic_lr: factor for guidance, bottleneck, attention, presence and prompts.
        semantic_ramp: first and last epoch, counted from 0, in which the strength of semantics
            rises: it is 0 before the first, and 1 from the last on.
        cosine_weight: weight of the loss that trains text-voxel cosines to be maps of their
            regions.
        cosine_temperature: cosines are divided by this to become logits.
        presence_weight: weight of the loss of the presence of regions, if the network tells it.
        prompt_weight: weight of the loss of prompts, if the network answers them.
        grade_weight: weight of the grade classifier's loss, if there is a classifier.

    Raises:
        ValueError: unknown ``optimizer`` or ``schedule``; a value out of its range; the ramp ends
            before it begins.
    """

    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "onecycle"] = "onecycle"
    warmup: float = 0.1
    start_div: float = 25.0
    final_div: float = 1e4
    backbone_lr: float = 1.0
    bridge_lr: float = 1.0
    semantic_lr: float = 1.0
    semantic_ramp: tuple[int, int] = (0, 0)
    cosine_weight: float = 0.0
    cosine_temperature: float = 0.07
    presence_weight: float = 0.1
    prompt_weight: float = 0.1
    grade_weight: float = 0.1

    def __post_init__(self) -> None:
        """Refuse impossible values: a checkpoint or a YAML file may hold anything."""
        for name, choices in (("optimizer", _OPTIMIZERS), ("schedule", _SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: choose from {', '.join(choices)}"
                )
        require_above_zero(
            lr=self.lr,
            start_div=self.start_div,
            final_div=self.final_div,
            cosine_temperature=self.cosine_temperature,
        )
        require_not_negative(
            weight_decay=self.weight_decay,
            backbone_lr=self.backbone_lr,
            bridge_lr=self.bridge_lr,
            semantic_lr=self.semantic_lr,
            cosine_weight=self.cosine_weight,
            presence_weight=self.presence_weight,
            prompt_weight=self.prompt_weight,
            grade_weight=self.grade_weight,
        )
        require_share(warmup=self.warmup)
        if len(self.semantic_ramp) != 2:
            raise ValueError(
                f"semantic_ramp={self.semantic_ramp}: give two epochs, the first and the last"
            )
        first, last = self.semantic_ramp
        require_count(semantic_ramp=first, at_least=0)
        require_count(semantic_ramp=last, at_least=0)
        if last < first:
            raise ValueError(
                f"semantic_ramp={(first, last)} ends before it begins; give its first and last "
                "epoch"
            )

    def semantic_strength(self, epoch: int) -> float:
        """Return the strength of semantics in an epoch, counted from 0."""
        first, last = self.semantic_ramp
        return min(max((epoch - first + 1) / (last - first + 1), 0.0), 1.0)

    def scaled_lr(self, global_batch: int) -> float:
        """Return the peak learning rate for a global batch, given that ``lr`` is for a batch of 1.

        It grows with the square root of the batch.

        Source: Malladi et al., NeurIPS 2022, https://arxiv.org/abs/2205.10287, for Adam.
        """
        return self.lr * math.sqrt(global_batch)

    def short_ramp(self, epochs: int) -> str | None:
        """Return what a fit of so few epochs means for semantics; None if they get full strength.

        Args:
            epochs: number of epochs of the fit.
        """
        first, last = self.semantic_ramp
        strength = self.semantic_strength(epochs - 1)
        if strength == 1:
            return None
        effect = (
            f"reach a strength of only {strength:.2g}"
            if strength
            else "are never switched on and not trained"
        )
        return (
            f"semantics rise over epochs {first} to {last}, counted from 0, and the fit has "
            f"{epochs}: views and text {effect}; give at least {last + 1} epochs, or a plan with "
            "an earlier semantic_ramp"
        )

    def optimizer_for(
        self, network: CLIPSeg3D, make: Callable[[Any], Optimizer] | None = None
    ) -> Optimizer:
        """Return the optimiser over the network's trainable weights, in groups.

        Args:
            network: to be trained.
            make: returns another optimiser over groups of weights, with a learning rate of its own,
                which the factors of the groups multiply.
        """
        groups: dict[float, list[nn.Parameter]] = defaultdict(list)
        for name, weight in network.named_parameters():
            if not weight.requires_grad:
                continue
            factor = self.backbone_lr
            if name.startswith("semantic_fusion.bridge."):
                factor = self.bridge_lr
            elif name.startswith(("semantic_fusion.", "prompt_head.")):
                factor = self.semantic_lr
            groups[factor].append(weight)
        if make is None:
            make = partial(_OPTIMIZERS[self.optimizer], lr=self.lr, weight_decay=self.weight_decay)
        optimizer = make([{"params": weights} for weights in groups.values()])
        for group, factor in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = group["lr"] * factor  # not in place: a tensor is shared by the groups
        return optimizer

    def schedule_for(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Return the schedule of a fit; step it after every step of the optimiser."""
        if self.schedule == "cosine":
            return CosineAnnealingLR(optimizer, T_max=total_steps)
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            # The schedule is stepped once more at the end, and torch divides by the length of the
            # fall, which is 0 if all of the fit is a rise.
            total_steps=total_steps + (self.warmup == 1),
            # torch divides by the length of the rise, and counts a rise of exactly one step as 0.
            pct_start=min(self.warmup * (1 + 1e-9), 1.0),
            div_factor=self.start_div,
            final_div_factor=self.final_div,
            cycle_momentum=False,
        )


PLANS: dict[str, TrainingPlan] = {
    # The paper's training, once as in its body and once as in its appendix. Both learning curves
    # bend at epochs 8 to 10; the paper explains this by semantics being switched in. It states
    # neither loss.
    "paper_body": TrainingPlan(
        optimizer="adam", lr=1e-4, weight_decay=1e-5, schedule="cosine", semantic_ramp=(8, 10)
    ),
    # "From 5e-5" is taken as the start: the peak is 20 times that, the end 1/100 of it.
    "paper_appendix": TrainingPlan(
        lr=1e-3,
        warmup=0.2,
        start_div=20.0,
        final_div=100.0,
        backbone_lr=2.0,
        bridge_lr=0.1,
        semantic_lr=3.0,
        semantic_ramp=(8, 10),
    ),
    "recommended": TrainingPlan(lr=3e-4, semantic_ramp=(8, 10)),
    # For short runs: semantics from the start.
    "tiny": TrainingPlan(),
}


def training_plan(name: str) -> TrainingPlan:
    """Return the plan of that name.

    Raises:
        UnknownNameError: there is no such plan; the message lists all names.

    Example:
        >>> training_plan("paper_body").optimizer
        'adam'
    """
    if name not in PLANS:
        raise UnknownNameError(f"unknown plan {name!r}: choose one of {', '.join(PLANS)}")
    return PLANS[name]


def resolve_plan(
    plan: TrainingPlan | dict[str, Any] | str | None, network: NetworkConfig
) -> TrainingPlan:
    """Return a plan from its name or its values; None takes that of the network.

    Raises:
        UnknownNameError: there is no plan or setting of that name.
        ValueError: a value is out of range.
    """
    if isinstance(plan, TrainingPlan):
        return plan
    if isinstance(plan, dict):
        require_names(plan, [field.name for field in fields(TrainingPlan)], of="plan")
        return TrainingPlan(**{**plan, "semantic_ramp": tuple(plan.get("semantic_ramp", (0, 0)))})
    return training_plan(network.plan if plan is None else plan)
