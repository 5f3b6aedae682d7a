"""A person detector's training: its step however it is spread, what it starts from, how it is examined, whole runs."""

import csv
import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import tiny
from checks import assert_close, assert_identical
from made_data import write_lspet

import rmpe_jax.train.step as step_module
from rmpe_jax.config import (
    AugmentConfig,
    DataConfig,
    DeepPoseConfig,
    Experiment,
    OptimConfig,
    PersonDetectorConfig,
    RunConfig,
    override,
)
from rmpe_jax.data import synthetic
from rmpe_jax.data.pipeline import Loader
from rmpe_jax.data.scenes import SceneCutting, training_scenes
from rmpe_jax.models import person_detector
from rmpe_jax.models.rmpe import init_estimator
from rmpe_jax.pretrained import Weights, load_weights, save_weights
from rmpe_jax.records import Boxes, SceneBatch
from rmpe_jax.train import loop, mosaics, plan
from rmpe_jax.train.detector_validation import DetectorValidation
from rmpe_jax.train.loop import train
from rmpe_jax.train.parallel import ParallelStep, pmap_step, sharded_step
from rmpe_jax.train.plan import TrainingError, plan_run
from rmpe_jax.train.step import init_state, train_step

CANVAS, BATCH = 32, 4
EXPERIMENT = Experiment(
    name="finder",
    model=PersonDetectorConfig(
        stacks=1, features=8, depth=1, input_size=(32, 32), sides=(32,), lengths=(8.0, 24.0)
    ),
    data=DataConfig(canvas=CANVAS, synthetic=8),
    augment=AugmentConfig(mosaic=0.5, colour=0.1),
    optim=OptimConfig(steps=4, batch=BATCH, learning_rate=5e-3, warmup=2, average=0.2, clip=10.0, schedule="constant"),
    run=RunConfig(log_every=1, evaluate_every=2, save_every=10),
)  # fmt: skip


# The shapes and numbers of a program are the same with it, and it is there in half the time.
HASTE = {"xla_backend_optimization_level": 0}
ROOM = 24  # for the people of a scene, as ``SceneCutting`` has it


