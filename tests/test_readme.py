"""What README and docs say: files that exist, code that runs."""

import re

import jax.numpy as jnp
import pytest
from conftest import ROOT
from test_config import load_file

from hyperface_jax import class_loss, class_vectors
from hyperface_jax import config as config_lib

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"\b(?:configs|notebooks|benchmarks|docs)/[\w/]+\.\w+", text)
    for name in {*links, *named}:
        places = (ROOT / name, page.parent / name)
        assert any(place.exists() for place in places), name


def test_commands_of_the_docs_have_valid_configs():
    found = 0
    for page in PAGES:
        for name, arg in re.findall(
            r"--config configs/(\w+)\.py(?::(\S+))?", page.read_text()
        ):
            config = load_file(name).get_config(arg.strip("\\`.,") or None)
            config_lib.validate(config)
            found += 1
    assert found > 10


def test_the_table_of_what_classes_cost():
    """Prototypes, momentum and gradient of the padded classes, in GB."""
    page = (ROOT / "docs" / "gpu.md").read_text()
    multiple = config_lib.default_config().head.class_multiple
    rows = re.findall(
        r"^\| ([\d ]+?) ?(?:\(\w+\) )?\| ([\d.]+) GB \| ([\d.]+)", page, re.M
    )
    assert len(rows) == 4
    for classes, *cells in rows:
        padded = class_vectors.padded_classes(int(classes.replace(" ", "")), multiple)
        for devices, cell in zip((1, 8), cells, strict=True):
            size = 3 * 4 * 512 * padded / devices / 1e9
            digits = len(cell.partition(".")[2])
            assert f"{size:.{digits}f}".lstrip("0") == cell, (classes, devices)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((8, 16), (8,), (10, 15)), r"\[8, 16\], \[8\], \[10, 15\], expected \[B, D\]"),
        (((8, 16), (8, 1), (10, 16)), r"\[8, 1\]"),
        (((16,), (8,), (10, 16)), r"are \[16\]"),
    ],
)
def test_wrong_shapes_are_named(shapes, message):
    x, y, w = (jnp.zeros(s, int if k == 1 else float) for k, s in enumerate(shapes))
    with pytest.raises(ValueError, match=message):
        class_loss.check_shapes(x, y, w)
    with pytest.raises(ValueError, match="labels are float32, expected integers"):
        class_loss.check_shapes(jnp.zeros((8, 16)), jnp.zeros(8), jnp.zeros((10, 16)))
