"""Draws docs/sphere.png: the picture of a notebook's cell that has the tag "picture".

python docs/draw_from_notebooks.py
"""

import base64
from pathlib import Path

import nbclient
import nbformat

HERE = Path(__file__).resolve().parent
NOTEBOOKS = HERE.parent / "notebooks"
PICTURES = {"sphere.png": "03_sphere"}


def picture_of(name: str) -> bytes:
    """Runs a notebook; the PNG below its tagged cell."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(NOTEBOOKS)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=where).execute()
    (cell,) = (c for c in notebook.cells if "picture" in c.metadata.get("tags", []))
    (png,) = (o.data["image/png"] for o in cell.outputs if "image/png" in o.data)
    return base64.b64decode(png)


def main() -> None:
    for file, name in PICTURES.items():
        (HERE / file).write_bytes(picture_of(name))


if __name__ == "__main__":
    main()
