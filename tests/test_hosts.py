"""Several processes as hosts: the same run, and an end for all when one is gone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import toy
import xla
from conftest import ROOT

from hyperface_jax import host_environment, host_watch, hosts

DEVICES = 4


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    toy.write_folder(folder / "images", people=12, images=6)
    toy.write_pairs(folder / "pairs.txt", folds=3)
    return folder


class Command:
    """`main` as one of several hosts, on a share of four forced CPU devices."""

    def __init__(self, faces, workdir, *flags, count=1, host=0, port=0, **keys):
        values = {
            "data.name": "faces",
            "data.path": faces / "images",
            "data.pairs_path": faces / "pairs.txt",
            "data.dev_fraction": 0.25,
            "data.image_size": 32,
            "backbone.name": "sfnet4",
            "backbone.width": 4,
            "backbone.embedding_dim": 8,
            "backbone.dropout": 0.0,
            "head.class_multiple": 64,
            "train.batch_size": 8,
            "train.epochs": 0.0,
            "train.steps": 20,
            "learning_rate.schedule": "constant",
            "learning_rate.peak": 0.01,
            "log.every_steps": 1,
            "log.tensorboard": False,
            "log.checkpoint_every_steps": 10,
            "eval.bootstrap": 10,
            "report.pictures": False,
        }
        values |= {key.replace("__", "."): value for key, value in keys.items()}
        command = [sys.executable, "-m", "hyperface_jax.main"]
        command += ["--config=configs/lfw.py:fold=1", f"--workdir={workdir}", *flags]
        command += [f"--config.{key}={value}" for key, value in values.items()]
        if count > 1:
            command += [f"--coordinator=localhost:{port}"]
            command += [f"--processes={count}", f"--process_id={host}"]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | xla.environment(DEVICES // count),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, timeout=240):
        """(exit status, what it printed)."""
        try:
            out, _ = self.process.communicate(timeout=timeout)
        finally:
            self.process.kill()
        return self.process.returncode, out

    def succeed(self):
        status, out = self.end()
        assert status == 0, out


def start_two(faces, workdir, *flags, keys_of=lambda host: {}, **keys):
    port = free_port()
    return [
        Command(
            faces,
            workdir,
            *flags,
            count=2,
            host=host,
            port=port,
            **keys,
            **keys_of(host),
        )
        for host in range(2)
    ]


def rows_of(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def test_two_processes_are_one_run_and_resume_as_one(faces, tmp_path):
    """Loss, gradients and results; then the last steps on one host alone."""
    one, two = tmp_path / "one", tmp_path / "two"
    Command(faces, one, train__steps=24).succeed()
    for command in start_two(faces, two):
        command.succeed()
    evaluated = json.loads((two / "results.json").read_text())["metrics"]
    Command(faces, two, train__steps=24).succeed()
    got, want = rows_of(two), rows_of(one)
    assert [row["step"] for row in got] == list(range(1, 25))
    for a, b in zip(got, want, strict=True):
        for name in ("loss", "grad_norm_backbone", "grad_norm_prototypes"):
            assert a[name] == pytest.approx(b[name], rel=1e-3), (a["step"], name)
    results = json.loads((one / "results.json").read_text())["metrics"]
    found = json.loads((two / "results.json").read_text())["metrics"]
    assert found == pytest.approx(results, rel=1e-3, abs=1e-4)
    assert evaluated.keys() == results.keys()


def until_training(commands, workdir):
    """Waits for the first steps."""
    started = time.monotonic()
    while len(rows_of(workdir)) < 3:
        assert all(c.process.poll() is None for c in commands), commands[0].end()
        assert time.monotonic() - started < 240
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("what", "victim", "message"),
    [
        (signal.SIGKILL, 1, r"error: host 1 .*has ended before the run was finished"),
        (signal.SIGTERM, 0, r"error: host 0 has ended before the run was finished"),
        (signal.SIGSTOP, 0, r"error: host 0 has given no sign of life for 5 s"),
    ],
    ids=["killed", "terminated", "frozen"],
)
def test_a_lost_host_ends_the_other(what, victim, message, faces, tmp_path):
    commands = start_two(
        faces, tmp_path / "run", "--lost_host_after=5", train__steps=100_000
    )
    until_training(commands, tmp_path / "run")
    commands[victim].process.send_signal(what)
    gone = time.monotonic()
    try:
        status, out = commands[1 - victim].end(timeout=60)
    finally:
        commands[victim].process.kill()
    seconds = time.monotonic() - gone
    assert seconds < (5 if what != signal.SIGSTOP else 5 + 5)
    assert status not in (0, None)
    # A collective may notice the broken connection before the watch does.
    other = "error: another host is gone"
    assert other in out or re.search(message, out), out


def test_a_host_that_never_arrives(faces, tmp_path):
    flags = ["--wait_for_hosts=3"]
    command = Command(
        faces, tmp_path / "run", *flags, count=2, host=1, port=free_port()
    )
    status, out = command.end(timeout=60)
    assert status == host_watch.EXIT_STATUS
    assert "error: host 1 has waited 3 s for all 2 hosts at localhost:" in out
    assert not (tmp_path / "run").exists()


def test_hosts_with_different_configs(faces, tmp_path):
    commands = start_two(
        faces,
        tmp_path / "run",
        head__scale="30",
        keys_of=lambda host: {"head__margin": 1.4 + 0.1 * host},
    )
    ends = [command.end() for command in commands]
    for host, (status, out) in enumerate(ends):
        assert status not in (0, None)
        (said,) = (line for line in out.splitlines() if line.startswith("error"))
        assert said == (
            "error: hosts disagree on config.head.margin: host 1 differs from host 0; "
            f"this is host {host}, with {1.4 + 0.1 * host}"
        )
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", 2), "--process_id -1, expected all three or none"),
        (("", 2, 0), "--coordinator is '', --processes 2, --process_id 0, expected"),
        (("localhost:1", 2, 2), "--process_id is 2, expected 0 to 1"),
        (("localhost", 2, 0), "--coordinator is 'localhost', expected host:port"),
    ],
)
def test_flags_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        hosts.start(*arguments)


class Ends(list):
    def wait(self, count=1):
        started = time.monotonic()
        while len(self) < count and time.monotonic() - started < 10:
            time.sleep(0.02)
        return list(self)


def watch_three(silence):
    ends = [Ends() for _ in range(3)]
    server = host_watch.Server(2, "token", silence=silence, end=ends[0].append)
    clients = []
    for k in (1, 2):
        where = ("localhost", server.port)
        name, end = f"host {k}", ends[k].append
        clients.append(
            host_watch.Client(where, "token", name, silence=silence, end=end)
        )
    time.sleep(0.2)
    return server, clients, ends


def test_a_loss_is_told_to_all():
    server, clients, ends = watch_three(silence=5.0)
    clients[0]._line._connection.shutdown(socket.SHUT_RDWR)
    for k in (0, 2):
        (said,) = ends[k].wait()
        assert said.startswith("host 1 has ended before the run was finished")
    server.finish()


def test_an_orderly_end_is_no_loss():
    server, clients, ends = watch_three(silence=1.0)
    for side in (*clients, server):
        side.finish()
    time.sleep(1.5)
    assert ends == [[], [], []]


def test_strangers_on_the_port_change_nothing():
    """Who says nothing, who says something else, who is gone at once."""
    ends = [Ends(), Ends()]
    server = host_watch.Server(1, "token", silence=2.0, end=ends[0].append)
    where = ("localhost", server.port)
    silent = socket.create_connection(where)
    for data in (b"GET / HTTP/1.1\r\n", b"\xff\xfe\n", b""):
        with socket.create_connection(where) as stranger:
            stranger.sendall(data)
    time.sleep(0.3)
    client = host_watch.Client(
        where, "token", "host 1", silence=2.0, end=ends[1].append
    )
    time.sleep(2.5)  # both sides have had signs of life of each other
    assert ends == [[], []]
    client._line._connection.shutdown(socket.SHUT_RDWR)
    assert ends[0].wait()[0].startswith("host 1 has ended")
    silent.close()


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({}, None),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, None),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, [0, 1, 2]),
        ({"SLURM_LOCALID": "0", "SLURM_TASKS_PER_NODE": "1"}, [0, 1, 2]),
        ({"SLURM_LOCALID": "0", "SLURM_TASKS_PER_NODE": "16"}, None),
    ],
)
def test_one_slurm_task_a_node_takes_all_its_gpus(variables, devices):
    found = host_environment.local_device_ids(
        {"CUDA_VISIBLE_DEVICES": "4,5,7", **variables}
    )
    assert found == devices


def test_an_address_alone_is_not_enough(tmp_path):
    command = [sys.executable, "-m", "hyperface_jax.main", "--config=configs/sfr.py"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=os.environ
        | xla.environment(1)
        | {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    (said,) = (x for x in done.stderr.splitlines() if x.startswith("error"))
    assert said.endswith("give --coordinator, --processes and --process_id)")


def test_an_unforeseen_error_ends_all_hosts():
    """Not only errors that we foresee: an ordinary exit would wait for the others."""
    port = free_port()
    code = (
        "import time; from absl import app; from hyperface_jax import main; "
        "main._dispatch = lambda: time.sleep(100) if {host} else None + 1; "
        "app.run(main.main, flags_parser=main.parse_flags)"
    )
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                *("-c", code.format(host=host)),
                f"--coordinator=localhost:{port}",
                "--processes=2",
                f"--process_id={host}",
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host in range(2)
    ]
    out = [process.communicate(timeout=60)[0] for process in processes]
    assert time.monotonic() - started < 50
    assert [process.returncode for process in processes] == [1, host_watch.EXIT_STATUS]
    assert "TypeError" in out[0]
    assert "error: host 0 has ended before the run was finished" in out[1]


def test_a_deadline_is_kept_or_called_off():
    said = Ends()
    with host_watch.Deadline(0.05, "too late", said.append):
        time.sleep(0.3)
    with host_watch.Deadline(0.2, "not this", said.append):
        pass
    time.sleep(0.4)
    assert said == ["too late"]
