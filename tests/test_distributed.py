"""Processes that train together: they find each other or say who is missing, and a run outlives any of them."""

import contextlib
import csv
import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from doomed_run import Doom, Lives
from made_data import lsp_labels, write_lspet

from rmpe_jax.train.distributed import JoinError, _found_by_jax, call_roll, join

pytestmark = pytest.mark.survival

STEPS, BATCH, PATIENCE = 14, 8, 10
# As in parallel_steps: a rate so low that rounding, which Adam blows up, stays small.
EXPERIMENT = f"""
from rmpe_jax.config import AugmentConfig, DataConfig, Experiment, HourglassConfig, OptimConfig, RunConfig

experiment = Experiment(
    name="tiny",
    skeleton="lsp_14",
    model=HourglassConfig(stacks=1, features=8, depth=1, input_size=(32, 32)),
    data=DataConfig(canvas=48),
    augment=AugmentConfig(flip=0.5, scale=0.05, shift=0.02, rotation=5.0, colour=0.1),
    optim=OptimConfig(steps={STEPS}, batch={BATCH}, learning_rate=5e-4, warmup=2, average=0.9, sigma=1.0),
    run=RunConfig(log_every=1, evaluate_every=7, save_every=2),
)
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# The roll


def call_all(numbers, *, timeout=30.0, port=None, host="127.0.0.1"):
    """What the roll says to each of some processes, given as (processes, process): None, or its error."""
    port, said = port or free_port(), {}

    def call(place, processes, process):
        try:
            call_roll(f"{host}:{port}", processes, process, timeout=timeout)
            said[place] = None
        except JoinError as error:
            said[place] = str(error)

    threads = [threading.Thread(target=call, args=(place, *both)) for place, both in enumerate(numbers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [said[place] for place in range(len(numbers))]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [0]])
def test_processes_that_all_come_are_let_go_on(order):
    assert call_all([(len(order), number) for number in order]) == [None] * len(order)


def test_a_process_that_comes_late_is_waited_for():
    port, late = free_port(), []
    timer = threading.Timer(1.0, lambda: late.append(call_all([(2, 0)], port=port)))
    timer.start()
    assert call_all([(2, 1)], port=port) == [None]
    timer.join(30)
    assert late == [[None]]


def test_everybody_is_told_who_did_not_come():
    said = call_all([(4, 0), (4, 2)], timeout=1.5)
    assert said == ["process 1, 3 of 4 did not join within 1.5 seconds"] * 2


def test_without_process_0_every_other_names_it():
    port = free_port()
    for number, line in zip((1, 2), call_all([(3, 1), (3, 2)], timeout=1.0, port=port), strict=True):
        where = f"process 0 at 127.0.0.1:{port}, which did not answer"
        assert line == f"process {number} waited 1 seconds for {where}"


def test_two_processes_with_one_number_are_told_so():
    assert call_all([(3, 0), (3, 1), (3, 1)])[0] == "two processes have the number 1"


def test_another_number_of_processes_is_told_to_both():
    said = call_all([(2, 0), (3, 1)])
    assert said == ["process 1 was started for 3 processes, process 0 for 2"] * 2


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        b"[1]\n",
        b"[1, 2, 3]\n",
        b"null\n",
        b'["one", 2]\n',
        b"[[1], 2]\n",
        b"[Infinity, 2]\n",
        b"",
    ],
)
def test_a_stranger_who_knocks_is_ignored(words):
    port, said = free_port(), []
    leader = threading.Thread(target=lambda: said.extend(call_all([(2, 0)], port=port)))
    leader.start()
    with knock(port) as stranger:
        stranger.sendall(words)
        stranger.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
    assert call_all([(2, 1)], port=port) == [None]
    leader.join(30)
    assert said == [None]


def knock(port):
    for _ in range(100):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("nobody listens")


def test_a_port_in_use_is_named():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        (said,) = call_all([(2, 0)], port=port)
    assert said.startswith(f"process 0 cannot listen at port {port}: Address already in use")


@pytest.mark.parametrize("coordinator", ["", "host", "host:", ":80", "host:port", "host:0", "host:65536", "host:-1"])
def test_a_malformed_address_is_named(coordinator):
    with pytest.raises(JoinError, match=re.escape(f"expected HOST:PORT, got {coordinator!r}")):
        call_roll(coordinator, 2, 1, timeout=1.0)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_process_0_is_reached_over_both_protocols(host):
    assert call_all([(2, 0), (2, 1)], host=host) == [None, None]
    port = free_port()
    (line,) = call_all([(2, 1)], host=host, port=port, timeout=1.0)
    assert line == f"process 1 waited 1 seconds for process 0 at {host}:{port}, which did not answer"


def test_what_belongs_together_is_given_together():
    with pytest.raises(JoinError, match="given together or not"):
        join("127.0.0.1:1", 2)
    with pytest.raises(JoinError, match="process 2 of 2: the numbers go from 0 to 1"):
        join("127.0.0.1:1", 2, 2)


# Clusters that JAX finds

TASK = """
from rmpe_jax.train.distributed import JoinError, join
import jax

try:
    join(timeout=WAIT)
except JoinError as error:
    print(error)
else:
    print(jax.process_index(), jax.process_count())
    jax.distributed.shutdown()
"""


def started_task(number, *, wait, job):
    """One of two tasks, with the variables that SLURM would set."""
    about = {"JOB_ID": job, "STEP_NODELIST": "localhost", "NTASKS": 2, "PROCID": number, "LOCALID": number}
    slurm = {f"SLURM_{name}": str(value) for name, value in about.items()}
    command = [sys.executable, "-c", TASK.replace("WAIT", str(wait))]
    return subprocess.Popen(command, env=os.environ | slurm, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_job():
    """A job number for which JAX chooses a port that is free."""
    for job in range(os.getpid(), os.getpid() + 4096):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", job % 4096 + 61440))
            return job
    raise AssertionError("no port is free")


@pytest.mark.slow
def test_tasks_of_slurm_find_each_other():
    job = free_job()
    tasks = [started_task(number, wait=60, job=job) for number in range(2)]
    assert [task.communicate(timeout=120)[0] for task in tasks] == ["0 2\n", "1 2\n"]


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (0, "process 1 of 2 did not join within 2 seconds\n"),
        (1, r"process 1 waited 2 seconds for process 0 at localhost:\d+, which did not answer\n"),
    ],
)
def test_a_task_of_slurm_that_never_starts_is_named(number, line):
    task = started_task(number, wait=2, job=free_job())
    output, errors = task.communicate(timeout=120)
    # JAX itself aborts with a trace of its stack.
    assert task.returncode == 0 and re.fullmatch(line, output), errors


def test_a_jax_that_hides_its_clusters_joins_without_a_roll(monkeypatch):
    for hidden in (SimpleNamespace(), SimpleNamespace(ClusterEnv=SimpleNamespace())):
        monkeypatch.setattr(importlib, "import_module", lambda name, hidden=hidden: hidden)
        assert _found_by_jax(1) == (None, None, None)


# Runs


class Runs:
    """Runs of one experiment, by any number of processes."""

    def __init__(self, lives, folder):
        self._lives, self._folder = lives, folder
        (folder / "tiny.py").write_text(EXPERIMENT)
        write_lspet(folder, labels=lsp_labels(20))

    def command(self, out, *options):
        settings = ["--set", f"data.lspet={self._folder}", "--workers", "1"]
        return ["train", str(self._folder / "tiny.py"), "--out", str(out), *settings, *options]

    def alone(self, out, *options, devices=1, doom=None):
        return self._lives.live({"arguments": self.command(out, *options), "devices": devices, "doom": doom})[0]

    def together(self, out, processes, *options, devices=1, dooms=None, only=None, patience=PATIENCE):
        """The lives of all processes, or of some; ``dooms`` gives a number's; ``out`` may be one for each."""
        where = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--process-count", str(processes)]
        where += ["--peer-timeout", str(patience)]
        orders = []
        for number in range(processes) if only is None else only:
            folder = out[number] if isinstance(out, list) else out
            command = self.command(folder, *options, *where, "--process", str(number))
            orders.append({"arguments": command, "devices": devices, "doom": (dooms or {}).get(number)})
        return self._lives.live(*orders)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with Lives(folder) as lives:
        yield Runs(lives, folder)


@pytest.fixture(scope="module")
def alone(runs, tmp_path_factory):
    """The log of one process with one device."""
    out = tmp_path_factory.mktemp("alone")
    life = runs.alone(out)
    assert life.status == 0, life.output
    return rows_of(out)


