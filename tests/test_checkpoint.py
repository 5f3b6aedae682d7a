import errno
import json
import shutil
import subprocess
import sys
import types
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from checks import assert_identical

from rmpe_jax.config import override
from rmpe_jax.train import checkpoint
from rmpe_jax.train.checkpoint import Best, CheckpointError, Checkpoints, check_space
from rmpe_jax.train.state import TrainState

# After a failed read orbax closes its event loop while tensorstore still reports the other arrays to it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_after(steps):
    """A stand-in for a trained state: its arrays tell their step, and are large enough for files of their own."""
    rng = np.random.default_rng(steps)
    weights = {
        "params": {
            "kernel": jnp.array(rng.normal(size=(100, 200)), jnp.float32),
            "bias": jnp.full(3, steps, jnp.float32),
        }
    }
    average = jax.tree.map(lambda leaf: leaf / 2, weights)
    return TrainState(jnp.array(steps, jnp.int32), weights, average, (average["params"], jnp.array([steps])))


@pytest.fixture(scope="module")
def saved_folder(tmp_path_factory):
    """A folder with checkpoints 1 and 2, to be copied before it is damaged."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state_after(step), tiny.EXPERIMENT)
    return folder


@pytest.fixture
def folder(saved_folder, tmp_path):
    return shutil.copytree(saved_folder, tmp_path / "checkpoints")


def restore(folder, experiment=tiny.EXPERIMENT, like=None, people=None):
    """The state that is restored, and the reports."""
    reports = []
    with Checkpoints(folder, people=people) as checkpoints:
        saved = checkpoints.restore(like or state_after(0), experiment, report=reports.append)
        return saved and saved.state, reports


def largest_file(folder, step):
    """A file of one checkpoint's arrays."""
    return max(
        (path for path in (folder / str(step)).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def flip_byte(path, share=0.5):
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 0xFF
    path.write_bytes(content)


def test_the_newest_state_comes_back_in_every_bit(folder):
    state, reports = restore(folder)
    assert_identical(state, state_after(2))
    assert reports == [] and all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path):
    batches = [tiny.random_batch(seed) for seed in range(4)]
    unbroken, losses = tiny.train(tiny.first_state(), batches)
    halfway, first_losses = tiny.train(tiny.first_state(), batches[:2])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(halfway, tiny.EXPERIMENT)
    resumed, last_losses = tiny.train(restore(tmp_path, like=tiny.first_state())[0], batches[2:])
    assert_identical(resumed, unbroken)
    assert first_losses + last_losses == losses


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "new") == (None, [])


def test_only_the_newest_checkpoints_are_kept(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(state_after(3), tiny.EXPERIMENT)
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["2", "3"]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_flipped_byte_is_found_and_the_step_before_is_used(folder, share):
    flip_byte(largest_file(folder, 2), share)
    state, reports = restore(folder)
    assert_identical(state, state_after(1))
    # Mostly our checksum finds it; where the byte carries the file's structure, the reader does.
    assert len(reports) == 1 and reports[0].startswith("checkpoint 2 in")
    assert "damaged and passed over: " in reports[0]


def test_a_run_saves_again_after_a_damaged_checkpoint_was_passed_over(folder):
    flip_byte(largest_file(folder, 2), 0.5)
    with Checkpoints(folder) as checkpoints:
        checkpoints.restore(state_after(0), tiny.EXPERIMENT, report=lambda line: None)
        checkpoints.save(state_after(2), tiny.EXPERIMENT)
    state, reports = restore(folder)
    assert_identical(state, state_after(2))
    assert reports == []


def test_what_was_passed_over_is_put_aside_and_not_deleted(folder):
    path = largest_file(folder, 2)
    sound = path.read_bytes()
    for name in ("damaged-2", "damaged-2-1"):
        flip_byte(largest_file(folder, 2))
        with Checkpoints(folder) as checkpoints:
            checkpoints.restore(state_after(0), tiny.EXPERIMENT, report=lambda line: None)
            assert checkpoints.newest_step() == 1 and (folder / name).is_dir()
            checkpoints.save(state_after(2), tiny.EXPERIMENT)
    # Repaired it is used again.
    shutil.rmtree(folder / "2")
    aside = folder / "damaged-2" / path.relative_to(folder / "2")
    aside.write_bytes(sound)
    (folder / "damaged-2").rename(folder / "2")
    assert_identical(restore(folder)[0], state_after(2))


def files_in(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EMFILE, "Too many open files"),
        PermissionError(errno.EACCES, "Permission denied"),
        MemoryError("no memory"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(folder, monkeypatch, error, wrapped):
    def fail(*_, **__):
        if wrapped:
            raise ValueError("could not restore") from error
        raise error

    before = files_in(folder)
    with Checkpoints(folder) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(CheckpointError, match="step 2 could not be read, and no checkpoint was touched: "):
            checkpoints.restore(state_after(0), tiny.EXPERIMENT, report=pytest.fail)
    assert files_in(folder) == before


def test_what_the_system_tells_of_an_array_that_it_could_not_read_is_not_taken_for_damage(folder):
    # A link to itself: an error of the system that anybody can make.
    content = next(
        path for path in (folder / "2" / "state").glob("ocdbt.process_0/d/*") if path.stat().st_size > 20_000
    )
    content.unlink()
    content.symlink_to(content)
    before = files_in(folder)
    with pytest.raises(CheckpointError, match="step 2 could not be read, and no checkpoint was touched: .*"):
        restore(folder)
    assert files_in(folder) == before


def test_a_step_that_is_already_saved_is_not_silently_left_out(folder):
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError, match="already holds step 1 or a later"):
        checkpoints.save(state_after(1), tiny.EXPERIMENT)


@pytest.mark.parametrize("length", [0, 100])
def test_a_truncated_file_is_found_and_the_step_before_is_used(folder, length):
    path = largest_file(folder, 2)
    path.write_bytes(path.read_bytes()[:length])
    state, reports = restore(folder)
    assert_identical(state, state_after(1))
    assert len(reports) == 1


@pytest.mark.parametrize("item", ["state", "meta"])
def test_a_missing_part_is_found_and_the_step_before_is_used(folder, item):
    shutil.rmtree(folder / "2" / item)
    state, reports = restore(folder)
    assert_identical(state, state_after(1))
    assert len(reports) == 1


def test_whichever_file_is_damaged_no_wrong_state_comes_back(folder, tmp_path):
    soft = [path for path in sorted((folder / "2").rglob("*")) if path.is_file() and path.stat().st_size]
    for number, path in enumerate(soft):
        copy = shutil.copytree(folder, tmp_path / str(number))
        flip_byte(copy / path.relative_to(folder))
        try:
            state, _ = restore(copy)
        except CheckpointError:
            continue
        assert_identical(state, state_after(int(state.step)))


def test_without_a_sound_checkpoint_the_run_does_not_start_afresh(folder):
    for step in (1, 2):
        flip_byte(largest_file(folder, step))
    with pytest.raises(CheckpointError, match="no sound checkpoint"):
        restore(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.learning_rate=1e-4", "optim.learning_rate: 0.005 against 0.0001"),
        ("model.stacks=2", "model.stacks: 1 against 2"),
        ("skeleton=coco_17", "skeleton: lsp_14 against coco_17"),
        ("augment.flip=0.0", "augment.flip: 0.5 against 0.0"),
        ("data.extension=0.2", "data.extension: 0.3 against 0.2"),
        ("run.seed=1", "run.seed: 0 against 1"),
    ],
)
def test_another_configuration_is_refused_by_the_name_of_the_setting(saved_folder, change, message):
    with pytest.raises(CheckpointError, match=f"another configuration: {message}$"):
        restore(saved_folder, override(tiny.EXPERIMENT, [change]))


def test_the_rhythm_of_a_run_and_the_place_of_the_data_may_change(tmp_path):
    experiment = override(tiny.EXPERIMENT, ["data.lspet=here"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_after(2), experiment)
    changed = override(experiment, ["run.log_every=7", "run.save_every=9", "data.lspet=elsewhere"])
    assert restore(tmp_path, changed)[0].step == 2
    with pytest.raises(CheckpointError, match="another configuration: data.lspet: here against $"):
        restore(tmp_path, tiny.EXPERIMENT)
    with pytest.raises(CheckpointError, match="another configuration: data.coco:  against there$"):
        restore(tmp_path, override(experiment, ["data.coco=there"]))


def test_other_data_is_refused_by_the_number_of_people(tmp_path):
    with Checkpoints(tmp_path, people=20) as checkpoints:
        checkpoints.save(state_after(1), tiny.EXPERIMENT)
    assert restore(tmp_path, people=20)[0].step == 1
    with pytest.raises(CheckpointError, match="a run on other data: 20 people against 21$"):
        restore(tmp_path, people=21)


def test_a_checkpoint_that_does_not_tell_its_people_is_of_another_version(folder):
    description = folder / "2" / "meta" / "metadata"
    content = json.loads(description.read_text())
    older = {name: content[name] for name in ("experiment", "best")}
    description.write_text(json.dumps({**older, "content": checkpoint._crc(older), "leaves": content["leaves"]}))
    with pytest.raises(CheckpointError, match="belong to another version of the package$"):
        restore(folder)


def test_a_damaged_name_in_the_description_is_damage_and_not_another_version(folder):
    description = folder / "2" / "meta" / "metadata"
    description.write_text(description.read_text().replace('"people"', '"peopld"'))
    state, reports = restore(folder)
    assert state.step == 1 and "description does not match its checksum" in reports[0]


def test_the_best_score_and_a_validation_that_is_due_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_after(1), tiny.EXPERIMENT, Best(0.5, 1))
        assert checkpoints.holds(1) and not checkpoints.holds(2)
        saved = checkpoints.restore(state_after(0), tiny.EXPERIMENT, report=pytest.fail)
        assert saved.best == Best(0.5, 1) and not saved.due
        checkpoints.save(state_after(2), tiny.EXPERIMENT, due=True)
        saved = checkpoints.restore(state_after(0), tiny.EXPERIMENT, report=pytest.fail)
        assert saved.best is None and saved.due


# What cannot be written


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/deeper"])
def test_a_place_that_is_no_folder_is_refused_when_it_is_opened(tmp_path, place):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match=f"{place}: checkpoints cannot be written there: "):
        Checkpoints(tmp_path / place)


LOST = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import tiny
from test_checkpoint import state_after
from rmpe_jax.train.checkpoint import CheckpointError, Checkpoints

folder = Path(sys.argv[2])
try:
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state_after(1), tiny.EXPERIMENT)
        checkpoints.wait()
        if sys.argv[3] == "Not a directory":
            folder.rename(folder.with_name("moved"))
            folder.write_text("a file")
        else:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, -1))
        checkpoints.save(state_after(2), tiny.EXPERIMENT)
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("reason", ["Not a directory", "File too large"])
def test_a_process_that_cannot_begin_a_checkpoint_says_so_and_ends(tmp_path, reason):
    command = [sys.executable, "-c", LOST, str(Path(__file__).parent), str(tmp_path / "run"), reason]
    # Orbax's threads would hold it up for five minutes.
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout.startswith(f"{tmp_path / 'run'}: step 2 could not be saved, the checkpoints before it stay: ")
    assert reason in done.stdout and done.stdout.count("\n") == 1


def test_too_little_space_is_told_with_both_numbers(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(5_000))
    check_space(tmp_path, 5_000)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: no space left .* need 5,001 bytes, of which 5,000 are"):
        check_space(tmp_path, 5_001)


def test_space_is_needed_for_what_stays_and_for_one_that_is_being_written(tmp_path):
    state = state_after(1)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        needed = []
        for step in range(4):
            needed.append(checkpoints.bytes_needed(state) / size)
            checkpoints.save(state_after(step), tiny.EXPERIMENT)
            checkpoints.wait()
    assert needed == [3, 2, 1, 1]


def test_what_comes_late_of_a_failed_save_is_left_out_and_nothing_else(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    late, other = (types.SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "other"))
    with pytest.raises(KeyError), Checkpoints(tmp_path):
        raise KeyError
    for raised in (late, other):
        sys.unraisablehook(raised)
    assert told == [other]


def test_after_a_run_that_did_not_fail_the_hook_is_what_it_was(tmp_path, monkeypatch):
    hook = [].append
    monkeypatch.setattr(sys, "unraisablehook", hook)
    with Checkpoints(tmp_path):
        assert sys.unraisablehook is not hook
    assert sys.unraisablehook is hook
