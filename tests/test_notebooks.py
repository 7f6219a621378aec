"""Every notebook in examples/ runs from top to bottom, as a reader would run it."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@every_notebook
def test_every_cell_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for cell in code_cells(path):
        where = f"{path.name}, cell {cell['id']}"
        try:
            exec(compile("".join(cell["source"]), f"<{where}>", "exec"), namespace)
        except Exception as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error


@every_notebook
def test_no_outputs_are_stored(path):
    stored = [c["id"] for c in code_cells(path) if c["outputs"] or c["execution_count"]]
    assert not stored


def test_a_network_joins_in_15_lines():
    (path,) = [path for path in NOTEBOOKS if path.stem == "blocks_in_your_model"]
    lines = {}
    for cell in code_cells(path):
        source = "".join(cell["source"])
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                text = ast.get_source_segment(source, node)
                lines[node.name] = sum(bool(line.strip()) for line in text.splitlines())
    assert set(lines) == {"GuidedSegResNet", "GuidedSwinUNETR"}
    assert max(lines.values()) <= 15, lines
