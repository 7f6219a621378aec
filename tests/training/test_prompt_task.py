"""Prompts for training ask for the masks that they come with."""

import re

import numpy as np
import pytest
import torch

from clipseg3d.blocks.prompt_head import PromptHead
from clipseg3d.clip.registry import load_encoder
from clipseg3d.texts import Request
from clipseg3d.training.prompt_task import (
    PromptTask,
    coarsen,
    draw_sentences,
    draw_tasks,
    prompt_loss,
    sentence_loss,
    task_masks,
)

REGIONS = ("WT", "TC", "ET")


def label():
    """One row of x per region: WT 2 to 8, TC 4 to 8, ET 6 to 8, in a grid of ten."""
    regions = torch.zeros(1, 3, 10, 4, 4)
    for index, start in enumerate((2, 4, 6)):
        regions[:, index, start:8] = 1
    return regions


def mask(signs, **request):
    tasks = [PromptTask("", signs, Request("whole", **request))]
    return task_masks(tasks, label())[0, 0]


@pytest.mark.parametrize(
    ("signs", "rows"),
    [
        ((1, 0, 0), range(2, 8)),
        ((1, -1, 0), range(2, 4)),
        ((0, 1, -1), range(4, 6)),
        ((0, 0, 1), range(6, 8)),
        ((0, 0, 0), ()),
    ],
)
def test_masks_are_made_of_the_regions(signs, rows):
    rows_of_mask = mask(signs).amax(dim=(1, 2)).nonzero().flatten().tolist()
    assert rows_of_mask == list(rows)
    assert mask(signs).unique().tolist() in ([0], [0, 1])


def test_sides_and_lobes_restrict_masks():
    left, right = (mask((1, 0, 0), side=side) for side in ("left", "right"))
    assert left.amax(dim=(1, 2)).nonzero().flatten().tolist() == [5, 6, 7]
    torch.testing.assert_close(left + right, mask((1, 0, 0)))
    lobes = [
        mask((1, 0, 0), site=site) for site in ("frontal", "parietal", "temporal", "occipital")
    ]
    torch.testing.assert_close(sum(lobes), mask((1, 0, 0)))
    assert lobes[0][:, 0].any()  # the front
    assert not lobes[0][:, -1].any()
    assert lobes[3][:, -1].any()


def test_a_mirrored_crop_keeps_sides():
    tasks = [PromptTask("", (1, 0, 0), Request("whole", side="left"))]
    box = torch.tensor([[[1.0, 0, 0], [-1, 1, 1]]])
    mirrored = task_masks(tasks, label().flip(2), box).flip(2)
    torch.testing.assert_close(mirrored, task_masks(tasks, label()))


def test_drawn_prompts_ask_for_every_part_and_for_none():
    tasks = draw_tasks(600, REGIONS, (["a"], ["b"], ["c"]), np.random.default_rng(0))
    counts = {signs: sum(task.signs == signs for task in tasks) for signs in
              {task.signs for task in tasks}}  # fmt: skip
    assert set(counts) == {(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, -1), (1, -1, 0), (0, 0, 0)}
    assert min(counts.values()) > 60
    again = draw_tasks(600, REGIONS, (["a"], ["b"], ["c"]), np.random.default_rng(0))
    assert tasks == again


def test_drawn_sentences_say_how_many_lesions_there_are():
    sentences, several = draw_sentences(300, np.random.default_rng(0))
    assert len(sentences) == len(several) == 300
    assert 0.25 < np.mean(several) < 0.6
    assert len(set(sentences)) > 280
    known = re.compile(r"\b(two|several|multiple|bilateral|both|multifocal|multicentric)\b", re.I)
    denied = re.compile(r"\b(no|not|without|neither|none|never|nor|absen\w+|excluded)\b|n't", re.I)
    plain = [bool(known.search(s)) and not denied.search(s) for s in sentences]
    assert np.mean([s for s, is_plain in zip(several, plain, strict=True) if is_plain]) > 0.8
    assert draw_sentences(300, np.random.default_rng(0)) == (sentences, several)