def descent(config):
    """Gradients clipped and followed: Adam makes whole steps of the rounding of gradients that are zero."""
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.sgd(0.01, momentum=0.9))


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
    """Copies of pictures halved take long to compile, and so does AdamW."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "make_optimizer", descent)
        for module in (mosaics, person_detector):
            patch.setattr(module, "_LEVELS", 1)
        yield


def scene_batch(seed=0):
    """Four examples of four noisy scenes with up to two bright people."""
    rng, shape = np.random.default_rng(seed), (BATCH, 4)
    canvas = rng.integers(0, 100, (*shape, CANVAS, CANVAS, 3)).astype(np.uint8)
    boxes, person = np.zeros((*shape, ROOM, 4), np.float32), np.zeros((*shape, ROOM), bool)
    person[..., :2] = rng.random((*shape, 2)) < [0.9, 0.4]
    for place in zip(*np.nonzero(person), strict=True):
        (x, y), (width, height) = rng.integers(1, 12, 2), rng.integers(8, 18, 2)
        boxes[place] = [x - 0.5, y - 0.5, x + width - 0.5, y + height - 0.5]
        canvas[place[:2]][y : y + height, x : x + width] = rng.integers(180, 256, 3)
    return SceneBatch(
        canvas=jnp.asarray(canvas),
        extent=jnp.tile(jnp.array([-0.5, -0.5, CANVAS - 0.5, CANVAS - 0.5]), (*shape, 1)),
        boxes=jnp.asarray(boxes),
        person=jnp.asarray(person),
        ignored=jnp.zeros((*shape, ROOM), bool).at[..., 2].set(jnp.asarray(rng.random(shape) < 0.2)),
        complete=jnp.asarray(rng.random(shape) < 0.7),
        index=jnp.arange(BATCH, dtype=jnp.int32),
        valid=jnp.asarray(rng.random(shape) < 0.95),
    )


@functools.cache
def first_state():
    return init_state(jax.random.key(0), EXPERIMENT)


WAYS = {"one device": lambda step: ParallelStep(lambda *arguments: arguments, jax.jit(step)), "pmap": pmap_step}
WAYS |= {"sharded": sharded_step}


@functools.cache
def compiled_step(way="one device", accumulate=1):
    """The step mapped in some way, as one program."""
    experiment = override(EXPERIMENT, [f"optim.accumulate={accumulate}"])
    step = WAYS[way](functools.partial(train_step, experiment=experiment))
    # To lower a function JAX fills records with descriptions of arrays, which the checks of the tests refuse.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        lowered = step.lower(first_state(), scene_batch(), tiny.KEY)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    return ParallelStep(step.place, lowered.compile(compiler_options=HASTE))


def take_steps(step, batches, state=None):
    """The state after a step on each batch, and what each said."""
    state, told = first_state() if state is None else state, []
    for batch in batches:
        state, metrics = step(state, batch, tiny.KEY)
        told.append({name: float(np.asarray(value)) for name, value in metrics.items()})
    return state, told


# One step


def test_one_batch_can_be_learned_and_every_number_told_is_finite():
    state, told = first_state(), []
    for _ in range(30):
        state, said = take_steps(compiled_step(), [scene_batch()], state)
        # The number of the step decides what is seen: always the same.
        state, told = dataclasses.replace(state, step=jnp.zeros_like(state.step)), told + said
    assert all(np.isfinite(list(each.values())).all() for each in told)
    assert told[-1]["loss"] < 0.6 * told[0]["loss"] and told[-1]["accuracy"] > told[0]["accuracy"]
    assert all(0 <= each["accuracy"] <= 1 and each["parallel_loss"] == 0 for each in told)


def test_a_step_is_a_pure_function_of_its_scenes_key_and_number():
    batch, state = scene_batch(), first_state()
    assert_identical(compiled_step()(state, batch, tiny.KEY), compiled_step()(state, batch, tiny.KEY))
    later = dataclasses.replace(state, step=state.step + 1)
    losses = [
        float(compiled_step()(s, b, k)[1]["loss"])
        for s, b, k in (
            (state, batch, tiny.KEY),
            (later, batch, tiny.KEY),
            (state, batch, jax.random.key(8)),
            (state, scene_batch(1), tiny.KEY),
        )
    ]
    assert len(set(losses)) == 4


def test_randomness_goes_with_the_index_and_not_with_the_place():
    batch, order = scene_batch(), np.array([2, 0, 3, 1])
    shuffled = jax.tree.map(lambda leaf: leaf[order], batch)
    metrics = [compiled_step()(first_state(), each, tiny.KEY)[1] for each in (batch, shuffled)]
    assert_close(metrics[1], metrics[0], rtol=1e-4)


def test_a_batch_without_valid_scenes_costs_nothing_and_stays_finite():
    batch = jax.tree.map(jnp.zeros_like, scene_batch())
    batch = dataclasses.replace(batch, index=jnp.arange(BATCH, dtype=jnp.int32))
    state, metrics = compiled_step()(first_state(), batch, tiny.KEY)
    assert metrics["loss"] == 0 and metrics["accuracy"] == 0 and metrics["gradient_norm"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


# However it is spread


@pytest.mark.slow
@pytest.mark.parametrize("way", ["pmap", "sharded"])
def test_four_devices_take_the_steps_of_one(way):
    assert len(jax.devices()) == 4
    batches = [scene_batch(seed) for seed in range(3)]
    (ours, told), (theirs, expected) = (take_steps(compiled_step(each), batches) for each in (way, "one device"))
    assert len({each["loss"] for each in expected}) == 3
    assert_close(told, expected, rtol=2e-4, atol=1e-6)
    assert_close(ours.average, theirs.average, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_parts_of_a_batch_that_are_alike_give_the_gradient_of_the_whole():
    # Every second example is in the same part.
    batch = jax.tree.map(lambda leaf: jnp.repeat(leaf[:2], 2, 0), scene_batch())
    (ours, told), (theirs, expected) = (take_steps(compiled_step(accumulate=count), [batch]) for count in (2, 1))
    assert_close(told, expected, rtol=1e-4, atol=1e-6)
    assert_close(ours.variables["params"], theirs.variables["params"], rtol=1e-4, atol=1e-5)
    # Others have statistics of their own.
    (_, told), (_, expected) = (take_steps(compiled_step(accumulate=count), [scene_batch()]) for count in (2, 1))
    assert told[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.2) and told[0]["loss"] != expected[0]["loss"]


# What it starts from


def saved(path, experiment, seed=4):
    made = init_estimator(jax.random.key(seed), experiment)
    save_weights(path, Weights(experiment, made))
    return str(path), made


HOURGLASS = dataclasses.replace(tiny.EXPERIMENT, name="estimator")


def test_a_run_starts_from_an_estimator_s_hourglass_and_from_another_detector(tmp_path):
    path, made = saved(tmp_path / "estimator.safetensors", HOURGLASS)
    state = plan_run(dataclasses.replace(EXPERIMENT, start=path)).first_state()
    fresh = plan_run(EXPERIMENT).first_state()
    leaves = [jax.tree_util.tree_leaves_with_path(each) for each in (made, state.variables, fresh.variables)]
    own = 0
    for (name, old), (_, got), (_, new) in zip(*leaves, strict=True):
        np.testing.assert_array_equal(got, new if old.shape != new.shape else old, err_msg=str(name))
        own += old.shape != new.shape
    assert own == 2  # the kernel and the bias of the maps
    assert_identical(state.average, state.variables)

    path, made = saved(tmp_path / "finder.safetensors", EXPERIMENT)
    state = plan_run(dataclasses.replace(EXPERIMENT, start=path)).first_state()
    assert_identical(jax.tree.map(np.asarray, state.variables), made)


def test_weights_of_another_architecture_are_no_start(tmp_path):
    wide = override(HOURGLASS, ["model.features=16", "model.mean=0.5,0.5,0.5"])
    deep = dataclasses.replace(HOURGLASS, model=DeepPoseConfig(width=1 / 32, stages=1, input_size=(32, 32)))
    for other, said in (
        (wide, r"features: 16 against 8; mean: \(0.5, 0.5, 0.5\) against \(0.0, 0.0, 0.0\)"),
        (deep, "kind: deep_pose against person_detector"),
    ):
        path, _ = saved(tmp_path / "other.safetensors", other)
        with pytest.raises(TrainingError, match=f"of another architecture or crop: {said}"):
            plan_run(dataclasses.replace(EXPERIMENT, start=path))
    path, _ = saved(tmp_path / "finder.safetensors", EXPERIMENT)
    poses = override(HOURGLASS, ["data.synthetic=4", f"start={path}", "skeleton=coco_lsp_19"])
    with pytest.raises(TrainingError, match="kind: person_detector against hourglass"):
        plan_run(poses)


# How it is examined

COLOURS = (255, 140, 60), (90, 220, 90)


@pytest.fixture
def few_drawn(monkeypatch):
    """Six drawn pictures for validation instead of a hundred."""
    monkeypatch.setitem(synthetic.SYNTHETIC_PICTURES, "val", 6)


def loading(experiment=EXPERIMENT):
    scenes = training_scenes(experiment.data)
    return Loader(scenes, experiment.data, cutting=SceneCutting(experiment.data), memory=0.0, report=pytest.fail)


def finding(boxes_of):
    """In place of a search: the boxes that a function gives for the number of the scene, all of them sure."""
    calls = iter(range(1000))

    def find(weights, image):
        found = np.asarray(boxes_of(next(calls)), np.float32).reshape(-1, 4)
        return Boxes.from_arrays(found)

    return find


def test_the_score_is_the_share_of_people_whom_one_of_the_five_best_boxes_finds(few_drawn, monkeypatch):
    with loading() as loader:
        validation = DetectorValidation(EXPERIMENT, loader, workers=1, report=pytest.fail)
    assert validation.scored and len(validation.scenes) == 6
    assert (validation.measure, validation.column) == ("people found on validation pictures", "validation_recall")
    boxes, person = validation.scenes.boxes, validation.scenes.person
    everybody = person.sum()
    assert everybody > 6 and person.sum(1).max() <= 5

    def score(boxes_of):
        monkeypatch.setattr(validation, "_find", finding(boxes_of))
        return validation.score(None)

    assert score(lambda number: boxes[number][person[number]]) == 1
    assert score(lambda number: []) == 0
    assert score(lambda number: boxes[number][person[number]] + 100) == 0
    # Half of a box is just enough of it, and a little less is not.
    for share, expected in ((0.52, 1.0), (0.48, 0.0)):
        smaller = boxes.copy()
        smaller[..., 3] = boxes[..., 1] + share * (boxes[..., 3] - boxes[..., 1])
        alone = [smaller[number][person[number]][:1] for number in range(6)]
        mine = [boxes[number][person[number]] for number in range(6)]
        assert all(len(each) for each in mine)
        if expected:
            assert score(lambda number, alone=alone: alone[number]) >= 6 / everybody
        else:
            others = sum(iou_above_half(alone[number][0], mine[number][1:]) for number in range(6))
            assert score(lambda number, alone=alone: alone[number]) == pytest.approx(others / everybody)
    # The sixth best box finds nobody.
    wrong = np.array([[200, 200, 210, 210]] * 5)
    assert score(lambda number: np.concatenate([wrong, boxes[number][person[number]]])) == 0
    some = score(lambda number: boxes[number][person[number]] if number < 3 else [])
    assert some == pytest.approx(person[:3].sum() / everybody)


def iou_above_half(box, others):
    """How many of the others have more than half in common with a box."""
    count = 0
    for other in others:
        low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
        common = np.maximum(high - low, 0).prod()
        count += common / ((box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - common) >= 0.5
    return count


def test_the_sheet_shows_the_first_scenes_with_labels_in_green_and_what_is_found_in_orange(few_drawn, monkeypatch):
    with loading() as loader:
        validation = DetectorValidation(EXPERIMENT, loader, workers=1, report=pytest.fail)
    monkeypatch.setattr(validation, "_find", finding(lambda number: [[4, 4, 20, 28]]))
    sheet = validation.sheet(None)
    assert sheet.shape == (2 * CANVAS, 4 * CANVAS, 3) and sheet.dtype == np.uint8
    # Of the first scene, in the first tile.
    orange = np.abs(sheet[:CANVAS, :CANVAS].astype(int) - COLOURS[0]).sum(-1) < 60
    assert orange[4, 6:18].all() and orange[28, 6:18].all() and orange[6:26, 4].all() and not orange[8:24, 8:16].any()
    monkeypatch.setattr(validation, "_find", finding(lambda number: []))
    labels = validation.sheet(None)
    assert (np.abs(labels.astype(int) - COLOURS[1]).sum(-1) < 60).sum() > 20
    assert not (np.abs(labels.astype(int) - COLOURS[0]).sum(-1) < 60)[4, 6:18].all()
    unsure = Boxes.from_arrays([[4, 4, 20, 28]], [0.29])
    monkeypatch.setattr(validation, "_find", lambda weights, image: unsure)
    np.testing.assert_array_equal(validation.sheet(None), labels)


@pytest.mark.slow
def test_without_validation_pictures_training_scenes_are_drawn_and_nothing_is_measured(few_drawn):
    unset = override(EXPERIMENT, ["data.synthetic=0"])
    with loading() as loader:
        validation = DetectorValidation(unset, loader, workers=1, report=pytest.fail)
        expected = loader.load(np.arange(8)).canvas
    weights = validation.weights_of(plan_run(EXPERIMENT).first_state())
    assert not validation.scored and validation.score(weights) is None
    np.testing.assert_array_equal(validation._samples.canvas, expected)
    # By a network that knows nothing: the search itself.
    found = validation._find(weights, expected[0])
    assert found.xyxy.shape == (64, 4) and np.isfinite(found.xyxy).all() and found.valid.any()
    assert validation.sheet(weights).shape == (2 * CANVAS, 4 * CANVAS, 3)


def test_of_lspet_its_validation_pictures_are_measured(tmp_path):
    write_lspet(tmp_path)
    experiment = override(EXPERIMENT, [f"data.lspet={tmp_path}"])
    with loading() as loader:
        validation = DetectorValidation(experiment, loader, workers=1, report=pytest.fail)
    assert len(validation.scenes) == 2
    assert validation.scenes.person.sum(1).tolist() == [1, 1] and not validation.scenes.complete.any()


# Whole runs


def rows_in(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path, few_drawn, monkeypatch):
    monkeypatch.setitem(plan.MAPPINGS, "pmap", lambda step: compiled_step("pmap"))
    whole = train(EXPERIMENT, tmp_path / "whole", workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "asked_to_stop", lambda done: done == 2)
        with pytest.raises(TrainingError, match="asked to stop; saved after step 2"):
            train(EXPERIMENT, tmp_path / "parts", workers=1, memory=0.0)
    # From the memory of the devices the batches are the same.
    parts = train(EXPERIMENT, tmp_path / "parts", workers=1, on_device=True)
    assert load_weights(whole).experiment == load_weights(parts).experiment
    assert_identical(load_weights(parts).variables, load_weights(whole).variables)
    assert (tmp_path / "whole" / "finder-best.safetensors").is_file()

    rows, others = rows_in(tmp_path / "whole"), rows_in(tmp_path / "parts")
    assert [row["step"] for row in rows] == ["1", "2", "2", "3", "4", "4"]
    names = ("step", "loss", "accuracy", "learning_rate", "gradient_norm", "validation_recall", "left_out")
    assert [[row[name] for name in names] for row in others] == [[row[name] for name in names] for row in rows]
    scores = [row["validation_recall"] for row in rows]
    assert [bool(score) for score in scores] == [False, False, True, False, False, True]
    assert all(0 <= float(score) <= 1 for score in scores if score) and not any(row["validation_pck"] for row in rows)
    assert len({row["loss"] for row in rows if row["loss"]}) == 4


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_its_scenes(tmp_path, few_drawn, monkeypatch):
    metrics = dict.fromkeys(["accuracy", "learning_rate", "gradient_norm"], jnp.array(0.5))

    def take(state, batch, key):
        return state, {"loss": jnp.array(jnp.nan), **metrics}

    monkeypatch.setitem(plan.MAPPINGS, "pmap", lambda step: ParallelStep(lambda *arguments: arguments, take))
    with pytest.raises(TrainingError, match=r"at step 1 the loss is nan .* Its batch is in .*not_finite_1\.npz"):
        train(EXPERIMENT, tmp_path, workers=1)
    with np.load(tmp_path / "not_finite_1.npz", allow_pickle=False) as found:
        assert found["canvas"].shape == (4 * BATCH, CANVAS, CANVAS, 3) and found["step"] == 1
        assert found["position"].shape == found["picture"].shape == found["valid"].shape == (4 * BATCH,)
        assert found["person"].shape == (4 * BATCH, 24) and found["person"].any()
        with loading() as loader:
            np.testing.assert_array_equal(loader.load(found["position"]).canvas, found["canvas"])


def test_a_batch_that_needs_more_scenes_than_there_are_is_refused():
    with pytest.raises(Exception, match=r"a batch of 800 .* is larger than the"):
        plan_run(override(EXPERIMENT, ["optim.batch=200"]))
