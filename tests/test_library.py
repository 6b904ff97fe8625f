"""The package as a library: docs/library.md runs, public things are described."""

import importlib
import inspect
import re

import pytest
from conftest import ROOT

import hyperface_jax

BLOCKS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.S
)


@pytest.mark.parametrize("block", range(1, len(BLOCKS)))
def test_the_blocks_run_after_the_first(block):
    """Each with what the first has defined; their own asserts say that they train."""
    if "equinox" in BLOCKS[block]:
        pytest.importorskip("equinox")
    names: dict = {}
    exec(BLOCKS[0], names)
    exec(BLOCKS[block], names)


def test_public_modules_are_listed_and_import_lazily():
    for name in hyperface_jax.__all__:
        assert getattr(hyperface_jax, name) is importlib.import_module(
            f"hyperface_jax.{name}"
        )
    with pytest.raises(AttributeError, match="nonsense"):
        _ = hyperface_jax.nonsense
    assert (ROOT / "hyperface_jax" / "py.typed").exists()


@pytest.mark.parametrize("name", hyperface_jax.__all__)
def test_public_functions_are_typed_and_described(name):
    module = importlib.import_module(f"hyperface_jax.{name}")
    assert module.__doc__
    for key, thing in vars(module).items():
        theirs = getattr(thing, "__module__", None) != module.__name__
        if key.startswith("_") or theirs or not callable(thing):
            continue
        assert inspect.getdoc(thing), f"{name}.{key} has no docstring"
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            for parameter in signature.parameters.values():
                assert parameter.annotation is not parameter.empty, f"{name}.{key}"
            assert signature.return_annotation is not signature.empty, f"{name}.{key}"
