"""What is missing on a machine is found out early, and loaders work under spawn.

Cases compile_without_a_compiler.py and readme_script_under_spawn.py.
"""

import ast
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

from clipseg3d.phantom.datamodule import PhantomDataModule
from clipseg3d.training.speedup import Speedup

REPO = Path(__file__).parents[2]


def test_compile_without_a_compiler_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "/none")
    with pytest.raises(ValueError, match=r"torch.compile found no C\+\+ compiler \(/none\)"):
        Speedup(compile=True)
    monkeypatch.delenv("CXX")
    with pytest.raises(ValueError, match="install one, set CXX to it, or leave out compile"):
        Speedup(compile=True)
    assert not Speedup(channels_last=True).compile


def test_a_compiler_is_found_by_name_or_path(monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert Speedup(compile=True).compile
    monkeypatch.setenv("CXX", "c++")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert Speedup(compile=True).compile


def test_python_examples_that_train_have_a_main_guard():
    """Without it, a loader process that imports the script would run it once more."""
    pages = (REPO / "README.md", *(REPO / "examples").rglob("*.md"))
    texts = "".join(page.read_text(encoding="utf-8") for page in pages)
    examples = re.findall(r"```python\n(.*?)```", texts, re.S)
    trained = [code for code in examples if ".fit(" in code]
    assert trained
    for code in trained:
        statements = ast.parse(code).body
        assert all(isinstance(s, ast.ImportFrom | ast.Import | ast.If) for s in statements)
        assert ast.unparse(statements[-1].test) == "__name__ == '__main__'"


@pytest.fixture(scope="module")
def data(phantom_folder, tmp_path_factory):
    module = PhantomDataModule(
        str(phantom_folder),
        num_cases=5,
        spacing_mm=8.0,
        patch_size=(16, 16, 16),
        num_workers=1,
        cache_dir=str(tmp_path_factory.mktemp("cache")),
    )
    module.prepare_data()
    module.setup("fit")
    return module


def test_datasets_survive_pickling(data):
    """Which spawn and forkserver do to them; the copy gives the same samples."""
    for dataset in (data.train_set, data.val_set):
        copy = pickle.loads(pickle.dumps(dataset))
        assert len(copy) == len(dataset)
    (sample,), (other,) = ([s[0]] for s in (data.val_set, pickle.loads(pickle.dumps(data.val_set))))
    assert torch.equal(sample["image"], other["image"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_loaders_work_under_every_start_method(data, method, monkeypatch):
    for loader in (data.train_dataloader(), data.val_dataloader()):
        loader.multiprocessing_context = method
        assert sum(1 for _ in loader) >= 1
