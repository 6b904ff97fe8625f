"""The default job in small form with its workdir in a bucket of Google's storage.

An emulator of the service runs in this process; the job reaches it as it would reach
the real one: workdir, metrics and report through gcsfs, checkpoints by TensorStore.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest
from conftest import ROOT

SETTINGS = (
    "data.config=tiny",
    "backbone.width=4",
    "backbone.embedding_dim=16",
    "train.batch_size=16",
    "train.epochs=0",
    "learning_rate.warmup_steps=0",
    "log.every_steps=2",
    "log.checkpoint_every_steps=4",
    "log.best_metric=",
    "eval.every_steps=0",
    "eval.bootstrap=10",
)


@pytest.fixture
def bucket():
    """Address of the service; it has one bucket, "faces", empty."""
    server_module = pytest.importorskip("gcp_storage_emulator.server")
    with contextlib.redirect_stdout(io.StringIO()):
        server = server_module.create_server(
            "localhost", 0, in_memory=True, default_bucket="faces"
        )
        server.start()
    host, port = server._api._httpd.server_address[:2]
    yield f"http://{host}:{port}"
    server.stop()


def run(address, steps):
    command = [sys.executable, "-m", "hyperface_jax.main", "--config", "configs/sfr.py"]
    command += ["--workdir", "gs://faces/run", f"--config.train.steps={steps}"]
    command += [f"--config.{setting}" for setting in SETTINGS]
    environment = os.environ | {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        # One device, and optimised: what users run.
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def read(address, name):
    name = urllib.parse.quote(f"run/{name}", safe="")
    url = f"{address}/storage/v1/b/faces/o/{name}?alt=media"
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def names(address):
    with urllib.request.urlopen(f"{address}/storage/v1/b/faces/o") as answer:
        return {item["name"].lstrip("/") for item in json.load(answer)["items"]}


def test_a_run_lives_in_a_bucket_and_resumes(bucket):
    run(bucket, 4)
    said = run(bucket, 6)
    assert "gs://faces/run at step 4: resuming" in said
    rows = [json.loads(line) for line in read(bucket, "metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert json.loads(read(bucket, "results.json"))["step"] == 6
    assert b"</html>" in read(bucket, "report.html")
    found = names(bucket)
    assert any(name.startswith("run/tensorboard/events") for name in found)
    assert any(name.startswith("run/checkpoints/6/") for name in found)
    assert not any(name.endswith(".tmp") for name in found)
    assert not list(ROOT.glob("gs:*"))
