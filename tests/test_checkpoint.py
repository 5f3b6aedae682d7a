import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from checks import assert_identical

from rmpe_jax.config import override
from rmpe_jax.train.checkpoint import CheckpointError, Checkpoints
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


def restore(folder, experiment=tiny.EXPERIMENT, like=None):
    """The state that is restored, and the reports."""
    reports = []
    with Checkpoints(folder) as checkpoints:
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


def test_the_rhythm_of_a_run_and_the_place_of_the_data_may_change(saved_folder):
    changed = override(tiny.EXPERIMENT, ["run.log_every=7", "run.save_every=9", "data.lspet=elsewhere"])
    assert restore(saved_folder, changed)[0].step == 2
