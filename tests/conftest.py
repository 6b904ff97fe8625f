"""Strict JAX, four CPU devices, and where the shared material is."""

import atexit
import os
import shutil
import tempfile

import xla

os.environ.update(xla.environment(devices=4))

# Often another process compiled the same program: all of them share what one of them
# compiled. The first process makes and removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="hyperface_jax_tests.")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)

from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


LONG = ("test_notebooks", "test_hosts", "test_bucket_workdir", "test_train")


def pytest_collection_modifyitems(items):
    """Files of few and long tests first: at the end one process would wait for them."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture
def strict_promotion():
    """Mathematics must not mix dtypes silently."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared():
    """Folder of the oracles and of the real faces; absent outside the team."""

    def find(relative):
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"{relative} is not on this machine")
        return path

    return find
