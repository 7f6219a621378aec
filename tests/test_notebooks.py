"""Every notebook in examples/ runs from top to bottom, and holds its outputs."""

import ast
import json
import shutil
from importlib import import_module
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["ablation", "blocks_in_your_model", "quickstart", "text_guidance", "train_on_brats"]
every_notebook = pytest.mark.parametrize("name", NAMES)


def code_cells(name):
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_these_are_all_notebooks():
    assert sorted(path.stem for path in EXAMPLES.rglob("*.ipynb")) == NAMES


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder as a notebook finds it, and figures that need no display."""
    if (EXAMPLES / "results").is_dir():
        shutil.copytree(EXAMPLES / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    backend = matplotlib.get_backend()
    with matplotlib.rc_context():
        plt.switch_backend("agg")
        yield tmp_path
        plt.close("all")
    plt.switch_backend(backend)


@pytest.mark.slow
@every_notebook
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.filterwarnings("ignore:the weights of the tiny CLIP are random")
def test_every_cell_runs(name, workplace):
    namespace = {"__name__": "__main__"}
    for cell in code_cells(name):
        title = f"{name}.ipynb, cell {cell['id']}"
        try:
            exec(compile("".join(cell["source"]), f"<{title}>", "exec"), namespace)
        except Exception as error:
            raise AssertionError(f"{title}: {type(error).__name__}: {error}") from error


@every_notebook
def test_cells_import_what_exists(name):
    for cell in code_cells(name):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("clipseg3d"):
                module = import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@every_notebook
def test_outputs_are_stored(name):
    cells = code_cells(name)
    order = [cell["execution_count"] for cell in cells]
    assert order == list(range(1, len(cells) + 1)), "execute it: examples/execute_notebooks.py"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < 1e6


def test_a_network_joins_in_15_lines():
    lines = {}
    for cell in code_cells("blocks_in_your_model"):
        source = "".join(cell["source"])
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                text = ast.get_source_segment(source, node)
                lines[node.name] = sum(bool(line.strip()) for line in text.splitlines())
    assert set(lines) == {"GuidedSegResNet", "GuidedSwinUNETR"}
    assert max(lines.values()) <= 15, lines
