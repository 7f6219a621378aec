"""Build the documentation: the reference from docstrings, and the guides and notebooks beside it.

    python .github/docs/build.py site

Needs ``pip install --group docs``, and no internet. A warning is an error.
"""

import argparse
import os
import re
import warnings
from importlib import import_module
from pathlib import Path

import nbformat
import pdoc.doc
import pdoc.render
from nbconvert import HTMLExporter
from nbformat import NotebookNode

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = REPO / "examples"
PAGES = {
    EXAMPLES / "README.md": "index.html",
    REPO / "clipseg3d" / "configs" / "README.md": "recipes.html",
    **{path: f"guides/{path.stem}.html" for path in sorted(EXAMPLES.glob("guides/*.md"))},
    **{path: f"notebooks/{path.stem}.html" for path in sorted(EXAMPLES.glob("*.ipynb"))},
}
"""What people wrote, and where it stands in the documentation."""
PACKAGES = sorted(
    ".".join(path.parent.relative_to(REPO).parts)
    for path in (REPO / "clipseg3d").rglob("__init__.pyi")
)
"""Packages whose names are public: those that list them in a stub."""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


def public_module(name: str) -> pdoc.doc.Module:
    """Return a package as pdoc reads it, with its public names, which load on first use."""
    package = import_module(name)
    for public in package.__all__:
        setattr(package, public, getattr(package, public))
    return pdoc.doc.Module(package)


def write_reference(folder: Path) -> None:
    """Write a page for each public package, and the index of the search."""
    pdoc.render.configure(docformat="google", template_directory=Path(__file__).parent)
    modules = {name: public_module(name) for name in PACKAGES}
    for name, module in modules.items():
        write(folder / f"{name.replace('.', '/')}.html", pdoc.render.html_module(module, modules))
    write(folder / "search.js", pdoc.render.search_index(modules))


def write_pages(folder: Path) -> None:
    """Write the guides, the notebooks, and the index of everything."""
    exporter = HTMLExporter(
        embed_images=True,
        exclude_anchor_links=True,
        mathjax_url="",
        require_js_url="",
        jquery_url="",
    )
    for path, place in PAGES.items():
        if path.suffix == ".ipynb":
            notebook = nbformat.read(path, as_version=4)
        else:
            notebook = as_notebook(path.read_text(encoding="utf-8"))
        if place == "index.html":
            notebook.cells.insert(0, nbformat.v4.new_markdown_cell(list_of_packages()))
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = LINK.sub(lambda link, path=path: linked(link, path), cell.source)
        name = "clipseg3d" if place == "index.html" else path.stem
        html, _ = exporter.from_notebook_node(
            notebook, resources={"metadata": {"name": name, "path": str(path.parent)}}
        )
        write(folder / place, html)


def as_notebook(text: str) -> NotebookNode:
    """Return a page in Markdown as a notebook of one cell, so that all pages look alike."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])


def list_of_packages() -> str:
    """Return a table of the public packages, in Markdown."""
    rows = ["# clipseg3d", "", "| package | what is in it |", "|---|---|"]
    for name in PACKAGES:
        summary = (import_module(name).__doc__ or "").partition("\n")[0]
        rows.append(f"| [{name}]({name.replace('.', '/')}.html) | {summary} |")
    return "\n".join(rows)


def linked(link: re.Match[str], page: Path) -> str:
    """Return a link of a page, led to where its target stands in the documentation.

    A file that is not in the documentation is linked in the repository, if its address is known.
    """
    text, target, heading = link[1], (page.parent / link[2]).resolve(), link[3] or ""
    if not link[2] or not target.exists():  # within the page, or written for the documentation
        return link[0]
    if target in PAGES:
        return f"[{text}]({os.path.relpath(PAGES[target], Path(PAGES[page]).parent)}{heading})"
    if "GITHUB_REPOSITORY" not in os.environ:
        return text
    repository = "/".join((os.environ["GITHUB_SERVER_URL"], os.environ["GITHUB_REPOSITORY"]))
    return f"[{text}]({repository}/blob/main/{target.relative_to(REPO).as_posix()}{heading})"


def write(path: Path, text: str) -> None:
    """Write a file of the documentation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Build everything into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the pages are written")
    folder = parser.parse_args().folder
    for module in ("pdoc", "nbconvert"):
        warnings.filterwarnings("error", module=module)
    write_reference(folder)
    write_pages(folder)
    print(f"Open {folder / 'index.html'} in a browser.")


if __name__ == "__main__":
    main()
