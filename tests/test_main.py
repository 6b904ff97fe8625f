"""The command line as a user meets it: wrong input is one line."""

import subprocess
import sys

import pytest
import toy
from conftest import ROOT


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hyperface_jax.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.head.margn=2"], "unknown config key margn"),
        (["--config.head.hh=2"], "error: unknown config key hh (hyperface_jax/config"),
        (["--config.train.batch_size=abc"], "'abc', expected a whole number"),
        (["--config.head.margin=abc"], "'abc', expected a number"),
        (["--workdri=x"], "error: Unknown command line flag 'workdri'."),
        (
            ["--config.head.loss=arcfase"],
            "head.loss is 'arcfase', expected one of",
        ),
        (["--mode=fly"], "fly"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, message, tmp_path):
    found = run("--config=configs/sfr.py", f"--workdir={tmp_path / 'run'}", *arguments)
    assert found.returncode != 0
    last = found.stderr.strip().splitlines()[-1]
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert len(last) < 600
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/none.py", "--workdir=/tmp"],
            "error: --config configs/none.py: no such file",
        ),
        (
            ["--config=configs/sfr.py:data=foo"],
            "error: config argument data='foo' is unknown, expected one of laptop",
        ),
        (["--config=configs/sfr.py"], "error: --workdir is missing"),
        (["--workdir=/tmp"], "error: --config is missing"),
        (
            ["--mode=eval", "--workdir=/nowhere"],
            "error: --workdir /nowhere: no config.json, expected the folder of a run",
        ),
        (
            ["--mode=eval", "--workdir=/nowhere", "--config.eval.flip=false"],
            "error: Unknown command line flag 'config.eval.flip'",
        ),
        (
            ["--config=configs/sfr.py", "--workdir=README.md"],
            f"error: workdir {ROOT / 'README.md'}: is a file, expected a folder",
        ),
        (
            ["--config=configs/sfr.py", "--workdir=az://container/run"],
            "error: workdir az://container/run: Install adlfs",
        ),
        (
            ["--config=configs/sfr.py", "--workdir=hdfs://host/run"],
            "error: workdir hdfs://host/run: unknown kind of address",
        ),
        (
            ["--config=configs/sfr.py", "--workdir=/tmp", "--topology=v5e:2x2"],
            "error: --topology is 'v5e:2x2', expected --mode plan with it",
        ),
        (
            [
                "--config=configs/lfw.py",
                "--workdir=/tmp",
                "--config.data.path=/none.tar",
            ],
            "error: data.fold is 1, expected data.pairs_path to name a pairs file",
        ),
        (
            [
                "--config=configs/sfr.py",
                "--workdir=/tmp",
                "--config.data.path=/none.tar",
            ],
            "error: /none.tar: not found, expected a folder with train.rec",
        ),
    ],
)
def test_wrong_paths_are_one_line(arguments, message):
    found = run(*arguments)
    assert found.returncode == 1
    assert found.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in found.stderr


def test_a_plan_needs_no_workdir_and_leaves_nothing(tmp_path):
    toy.write_folder(tmp_path / "images", people=4)
    path, keys = f"--config.data.path={tmp_path / 'images'}", "--config.data.name=faces"
    found = run("--config=configs/sfr.py", "--mode=plan", path, keys)
    assert found.returncode == 0, found.stderr
    assert "4 people, 16 images" in found.stdout
    assert "memory of a device" in found.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["images"]
    assert "--config is missing" in run("--mode=plan").stderr
