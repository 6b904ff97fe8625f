"""As a library: the printed code trains, and public names are documented."""

import ast
import configparser
import importlib
import inspect
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

import hyperface_jax
from hyperface_jax import geometry, margins

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "library.md").read_text()
BLOCKS = {
    section.partition("\n")[0]: code
    for section in PAGE.split("\n## ")
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
}
CARRIED = "A trained bias, a memory, random margins"


def run(code, **names):
    exec(code, names)
    return names


def unit(rows):
    return np.allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-6)


def test_the_readmes_code_trains_as_printed():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = run(code)
    network, w = jax.random.normal(jax.random.key(0), (2, 32, 16))
    people, noise = jax.random.normal(jax.random.key(1), (2, 64, 32))
    labels = jnp.arange(64) % 10
    params = {"network": network, "prototypes": geometry.l2_normalize(w[:10])}
    state, values = names["tx"].init(params), []
    for _ in range(30):
        batch = (people[labels] + 0.3 * noise, labels)
        params, state, value = names["update"](params, state, *batch)
        values.append(value)
    assert values[-1] < values[0] / 2
    assert unit(params["prototypes"])


@pytest.mark.parametrize(
    ("section", "prototypes"),
    [
        ("Flax Linen", lambda names: names["state"].params["prototypes"]),
        ("Flax NNX", lambda names: names["model"].prototypes[...]),
        ("Equinox", lambda names: names["model"].prototypes),
        (CARRIED, None),
    ],
)
def test_each_block_of_the_docs_trains_as_printed(section, prototypes):
    if section == "Equinox":
        pytest.importorskip("equinox")
    names = run(BLOCKS[section])
    assert len(names["values"]) == 30
    assert names["values"][-1] < names["values"][0] / 2
    if prototypes:
        assert unit(prototypes(names))
    else:
        assert abs(names["memory"]["norm_mean"] - 20) > 0.1  # it moved from its start


def test_the_margin_of_the_docs_is_a_loss(monkeypatch):
    monkeypatch.setitem(margins.MARGINS, "steep", None)  # taken out afterwards
    names = run(BLOCKS["A margin of your own"])
    assert names["loss"].shape == (4,)
    assert jnp.isfinite(names["loss"]).all()


def test_no_block_of_the_docs_is_left_out():
    assert len(BLOCKS) == PAGE.count("```python") == 5


@pytest.mark.parametrize(
    "name",
    ["adacos", "curricularface", "elasticface_arc", "sphereface2_c", "vpl_arcface"],
)
def test_the_step_that_carries_serves_other_losses(name):
    code = BLOCKS[CARRIED].replace('"adaface"', f'"{name}"')
    names = run(code)
    assert names["values"][-1] < names["values"][0]
    bias = names["params"]["head"].get("bias")
    assert bias is None or bias != names["head"].trained()["bias"]


def test_the_package_says_that_it_is_typed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["options.package_data"]["hyperface_jax"] == "py.typed"
    assert (ROOT / "hyperface_jax" / "py.typed").exists()


def test_public_modules_are_listed_and_loaded_when_used():
    for name in hyperface_jax.__all__:
        assert re.search(rf"\b{name}\b", hyperface_jax.__doc__ or ""), name
        assert f"`{name}`" in PAGE, name
        assert getattr(hyperface_jax, name).__name__ == f"hyperface_jax.{name}"
    assert {*hyperface_jax.__all__} <= {*dir(hyperface_jax)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hyperface_jax.nothing
    code = (
        "import hyperface_jax, sys; "
        "assert 'jax' not in sys.modules; "
        "assert hyperface_jax.losses.plain_softmax; "
        "from hyperface_jax import *; assert margins.MARGINS"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def own(module):
    """Name -> object of what a module defines for others."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
    }


def functions(module):
    """(Name, function) of its public functions and methods."""
    for name, value in own(module).items():
        if not inspect.isclass(value):
            yield name, value
            continue
        for method, inner in vars(value).items():
            public = method == "__call__" or not method.startswith("_")
            if public and inspect.isfunction(inner):
                yield f"{name}.{method}", inner


MODULES = [
    importlib.import_module(f"hyperface_jax.{name}") for name in hyperface_jax.__all__
]


def raising():
    """Names of private and check functions that raise, or call such that do."""
    bodies = {
        node.name: node
        for module in MODULES
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.FunctionDef) and re.match(r"_[a-z]|check", node.name)
    }
    found: set = set()
    while (
        more := {name for name, node in bodies.items() if raises(node, found)} - found
    ):
        found |= more
    return found


def raises(node, known):
    """Whether a function raises a ValueError, or calls by name what is `known` to."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Raise):
            return True
        if isinstance(inner, ast.Call):
            name = getattr(inner.func, "attr", getattr(inner.func, "id", None))
            if name in known:
                return True
    return False


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.partition(".")[2])
def test_public_names_are_documented_and_typed(module):
    assert module.__doc__
    known = raising()
    for name, value in own(module).items():
        assert inspect.getdoc(value), name
    for name, function in functions(module):
        documentation = inspect.getdoc(function)
        assert documentation, name
        signature = inspect.signature(function)
        assert signature.return_annotation is not signature.empty, name
        for parameter in signature.parameters.values():
            typed = parameter.annotation is not parameter.empty
            assert typed or parameter.name == "self", (name, parameter.name)
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
        if raises(tree, known):
            assert "ValueError" in documentation, name


def test_records_document_every_field():
    """Named tuples and dataclasses list their attributes."""
    for module in MODULES:
        for name, value in own(module).items():
            for field in value.__annotations__ if inspect.isclass(value) else ():
                assert re.search(rf"^\s*{field}:", value.__doc__, re.M), (name, field)
