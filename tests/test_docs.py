"""The documentation: every public name is in it, and its links lead somewhere."""

import re
import subprocess
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
BUILD = REPO / ".github" / "docs" / "build.py"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def build():
    for library in ("pdoc", "nbconvert"):
        pytest.importorskip(library)
    spec = spec_from_file_location("build_docs", BUILD)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_public_packages_are_in_it(build):
    stubs = (REPO / "clipseg3d").rglob("__init__.pyi")
    assert len(build.PACKAGES) > 10
    assert set(build.PACKAGES) == {".".join(p.parent.relative_to(REPO).parts) for p in stubs}


def test_public_names_that_load_on_first_use_are_members(build):
    module = build.public_module("clipseg3d.export")
    assert [*module.members] == import_module("clipseg3d.export").__all__


def test_all_guides_and_notebooks_are_in_it(build):
    pages = [*(REPO / "examples").glob("guides/*.md"), *(REPO / "examples").glob("*.ipynb")]
    assert len(pages) > 10
    assert set(pages) < set(build.PAGES)
    assert len(set(build.PAGES.values())) == len(build.PAGES)


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("[own data](own_data.md#files)", "[own data](own_data.html#files)"),
        ("[nights](../../clipseg3d/configs/README.md)", "[nights](../recipes.html)"),
        ("[start](../quickstart.ipynb)", "[start](../notebooks/quickstart.html)"),
        ("[here](#files)", "[here](#files)"),
        ("[paper](https://arxiv.org/abs/2507.09966v2)",) * 2,
        ("![picture](../demo.png)",) * 2,
        ("[licence](../../LICENSE)", "[licence](ADDRESS/blob/main/LICENSE)"),
    ],
)
def test_links_lead_to_pages_or_into_the_repository(build, text, becomes, monkeypatch):
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://example.org")
    monkeypatch.setenv("GITHUB_REPOSITORY", "some/body")
    page = REPO / "examples" / "guides" / "train.md"
    linked = build.LINK.sub(lambda link: build.linked(link, page), text)
    assert linked == becomes.replace("ADDRESS", "https://example.org/some/body")


@pytest.mark.slow
def test_it_builds_without_a_warning(build, tmp_path):
    run = subprocess.run([sys.executable, BUILD, tmp_path], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    for package in build.PACKAGES:
        page = (tmp_path / f"{package.replace('.', '/')}.html").read_text(encoding="utf-8")
        names = [name for name in import_module(package).__all__ if not name.startswith("__")]
        assert [name for name in names if f'id="{name}"' not in page] == []
    for place in build.PAGES.values():
        page = tmp_path / place
        links = re.findall(r'<a href="([^":#]+)"', page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == []
