"""A run that is killed, told to stop, out of space or damaged says so in a line, and goes on as if nothing had been."""

import csv
import dataclasses
import random
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
from doomed_run import Doom, Lives
from made_data import lsp_labels, write_lspet

from rmpe_jax.cli.train import read_experiment
from rmpe_jax.data.pipeline import Loader, training_people, training_positions
from rmpe_jax.train.checkpoint import Checkpoints
from rmpe_jax.train.step import init_state

pytestmark = [pytest.mark.survival, pytest.mark.slow]

STEPS, EVALUATE_EVERY, BATCH = 120, 5, 8
EXPERIMENT = f"""
from rmpe_jax.config import DataConfig, Experiment, HourglassConfig, OptimConfig, RunConfig

experiment = Experiment(
    name="tiny",
    skeleton="lsp_14",
    model=HourglassConfig(stacks=1, features=8, depth=1, input_size=(32, 32)),
    data=DataConfig(canvas=48),
    optim=OptimConfig(steps={STEPS}, batch={BATCH}, warmup=2, average=0.9, sigma=1.0),
    run=RunConfig(log_every=1, evaluate_every={EVALUATE_EVERY}, save_every=20),
)
"""
OFTEN = ["--set", "run.save_every=2"]
# What a step computes, as text of nine digits for the loss; the pace is another every time.
COLUMNS = ["step", "loss", "accuracy", "learning_rate", "gradient_norm", "validation_pck"]


class Runs:
    """Lives of the one run that is looked at here."""

    def __init__(self, lives, folder):
        self._lives, self._folder = lives, folder
        (folder / "tiny.py").write_text(EXPERIMENT)
        # As many people for validation as in a batch: one program predicts for them and for the sheet.
        write_lspet(folder, labels=lsp_labels(20 * BATCH))

    def live(self, out, *options, doom=None, compiled=True, keep=False):
        arguments = ["train", str(self._folder / "tiny.py"), "--out", str(out), "--workers", "1", "--memory", "0"]
        arguments += ["--set", f"data.lspet={self._folder}", *options]
        programs = str(self._lives.programs) if compiled else None
        return self._lives.live({"arguments": arguments, "doom": doom, "programs": programs, "keep": keep})[0]

    def experiment(self):
        """The settings of the run."""
        return read_experiment(self._folder / "tiny.py", [f"data.lspet={self._folder}"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with Lives(folder) as lives:
        runs = Runs(lives, folder)
        assert runs.live(folder / "kept", keep=True).status == 0
        yield runs


@pytest.fixture(scope="module")
def unbroken(runs, tmp_path_factory):
    """A run as every run is: it compiles its own programs, and nothing happens to it."""
    out = tmp_path_factory.mktemp("unbroken")
    life = runs.live(out, compiled=False)
    assert life.status == 0 and life.errors == []
    return out


@pytest.fixture(scope="module")
def halted(runs, tmp_path_factory):
    """A run that was killed when it had checkpoints 100 and 110; to be copied."""
    out = tmp_path_factory.mktemp("halted")
    life = runs.live(out, "--set", "run.save_every=10", doom=Doom("step", 114, deed="halt"))
    assert life.status == -9 and complete(out) == [100, 110]
    return out


@pytest.fixture
def out(halted, tmp_path):
    return shutil.copytree(halted, tmp_path / "out")


def complete(out, name="checkpoints"):
    """The steps whose checkpoints are complete: orbax gives such a folder its name last."""
    folder = out / name
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []


def rows_of(out):
    with (out / "log.csv").open(newline="") as file:
        return [[row[name] for name in COLUMNS] for row in csv.DictReader(file)]


def assert_same_run(out, unbroken):
    """Every line of the log agrees as text, and the weights byte for byte."""
    assert rows_of(out) == rows_of(unbroken)
    assert len(rows_of(out)) == STEPS + STEPS // EVALUATE_EVERY
    for name in ("tiny.safetensors", "tiny-best.safetensors"):
        assert (out / name).read_bytes() == (unbroken / name).read_bytes()


def assert_goes_on(runs, out, unbroken, first):
    """The same command goes on from a step and gives what the unbroken run gave; returns what it said."""
    life = runs.live(out)
    assert life.status == 0 and life.errors == [] and "Traceback" not in life.output, life.output
    assert life.noted("first") == first
    assert_same_run(out, unbroken)
    return life.output


# Killed


def dooms(startup):
    """Where each life ends: every kind, in mixed order, at moments of its own.

    Args:
        startup: seconds that a life takes until its first step, for moments that any machine reaches.
    """
    rng = random.Random(8)
    kinds = {
        "step": lambda: Doom("step", rng.randint(1, 9), rng.uniform(0, 0.05)),
        "reading": lambda: Doom("reading", rng.randint(1, 120)),
        # While orbax writes in the background, and when it should just have ended.
        "saving": lambda: Doom("saving", rng.randint(1, 4), rng.choice([0, 0, 0.02, 0.1, 0.3])),
        "best": lambda: Doom("best", rng.randint(1, 2), rng.choice([0, 0, 0.02, 0.1])),
        "start": lambda: Doom("start", 1, startup * rng.uniform(0.3, 1.5)),
        "restoring": lambda: Doom("restoring", 1, rng.uniform(0, 0.2)),
    }
    counts = {"step": 7, "reading": 7, "saving": 8, "best": 5, "start": 2, "restoring": 2}
    places = [place for place, count in counts.items() for _ in range(count)]
    rng.shuffle(places)
    return [kinds[place]() for place in places]


def test_a_run_killed_over_thirty_times_is_the_one_that_was_never_killed(runs, unbroken, tmp_path):
    out, lives = tmp_path / "out", []
    # It has compiled nothing: its start takes as long as those below.
    first = runs.live(out, *OFTEN, doom=Doom("step", 1))
    startup = first.notes[-1]["time"] - first.notes[0]["time"]
    for doom in dooms(startup):
        newest = max(complete(out), default=0)
        life = runs.live(out, *OFTEN, doom=doom)
        assert life.status == -9, life.output
        assert life.errors == [] and "damaged" not in life.output
        # It went on from the last complete checkpoint, unless it was killed before.
        assert life.noted("first") in ([None, newest] if doom.place in ("start", "restoring") else [newest])
        lives.append(life)
    newest = max(complete(out))
    assert len(lives) >= 30 and 2 * EVALUATE_EVERY < newest < STEPS

    struck = [(life.noted("struck"), life.noted("unfinished")) for life in lives]
    assert {place for place, _ in struck} == {"step", "reading", "saving", "best", "start", "restoring"}
    # Many ended with a checkpoint half written, of either folder.
    for place, folder in [("saving", "checkpoints/"), ("best", "best/")]:
        assert sum(found == place and any(name.startswith(folder) for name in names) for found, names in struck) >= 3
    assert sum(life.noted("first") is not None for life in lives) >= 20

    # When all steps are done the weights are still to be written.
    assert runs.live(out, doom=Doom("weights")).status == -9
    assert not (out / "tiny.safetensors").exists()
    assert_goes_on(runs, out, unbroken, STEPS)


# Told to stop


@pytest.mark.parametrize("doom", [Doom("step", 3, deed="SIGTERM"), Doom("saving", 1, deed="SIGTERM")])
def test_a_run_that_is_told_to_stop_saves_and_ends_within_seconds(runs, unbroken, out, doom):
    life = runs.live(out, *OFTEN, doom=doom)
    (line,) = life.errors
    asked = re.fullmatch(r"rmpe: asked to stop; saved after step (\d+), the same command goes on from there", line)
    assert asked and life.status == 1
    assert life.ended - life.notes[-1]["time"] < 10
    if doom.place == "saving":
        assert "checkpoints/112" in life.noted("unfinished")
    assert max(complete(out)) == int(asked[1]) < STEPS
    assert_goes_on(runs, out, unbroken, int(asked[1]))


def test_a_run_that_is_told_to_stop_saves_before_it_examines_and_makes_up_for_it(runs, unbroken, out):
    life = runs.live(out, *OFTEN, doom=Doom("step", 5, deed="ask"))
    assert life.errors == ["rmpe: asked to stop; saved after step 115, the same command goes on from there"]
    assert "step 115: PCK" not in life.output and rows_of(out)[-1][0] == "115" and not rows_of(out)[-1][-1]
    # The next start examines first, and is killed before it has saved again: it must not be told twice.
    life = runs.live(out, *OFTEN, doom=Doom("step", 1, deed="halt"))
    assert life.status == -9 and life.noted("first") == 115 and "step 115: PCK" in life.output
    assert complete(out, "best") == [110, 115] and rows_of(out)[-1][-1]
    assert_goes_on(runs, out, unbroken, 115)


# Out of space


def assert_ends_with_one_line(life):
    assert life.status == 1 and len(life.errors) == 1 and "Traceback" not in life.output, life.output
    return life.errors[0]


# Nothing but checkpoints is large.
SELDOM_LOOKED_AT = ["--set", "run.evaluate_every=1000"]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_one_line(runs, unbroken, out):
    life = runs.live(out, *OFTEN, *SELDOM_LOOKED_AT, doom=Doom("saving", 2, deed="limit"))
    line = assert_ends_with_one_line(life)
    start = f"rmpe: {out / 'checkpoints'}: step 114 could not be saved, the checkpoints before it stay: "
    assert line.startswith(start) and "File too large" in line
    assert complete(out) == [110, 112]
    assert_goes_on(runs, out, unbroken, 112)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_one_line(runs, unbroken, halted, small_disk):
    out = shutil.copytree(halted, small_disk / "out")
    life = runs.live(out, *OFTEN, doom=Doom("saving", 2, deed="fill"))
    line = assert_ends_with_one_line(life)
    assert "No space left on device" in line or "could not be saved" in line, line
    assert complete(out) == [110, 112]
    # While there is no space the same command ends in the same way, and spoils nothing.
    assert_ends_with_one_line(runs.live(out, *OFTEN))
    assert complete(out) == [110, 112]
    (out / "ballast").unlink()
    assert_goes_on(runs, out, unbroken, 112)


# Damaged


def files_of(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


def largest(folder):
    return max((folder / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit in the arrays": lambda folder: flip_bit(largest(folder)),
    "a cut off file": lambda folder: largest(folder).write_bytes(largest(folder).read_bytes()[:-100]),
    "a missing file": lambda folder: largest(folder).unlink(),
    "a flipped bit in the description": lambda folder: flip_bit(folder / "meta" / "metadata"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(runs, unbroken, out, damage):
    damage(out / "checkpoints" / "110")
    said = assert_goes_on(runs, out, unbroken, 100)
    assert said.count("passed over") == 1
    assert f"checkpoint 110 in {out / 'checkpoints'} is damaged and passed over: " in said


def test_damage_to_the_best_checkpoints_does_not_stop_a_run(runs, unbroken, out):
    assert complete(out, "best") == [105, 110]
    for path in files_of(out / "best" / "110"):
        flip_bit(path)
    shutil.rmtree(out / "best" / "105" / "state")
    (out / "best" / "115").mkdir()
    assert_goes_on(runs, out, unbroken, 110)


@pytest.mark.parametrize("left", [[105], []])
def test_the_best_checkpoint_that_a_killed_run_did_not_complete_is_there_after_the_next_start(runs, out, left):
    for step in {105, 110} - set(left):
        shutil.rmtree(out / "best" / str(step))
    assert runs.live(out, doom=Doom("step", 1, deed="halt")).status == -9
    assert complete(out, "best") == [*left, 110]


# Of another configuration


def test_a_run_with_other_settings_is_refused_before_its_first_step_and_changes_nothing(runs, out):
    before = {path: path.is_file() and path.read_bytes() for path in out.rglob("*")}
    other = ["--set", "model.features=16", "--set", "optim.learning_rate=0.5"]
    # Killed at the first step, if it came so far.
    life = runs.live(out, *other, doom=Doom("step"), compiled=False)
    line = assert_ends_with_one_line(life)
    assert "another configuration: model.features: 8 against 16; optim.learning_rate: 0.001 against 0.5" in line
    assert life.noted("first") is None
    assert {path: path.is_file() and path.read_bytes() for path in out.rglob("*")} == before


# Not finite


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_batch(runs, unbroken, out):
    life = runs.live(out, *OFTEN, doom=Doom("step", 4, deed="poison"))
    line = assert_ends_with_one_line(life)
    path, step = out / "not_finite_114.npz", 114
    start = f"rmpe: at step {step} the loss is nan and its gradient's norm nan; in all steps before both were finite."
    assert line == f"{start} Its batch is in {path}; the newest checkpoint is of step 112"

    experiment = runs.experiment()
    people = training_people(experiment.data, experiment.joints)
    positions = training_positions(len(people), BATCH, seed=0, step=step - 1)
    with Loader(people, experiment.data) as loader, np.load(path, allow_pickle=False) as found:
        for name, array in dataclasses.asdict(loader.load(positions)).items():
            np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(found["position"], positions)
        assert list(found["picture"]) == [str(people[position].picture) for position in positions]
        assert found["step"] == step and np.isnan(found["loss"])

    with Checkpoints(out / "checkpoints") as checkpoints:
        saved = checkpoints.restore(init_state(jax.random.key(0), experiment), experiment, report=pytest.fail)
    assert saved.state.step == 112
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved.state))
    assert_goes_on(runs, out, unbroken, 112)
