"""Execute notebooks and store their outputs: all notebooks, or those that are named.

    python examples/execute_notebooks.py quickstart text_guidance

Needs ``pip install nbclient ipykernel``. Each notebook runs in a temporary folder. Warnings and
progress bars are not stored, because they differ from run to run.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def execute(path: Path) -> None:
    """Execute one notebook and write it back."""
    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    with tempfile.TemporaryDirectory() as work:
        if (FOLDER / "results").is_dir():
            shutil.copytree(FOLDER / "results", Path(work, "results"))
        NotebookClient(
            notebook, timeout=1800, record_timing=False, resources={"metadata": {"path": work}}
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata = metadata
    nbformat.write(notebook, path)


def main() -> None:
    """Execute the named notebooks, or all."""
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    for name in parser.parse_args().names or names:
        start = time.perf_counter()
        execute(FOLDER / f"{name}.ipynb")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
