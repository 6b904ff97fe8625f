"""Draws docs/sphere.png and hardest.jpg: of notebooks' cells with the tag "picture".

python -m hyperface_jax.main --config configs/sfr.py --workdir runs/sfr
python docs/draw_from_notebooks.py [--run runs/sfr]
"""

import argparse
import base64
import io
import os
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

HERE = Path(__file__).resolve().parent
NOTEBOOKS = HERE.parent / "notebooks"
PICTURES = {"sphere.png": "03_sphere", "hardest.jpg": "04_read_a_model"}


def picture_of(name: str, run: Path) -> bytes:
    """Runs a notebook; the PNG below its tagged cell."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(NOTEBOOKS)}}
    client = nbclient.NotebookClient(notebook, timeout=900, resources=where)
    client.execute(env=os.environ | {"HYPERFACE_RUN": str(run)})
    (cell,) = (c for c in notebook.cells if "picture" in c.metadata.get("tags", []))
    (png,) = (o.data["image/png"] for o in cell.outputs if "image/png" in o.data)
    return base64.b64decode(png)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=HERE.parent / "runs" / "sfr")
    parser.add_argument("--only", default="", help="a name of PICTURES")
    a = parser.parse_args()
    run = a.run.resolve()
    if not (run / "config.json").exists():
        parser.error(f"no run in {run}: train one, or name it with --run")
    for file, name in PICTURES.items():
        if a.only in ("", file):
            picture = Image.open(io.BytesIO(picture_of(name, run)))
            is_photograph = file.endswith(".jpg")
            picture.convert("RGB" if is_photograph else "RGBA").save(HERE / file)


if __name__ == "__main__":
    main()
