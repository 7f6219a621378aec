"""README, the card of the weights and other pages show the numbers of results, and no others."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def numbers():
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "results_numbers.py")))


@pytest.fixture(scope="module")
def texts(numbers):
    return {name: path.read_text(encoding="utf-8") for name, path in numbers.FILES.items()}


def test_texts_show_the_results(numbers, texts):
    assert [problem for name in texts for problem in numbers.problems(name, texts[name])] == []


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("results", "brings +0.1 [-0.0, +0.2]", "brings +0.2 [-0.0, +0.2]", "not there: Of the 12"),
        ("README", "[0.75, 0.81]", "[0.75, 0.82]", "a table is not that of the results"),
        ("README", "A new block", "A new block of 0.9 Dice", "shows 0.9"),
        ("card", "Full volumes", "A Dice of 0.712. Full volumes", "shows 0.712"),
        ("card", "Full volumes", "In 99 % of cases, full volumes", "shows 99"),
    ],
)
def test_other_numbers_are_found(numbers, texts, name, old, new, problem):
    assert old in texts[name]
    assert problem in "\n".join(numbers.problems(name, texts[name].replace(old, new)))


def test_tables_that_do_not_exist_are_refused(numbers):
    with pytest.raises(ValueError, match="no table 'x': name one of recipes"):
        numbers.with_tables("<!-- results: x -->\n<!-- end of results -->")


@pytest.fixture
def ablation(tmp_path):
    """Two seeds, two cases; Dice of the row are below those of the first, by 1 to 4 points."""
    lines = ["row,seed,case,region,dice,hd95_mm"]
    for row, lost in (("unet3d", 1), ("recommended", 0)):
        for seed, more in enumerate((1, 3)):
            for case, even_more in (("Brats18_TCIA01_1_1", 0), ("Brats18_2013_1_1", 1)):
                dice = 0.5 - 0.01 * lost * (more + even_more)
                lines += [f"{row},{seed},{case},{r},{dice},5" for r in ("WT", "TC", "ET")]
    path = tmp_path / "ablation.csv"
    path.write_text("\n".join(lines))
    sizes = "row,parameters,backbone steps,real steps\nrecommended,2000,7,5\nunet3d,1500,7,4\n"
    (tmp_path / "ablation_networks.csv").write_text(sizes)
    return path


def test_gains_by_hand(numbers, ablation):
    assert list(numbers.ablation(ablation)) == ["recommended", "unet3d"]
    gain = numbers.gains(ablation)["unet3d"]
    assert gain.test.mean == pytest.approx(2.5)
    assert gain.corrected == gain.test.p_value  # the only one
    assert numbers.seed_gains(ablation, "unet3d") == "+1.5, +3.5"
    unseen = numbers.gains(ablation, unseen=True)["unet3d"].test
    assert unseen.num_cases == 1
    assert unseen.mean == pytest.approx(3)


def test_a_table_has_the_papers_gain_beside_ours(numbers, ablation):
    last = numbers.ablation_table(ablation).splitlines()[-1]
    assert last.startswith(
        "| `unet3d` | 1,500 | 11 | 2 | 0.475 | 0.475 | 0.475 | 0.475 ± 0.014 | 5.0 | +2.5 ["
    )
    assert last.endswith("| +4.8 |")
