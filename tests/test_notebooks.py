"""The notebooks run from top to bottom and are committed without outputs."""

import os

import nbclient
import nbformat
import pytest
import xla
from conftest import ROOT

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_runs_from_top_to_bottom(path):
    # What a reader's machine has: one device, not conftest's four.
    env = os.environ | xla.environment(devices=1)
    client = nbclient.NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=300,  # seconds a cell
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    files = sorted(FOLDER.rglob("*"))
    small = {"HYPERFACE_NOTEBOOK_STEPS": "12", "HYPERFACE_RUN": "none"}
    client.execute(env=env | small)
    assert sorted(FOLDER.rglob("*")) == files


@each_notebook
def test_is_valid_small_and_stripped(path):
    assert path.stat().st_size < 200_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert cell.id
        assert "execution" not in cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