def rows_of(out):
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(out, alone):
    """The same lines, each once, with the losses of one process to rounding."""
    rows = rows_of(out)
    assert [row["step"] for row in rows] == [row["step"] for row in alone]
    for name, rtol in {"loss": 1e-5, "gradient_norm": 2e-4, "learning_rate": 1e-6}.items():
        ours, theirs = ([float(row[name]) for row in lines if row[name]] for lines in (rows, alone))
        np.testing.assert_allclose(ours, theirs, rtol=rtol, err_msg=name)
    assert (out / "tiny.safetensors").exists()


def assert_only_process_0_tells(lives):
    assert "weights: " in lives[0].output and "PCK@0.2" in lives[0].output
    for life in lives[1:]:
        # JAX's own runtime says a word or two.
        assert not re.search(r"weights|PCK|loss|it/s|rmpe", life.output), life.output


def newest(out):
    return max((int(path.name) for path in (out / "checkpoints").iterdir() if path.name.isdecimal()), default=0)


@pytest.mark.slow
def test_a_run_goes_on_with_one_process_after_one_of_two_was_killed(runs, alone, tmp_path):
    lives = runs.together(tmp_path, 2, devices=2, dooms={1: Doom("step", 8)})
    assert lives[1].status == -9 and lives[0].status not in (0, None)
    struck = lives[1].notes[-1]["time"]
    # The runtime gives the others a few seconds more than the time without a sign of life.
    assert lives[0].ended - struck < PATIENCE + 30
    saved = newest(tmp_path)
    life = runs.alone(tmp_path, devices=4)
    assert life.status == 0 and life.noted("first") == saved and 0 < saved < 8
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_a_run_goes_on_with_four_processes_after_one_of_two_was_told_to_stop(runs, alone, tmp_path):
    lives = runs.together(tmp_path, 2, devices=2, dooms={1: Doom("step", 5, deed="SIGTERM")})
    (line,) = lives[0].errors
    asked = re.fullmatch(r"rmpe: asked to stop; saved after step (\d+), the same command goes on from there", line)
    assert asked and [life.status for life in lives] == [1, 1]
    step = int(asked[1])
    assert all(f"saved after step {step}," in life.output for life in lives)
    assert newest(tmp_path) == step < STEPS

    lives = runs.together(tmp_path, 4, "--mapping", "sharded", "--on-device", patience=60)
    assert [life.status for life in lives] == [0] * 4, [life.output for life in lives]
    assert [life.noted("first") for life in lives] == [step] * 4
    assert_only_process_0_tells(lives)
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_ctrl_c_in_one_of_two_processes_saves_the_same_step_in_both(runs, tmp_path):
    lives = runs.together(tmp_path, 2, dooms={0: Doom("step", 3, deed="SIGINT")})
    assert [life.status for life in lives] == [1, 1], [life.output for life in lives]
    step = newest(tmp_path)
    assert 3 <= step < STEPS and all(f"asked to stop; saved after step {step}," in life.output for life in lives)


@pytest.mark.slow
def test_a_checkpoint_that_one_process_alone_cannot_read_is_taken_by_none_and_stays(runs, tmp_path):
    # Two folders stand for one that two hosts see differently.
    outs = [tmp_path / "first", tmp_path / "second"]
    assert runs.alone(outs[0], doom=Doom("step", 6, deed="halt")).status == -9
    shutil.copytree(*outs)
    part = max((outs[1] / "checkpoints" / "4" / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[:-50])
    lives = runs.together(outs, 2)
    assert [life.status for life in lives] == [1, 1], [life.output for life in lives]
    for life in lives:
        assert "step 4 is not the same for all processes (sound, damaged)" in life.errors[0]
    assert all(newest(out) == 4 for out in outs)


@pytest.mark.parametrize(
    ("only", "line"),
    [
        ([0], "rmpe: process 1 of 2 did not join within 2 seconds"),
        ([1], r"rmpe: process 1 waited 2 seconds for process 0 at 127\.0\.0\.1:\d+, which did not answer"),
    ],
)
def test_a_run_without_one_of_its_processes_ends_with_one_line(runs, tmp_path, only, line):
    (life,) = runs.together(tmp_path / "out", 2, only=only, patience=2)
    assert life.status == 1 and re.fullmatch(line, life.output.strip()), life.output
    assert not (tmp_path / "out").exists()


def test_numbers_without_distributed_are_refused(runs, tmp_path):
    life = runs.alone(tmp_path / "out", "--process", "0")
    assert life.status == 1
    assert life.output == "rmpe: --coordinator, --process-count and --process are for --distributed\n"
