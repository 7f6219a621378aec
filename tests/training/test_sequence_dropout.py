"""Mirrors clipseg3d/training/sequence_dropout.py."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from clipseg3d.data.cache import build_cache
from clipseg3d.data.cases import find_cases
from clipseg3d.data.dataset import BraTSDataset
from clipseg3d.data.preprocessing import preprocess
from clipseg3d.data.releases import BRATS_2018
from clipseg3d.training.sequence_dropout import draw_kept_sequences, withhold_sequences
from clipseg3d.views import Views
from clipseg3d.vocabulary import SEQUENCES

B, S, X, Y, Z = 2, 4, 3, 5, 2


def test_all_subsets_but_none_and_all_are_drawn_alike():
    choice = (torch.arange(14) + 0.5) / 14
    kept = draw_kept_sequences(torch.zeros(14), choice, 1.0, num_sequences=4)
    subsets = {tuple(row) for row in kept.tolist()}
    assert len(subsets) == 14
    assert (False,) * 4 not in subsets
    assert (True,) * 4 not in subsets


def test_the_others_keep_all():
    chance = torch.tensor([0.1, 0.3, 0.2])
    kept = draw_kept_sequences(chance, torch.zeros(3), 0.2, num_sequences=3)
    assert kept.tolist() == [[True, False, False], [True] * 3, [True] * 3]


def test_withheld_sequences_look_missing_everywhere():
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(B, S, X, Y, Z, generator=generator) + 1
    stats = torch.rand(B, S, 4, generator=generator) + 1
    views = Views(torch.full((B, 3, 5, 7, S), 9, dtype=torch.uint8), torch.rand(B, 3, 3))
    kept = torch.tensor([[True, False, True, True], [False, True, True, False]])
    none = Views(views.images[:, None][:, :0], views.planes[:, None][:, :0])
    result = withhold_sequences(image, stats, views, kept, reduced_views=none)
    for b in range(B):
        for s in range(S):
            if kept[b, s]:
                assert torch.equal(result[0][b, s], image[b, s])
                assert torch.equal(result[1][b, s], stats[b, s])
            assert result[0][b, s].any() == kept[b, s]
            assert result[1][b, s].any() == kept[b, s]
            assert (result[2].images[b, ..., s] == (9 if kept[b, s] else 0)).all()
    assert result[2].images.dtype == torch.uint8
    assert torch.equal(result[2].planes, views.planes)


@pytest.fixture(scope="module")
def case(phantom_folder):
    return find_cases(phantom_folder, BRATS_2018, spacing_mm=8.0)[0]


@pytest.mark.parametrize("selection", ["energy", "center"])
def test_training_sees_the_slices_that_prediction_chooses(case, tmp_path, selection):
    """For every set of sequences, withheld or not acquired: the same slices, to the last bit."""
    entries = build_cache([case], BRATS_2018, tmp_path, view_selection=selection)
    sample = BraTSDataset(entries, BRATS_2018)[0]
    views, reduced = (Views(*(p[None] for p in sample[k])) for k in ("views", "reduced_views"))
    choices = set()
    for names in (n for count in range(1, 5) for n in combinations(SEQUENCES, count)):
        kept = torch.tensor([[name in names for name in SEQUENCES]])
        _, _, seen = withhold_sequences(
            sample["image"][None], sample["statistics"][None], views, kept, reduced_views=reduced
        )
        acquired = replace(case, sequences={name: case.sequences[name] for name in names})
        predicted = preprocess(acquired, BRATS_2018, view_selection=selection).views
        assert torch.equal(seen.planes[0], predicted.planes)
        assert torch.equal(seen.images[0], predicted.images)
        choices.add(tuple(predicted.planes[:, 0].tolist()))
    assert (len(choices) > 2) == (selection == "energy")
