"""The architecture as a test: who may import whom, and how long things may be."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "hyperface_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Modules of ours that a mathematics file may use: data flows one way.
ALLOWED = {
    "precision": set(),
    "geometry": {"precision"},
    "schedules": set(),
    "class_sums": set(),
    "margins": {"geometry"},
    "magnitudes": {"geometry"},
    "peer_margins": {"geometry", "margins"},
    "class_loss": {"geometry", "class_sums", "precision"},
    "losses": {"geometry", "margins", "magnitudes", "class_loss", "precision"},
    "binary": {"geometry", "class_loss", "class_sums", "margins", "precision"},
    "regularizers": {"geometry"},
    "adaptive": set(),
    "class_rows": {"sharding"},
    "variational": {"adaptive", "class_rows", "geometry", "sharding"},
    "family": {
        "adaptive",
        "binary",
        "class_loss",
        "margins",
        "peer_margins",
        "variational",
    },
    "streaming": {"geometry", "class_loss", "class_rows", "class_sums", "sharding"},
    "class_vectors": {"geometry"},
    "sampling": {"sharding"},
    "carried": {"family"},
    "catalogue": {"family", "margins"},
    "classifier": {
        "adaptive",
        "carried",
        "catalogue",
        "class_loss",
        "class_rows",
        "family",
        "geometry",
        "losses",
        "magnitudes",
        "margins",
        "precision",
        "regularizers",
        "schedules",
        "sharding",
        "streaming",
        "variational",
    },
}


def imports(path, *, top_level_only=False):
    """Full names of imported modules."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def uses(path, package):
    return any(
        name == package or name.startswith(package + ".") for name in imports(path)
    )


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_mathematics_imports_only_mathematics(name):
    found = imports(PACKAGE / f"{name}.py")
    ours = {n.split(".")[1] for n in found if n.startswith("hyperface_jax.")}
    assert ours <= ALLOWED[name]
    others = {n.split(".")[0] for n in found} - {"hyperface_jax"}
    standard = others - set(sys.stdlib_module_names)
    assert standard <= {"jax", "jaxtyping", "optax", "numpy"}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("flax.linen", ("backbones.",)),
        ("tensorflow", ()),
        ("torch", ("interop.",)),
        ("grain", ("data.", "evaluation.forward")),
        ("pyarrow", ("evaluation.parquet",)),
        ("onnx", ("export",)),
        ("tensorflow_datasets", ("data.",)),
        ("ml_collections", ("config.", "main", "training.")),
        ("tensorboardX", ("training.metric_writer",)),
        ("orbax", ("training.checkpoint",)),
    ],
)
def test_libraries_stay_where_they_belong(package, allowed):
    users = {name_of(path) for path in FILES if uses(path, package)}
    # A grain of "flax.linen" may also be imported as `from flax import linen`.
    strangers = {
        u for u in users if not any(u == a or u.startswith(a) for a in allowed)
    }
    assert not strangers


def test_metrics_import_no_model_code():
    for name in (
        "similarity",
        "verification",
        "roc",
        "open_set",
        "identification",
        "nearest",
        "best_groups",
        "faiss_index",
        "sub_centres",
        "distractors",
        "mate_counts",
        "templates",
        "ijb",
        "ijb_agreement",
        "discard",
        "integer_table",
        "intervals",
        "groups",
        "results",
    ):
        found = imports(PACKAGE / "evaluation" / f"{name}.py")
        ours = {n for n in found if n.startswith("hyperface_jax.")}
        assert all(n.startswith("hyperface_jax.evaluation.") for n in ours)


# Packages, from the data to the page; each may use those named with it and the modules
# beside the packages, but no command line.
LAYERS = {
    "data": {"data"},
    "backbones": {"backbones"},
    "interop": {"interop", "data"},
    "evaluation": {"evaluation", "data", "backbones"},
    "config": {"config", "evaluation", "data", "backbones"},
    "reporting": {"reporting", "evaluation"},
    "training": {
        *("training", "reporting", "config", "evaluation", "data", "backbones"),
        "planning",
    },
    "planning": {"planning", "training", "config", "backbones"},
}
COMMANDS = {"main", *(p.stem for p in PACKAGE.glob("*.py") if "argparse" in imports(p))}


@pytest.mark.parametrize("package", LAYERS)
def test_packages_use_what_comes_before_them(package):
    found = set()
    for path in (PACKAGE / package).rglob("*.py"):
        ours = {
            n.split(".")[1] for n in imports(path) if n.startswith("hyperface_jax.")
        }
        found |= ours
    assert found & (LAYERS.keys() | COMMANDS) <= LAYERS[package]


def test_every_package_is_in_a_layer():
    assert {p.parent.name for p in PACKAGE.glob("*/__init__.py")} == LAYERS.keys()
    assert {"prepare", "embed", "evaluate", "convert"} <= COMMANDS


def test_configs_import_the_config_module_only():
    for path in (ROOT / "configs").glob("*.py"):
        ours = {n for n in imports(path) if n.startswith("hyperface_jax")}
        assert all(n.startswith("hyperface_jax.config.") for n in ours), path


def test_files_and_functions_are_short():
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 280, path
        for node in ast.walk(ast.parse(text)):
            # default_config is a table, one line a key.
            if isinstance(node, ast.FunctionDef) and node.name != "default_config":
                lines = node.end_lineno - node.lineno + 1
                documented = ast.get_docstring(node)
                lines -= len(documented.splitlines()) if documented else 0
                assert lines <= 90, f"{path}: {node.name} has {lines} lines"


def test_importing_the_package_touches_no_device():
    code = (
        "import sys, hyperface_jax, hyperface_jax.losses; "
        "from hyperface_jax.training import train; "
        "from jax._src import xla_bridge as b; "
        "assert not b._backends, b._backends; "
        "assert 'tensorflow' not in sys.modules; assert 'torch' not in sys.modules; "
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
