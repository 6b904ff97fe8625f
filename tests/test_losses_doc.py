"""docs/losses.md is what the code says."""

import importlib.util
import re

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from hyperface_jax import family
from hyperface_jax.catalogue import PLAIN_SOFTMAX, loss_names
from hyperface_jax.margins import MarginContext

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw", DOCS / "draw_losses.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_code_generates(draw):
    """Else: python docs/draw_losses.py."""
    assert (DOCS / "losses.md").read_text() == draw.page()


def test_every_loss_has_a_row():
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "losses.md").read_text(), re.M)
    assert rows == [PLAIN_SOFTMAX, *family.names()] == list(loss_names())


def test_losses_of_a_panel_have_the_same_functions(draw):
    drawn = [name for names in draw.PANELS for name in names]
    assert sorted(drawn) == sorted(loss_names()) == sorted(draw.FORMULAS)
    cos = jnp.linspace(-1, 1, 41)[:, None]
    for names in draw.PANELS:
        members = [family.member(name) for name in names if name != PLAIN_SOFTMAX]
        functions = []
        for margin in (member.margin for member in members):
            context = MarginContext(margin.default)
            psi, eta = margin.psi(cos, context), margin.eta(cos, cos, context)
            functions.append(np.stack([psi, eta]))
        for other in functions[1:]:
            np.testing.assert_array_equal(other, functions[0], str(names))


def test_the_picture_is_small():
    assert (DOCS / "losses.png").stat().st_size <= 250_000