def test_a_linear_reading_learns_how_many_lesions_a_sentence_is_about():
    """As the bundled encoder embeds them; the texts that are asked are others."""
    encoder, rng = load_encoder("tiny"), np.random.default_rng(1)
    head = PromptHead(encoder.embed_dim, 3)
    sentences, several = draw_sentences(600, rng)
    embeddings = encoder.encode_text(sentences)[None]
    optimizer = torch.optim.LBFGS(head.several.parameters(), max_iter=50)

    def loss():
        optimizer.zero_grad()
        error = sentence_loss(head.read(embeddings), several)
        error.backward()
        return error

    assert loss().item() == pytest.approx(np.log(2))  # a new head cannot tell
    optimizer.step(loss)
    sentences, several = draw_sentences(200, rng)
    told = head.read(encoder.encode_text(sentences)[None]).several[0] > 0
    assert (told == torch.tensor(several)).float().mean() > 0.9


def test_other_regions_are_asked_for_by_their_prompt():
    tasks = draw_tasks(80, ("lesion", "penumbra"), (["an infarct"], ["tissue at risk"]),
                       np.random.default_rng(0))  # fmt: skip
    asked = {task.signs: task.text for task in tasks if any(task.signs)}
    assert "an infarct" in asked[1.0, 0.0]
    assert "tissue at risk" in asked[0.0, 1.0]
    assert all(" infarct" not in task.text for task in tasks if not any(task.signs))


def test_the_loss_falls_while_a_head_learns_and_ends_near_zero():
    """Embeddings of six prompts are orthogonal here: everything can be learned."""
    torch.manual_seed(0)
    tasks = [
        PromptTask("whole", (1, 0, 0), Request("whole")),
        PromptTask("core", (0, 1, 0), Request("core", pick="largest")),
        PromptTask("rim", (0, 0, 1), Request("enhancing", side="left")),
        PromptTask("necrosis", (0, 1, -1), Request("necrosis")),
        PromptTask("oedema", (1, -1, 0), Request("oedema", side="right")),
        PromptTask("kidney", (0, 0, 0), Request("none")),
    ]
    head = PromptHead(6, 3)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    masks = task_masks(tasks, label())
    losses = []
    for _ in range(400):
        reading = head.read(torch.eye(6)[None])
        loss = prompt_loss(head, reading, label(), tasks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 1 < losses[0]
    answer = head(head.read(torch.eye(6)[None]), label()) > 0.5
    assert torch.equal(answer, masks > 0.5)


def test_a_sum_of_regions_is_taught_only_towards_what_is_asked_for():
    """Oedema, read as WT 1, TC -1, ET -0.5: sums 1, 0 and -0.5 are right, and stay as they are."""
    oedema = PromptTask("oedema", (1, -1, 0), Request("oedema"))
    whole = PromptTask("whole", (1, 0, 0), Request("whole"))
    head = PromptHead(6, 3)
    with torch.no_grad():
        rest = head.read(torch.zeros(1, 1, 6))

    def gradient(*weights, task=oedema):
        given = torch.tensor([[weights]], requires_grad=True)
        prompt_loss(head, rest._replace(weights=given), label(), [task]).backward()
        return given.grad[0, 0].tolist()

    assert gradient(1.0, -1.0, -0.5) == [0, 0, 0]
    assert gradient(1.0, 0.5, 0.0, task=whole) == [0, 0, 0]
    # 4 times the mean of 4 squares: too little in oedema, too much in necrosis and in ET
    assert gradient(0.5, 0.0, 0.0) == [pytest.approx(-1 + 1 + 1), pytest.approx(1 + 1), 1]
    assert gradient(0.5, -1.0, 0.0) == [pytest.approx(-1.0), 0, 0]


def test_every_set_of_regions_counts_the_same():
    """However few voxels have it."""
    few = label()
    few[:, 1:] = 0
    few[:, 1, 7, 3, 3] = 1
    many = label()
    many[:, 2] = 0
    tasks = [PromptTask("core", (0, 1, 0), Request("core"))]
    head = PromptHead(6, 3)
    reading = head.read(torch.zeros(1, 1, 6))
    torch.testing.assert_close(
        prompt_loss(head, reading, few, tasks), prompt_loss(head, reading, many, tasks)
    )


def test_coarse_labels_keep_their_place():
    fine = torch.zeros(1, 1, 12, 5, 7)
    fine[:, :, 6:] = 1
    coarse = coarsen(fine, 4)
    assert coarse.shape == (1, 1, 4, 3, 4)
    assert coarse[0, 0, :, 0, 0].tolist() == [0, 0, 1, 1]
