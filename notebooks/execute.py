"""Runs notebooks/tour.ipynb from its first cell to its last and writes it back with its outputs.

`python notebooks/execute.py`; needs nbclient and ipykernel. Nothing of the machine or the moment is kept: no time
stamps, no versions, no paths, and no warnings, which name paths.
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

TOUR = Path(__file__).parent / "tour.ipynb"


def main() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    root = TOUR.parent.parent
    options = {"timeout": 300, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, **options, resources={"metadata": {"path": str(root)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, TOUR)


if __name__ == "__main__":
    main()
