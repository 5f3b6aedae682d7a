"""DeepPose: its networks, its frames, the cascade at inference and its part of a training step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from checks import assert_close, assert_gradients, assert_identical, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st

from rmpe_jax.config import ConfigError, DeepPoseConfig, LocalizationConfig, override
from rmpe_jax.geometry.affine import transform_points
from rmpe_jax.models import deep_pose
from rmpe_jax.models.deep_pose import (
    apply_stage,
    apply_stage_training,
    deep_pose_shapes,
    dropout_masks,
    estimate_positions,
    init_deep_pose,
    normalised_from_points,
    own_joint,
    points_from_normalised,
    pose_diameter,
    stage_of,
    surroundings,
)
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.pretrained import Weights, load_weights, save_weights
from rmpe_jax.skeleton import LSP_14
from rmpe_jax.train import regression
from rmpe_jax.train.augment import example_keys, training_crops
from rmpe_jax.train.parallel import pmap_step
from rmpe_jax.train.step import init_state, predict_step, train_step

SIZE = (32, 32)
CONFIG = DeepPoseConfig(width=1 / 32, stages=2, input_size=SIZE, displacements=3)
EXPERIMENT = dataclasses.replace(tiny.EXPERIMENT, name="deep", model=CONFIG)
UNIT = st.floats(-0.875, 0.875, width=32)


def count(config, joints=14):
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(deep_pose_shapes(config, joints=joints)["params"]))


# The networks


def test_the_paper_s_network_has_as_many_parameters_as_its_layers_by_hand():
    convolutions = 11 * 11 * 3 * 96 + 5 * 5 * 96 * 256 + 9 * 256 * 384 + 9 * 384 * 384 + 9 * 384 * 256
    norms = 2 * (96 + 256 + 384 + 384 + 256)
    # 220 pixels: 55, pooled 27, pooled 13, pooled 6.
    hidden = (6 * 6 * 256 + 1) * 4096 + (4096 + 1) * 4096
    assert count(DeepPoseConfig(backbone="alexnet", input_size=(220, 220), stages=1)) == (
        convolutions + norms + hidden + (4096 + 1) * 14 * 3
    )


@pytest.mark.parametrize(
    ("backbone", "published", "features"), [("resnet18", 11_176_512, 512), ("resnet50", 23_508_032, 2048)]
)
def test_resnets_have_as_many_parameters_as_torchvision_s_without_their_last_layer(backbone, published, features):
    head = (features + 1) * 14 * 3
    assert count(DeepPoseConfig(backbone=backbone, stages=1)) == published + head
    assert count(DeepPoseConfig(backbone=backbone, stages=3)) == 3 * (published + head)


def test_fresh_networks_put_every_joint_in_the_middle():
    variables = init_deep_pose(jax.random.key(0), CONFIG, joints=14)
    images = jnp.array(np.random.default_rng(0).random((2, *SIZE, 3)), jnp.float32)
    for number in range(2):
        positions, logits = apply_stage(stage_of(variables, number), images, CONFIG, joints=14)
        assert positions.shape == (2, 14, 2) and logits.shape == (2, 14)
        np.testing.assert_array_equal(positions, 0.0)
    assert not np.array_equal(*(variables["params"][f"stage_{n}"]["confidence"]["kernel"] for n in range(2)))


def test_dropout_keeps_the_mean_and_leaves_out_the_share_that_is_named():
    config = DeepPoseConfig(backbone="alexnet", input_size=(67, 67), width=1 / 16, dropout=0.6)
    masks = jax.vmap(functools.partial(dropout_masks, config=config))(jax.random.split(jax.random.key(0), 200))
    assert masks.shape == (200, 2, 256)
    assert sorted(np.unique(np.asarray(masks).round(5))) == [0.0, 2.5]
    assert masks.mean() == pytest.approx(1, abs=0.02)


def test_a_mask_of_dropout_silences_the_hidden_layers():
    config = DeepPoseConfig(backbone="alexnet", input_size=(67, 67), width=1 / 32, stages=1)
    variables = stage_of(init_deep_pose(jax.random.key(0), config, joints=3), 0)
    variables["params"]["positions_zero"]["kernel"] += 1.0
    images = jnp.array(np.random.default_rng(0).random((2, 67, 67, 3)), jnp.float32)
    kept = jnp.ones((2, 2, 128)).at[1].set(0.0)
    (positions, _), statistics = apply_stage_training(variables, images, config, joints=3, kept=kept)
    assert (np.abs(positions[0]) > 1e-3).all()
    np.testing.assert_array_equal(positions[1], 0.0)
    assert jax.tree.structure(statistics) == jax.tree.structure(variables["batch_stats"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.backbone=vgg", "backbone must be one of alexnet, resnet18, resnet50"),
        ("model.stages=0", "stages must be at least 1"),
        ("model.dropout=1", "dropout must be from 0 to 0.99"),
        ("model.input_size=16,16", "input_size must be at least 32"),
        ("model.kind=hourglass", "kind is deep_pose, and cannot be changed to 'hourglass': say model=hourglass"),
        ("localization.kind=small", "the STN and SDTN re-map heat maps, which deep_pose has none of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        override(EXPERIMENT, [change])


# Frames


def test_normalised_positions_go_from_edge_to_edge():
    corners = jnp.array([[-0.5, -0.5], [0.5, 0.5], [0.0, 0.0]])
    np.testing.assert_array_equal(points_from_normalised(corners, (4, 8)), [[-0.5, -0.5], [7.5, 3.5], [3.5, 1.5]])


@given(st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=4))
def test_normalised_positions_and_pixels_are_inverse(positions):
    positions = jnp.array(positions, jnp.float32)
    assert_close(normalised_from_points(points_from_normalised(positions, (20, 30)), (20, 30)), positions)


def pose_with_torso(length):
    points = np.full((14, 2), 16.0, np.float32)
    points[LSP_14.joints.index("left_shoulder")] += [0.6 * length, 0.8 * length]
    return jnp.array(points)


@pytest.mark.parametrize(("length", "expected"), [(10.0, 10.0), (1.0, 3.2)])
def test_the_diameter_is_the_torso_s_diagonal_and_no_less_than_a_tenth_of_the_side(length, expected):
    found = pose_diameter(pose_with_torso(length), jnp.ones(14, bool), LSP_14, size=SIZE)
    assert found == pytest.approx(expected)


def test_without_a_torso_the_diameter_is_a_third_of_the_side():
    assert pose_diameter(pose_with_torso(10.0), jnp.zeros(14, bool), LSP_14, size=SIZE) == pytest.approx(32 / 3)


def test_a_joint_stands_in_the_middle_of_its_surroundings():
    config = dataclasses.replace(CONFIG, side=2.0)
    points = jnp.array([[3.0, 4.0], [10.0, 20.0]])
    maps = surroundings(points, jnp.array(5.0), config)
    assert_close(jax.vmap(transform_points)(maps, jnp.full((2, 1, 2), 15.5))[:, 0], points)
    # Ten pixels wide: twice the diameter.
    assert_close(transform_points(maps[0], jnp.array([[-0.5, -0.5], [31.5, 31.5]])), [[-2.0, -1.0], [8.0, 9.0]])


def test_frames_are_the_same_under_jit_and_vmap_and_have_their_derivatives():
    points = jnp.array(np.random.default_rng(0).uniform(2, 30, (3, 14, 2)), jnp.float32)
    every = jnp.ones((3, 14), bool)
    diameter = functools.partial(pose_diameter, skeleton=LSP_14, size=SIZE)
    assert_same_under_jit_and_vmap(diameter, points, every)
    around = functools.partial(surroundings, config=CONFIG)
    assert_same_under_jit_and_vmap(around, points, jnp.array([4.0, 5.0, 6.0]))
    assert_gradients(lambda pose: around(pose, diameter(pose, every[0])), points[0])


def test_of_every_joint_s_surroundings_its_own_part_is_taken():
    found = jnp.arange(2 * 3 * 3 * 2.0).reshape(2, 3, 3, 2)
    expected = np.stack([np.stack([found[p, k, k] for k in range(3)]) for p in range(2)])
    np.testing.assert_array_equal(own_joint(found), expected)


# The cascade at inference


@pytest.fixture
def dots():
    """A picture with a white dot at each of fourteen joints, and where they are."""
    y, x = np.mgrid[:4, :4].reshape(2, -1)[:, :14] * 24 + 20
    points = np.stack([x, y], -1).astype(np.float32) + np.random.default_rng(0).integers(-4, 5, (14, 2))
    picture = np.zeros((120, 120, 3), np.uint8)
    for column, row in points.astype(int):
        picture[row, column] = 255
    return jnp.array(picture), points


def brightest(images):
    """The brightest pixel of each picture, normalised, said of every joint."""
    size = images.shape[1:3]
    best = images.sum(-1).reshape(len(images), -1).argmax(1)
    points = jnp.stack([best % size[1], best // size[1]], -1).astype(jnp.float32)
    return jnp.broadcast_to(normalised_from_points(points, size)[:, None], (len(images), 14, 2))


def test_a_later_stage_corrects_the_one_before_in_the_picture_s_frame(dots, monkeypatch):
    picture, points = dots
    config, crop = dataclasses.replace(CONFIG, side=0.25), jnp.zeros((1, *SIZE, 3))
    # The crop shows the picture at a quarter of its size, moved by eight pixels.
    picture_from_crop = jnp.array([[[4.0, 0.0, -8.0], [0.0, 4.0, -8.0]]])
    truth = (points + 8) / 4

    def stage(variables, images, config, *, joints):
        if variables["params"] == "first":
            off = truth + np.random.default_rng(1).uniform(-0.8, 0.8, (14, 2))
            return normalised_from_points(jnp.array(off, jnp.float32), SIZE)[None], jnp.zeros((1, 14))
        return brightest(images), jnp.full((len(images), 14), 3.0)

    monkeypatch.setattr(deep_pose, "apply_stage", stage)
    variables = {"params": {"stage_0": "first", "stage_1": "second"}}
    settings = {"skeleton": LSP_14, "flip_test": False}
    found, score = estimate_positions(variables, picture, crop, picture_from_crop, config, **settings)
    assert np.abs(found[0] - points).max() < 0.6
    assert_close(score, jnp.full((1, 14), 1 / (1 + np.exp(-3.0))))
    one = dataclasses.replace(config, stages=1)
    rough, score = estimate_positions(variables, picture, crop, picture_from_crop, one, **settings)
    assert np.abs(rough[0] - points).max() > 2
    assert (np.asarray(score) == 0.5).all()


def random_variables():
    """All stages, with positions that depend on what is seen."""
    variables = init_deep_pose(jax.random.key(0), CONFIG, joints=14)
    for number in range(2):
        kernel = variables["params"][f"stage_{number}"]["positions_zero"]["kernel"]
        kernel += 0.05 * np.random.default_rng(number).normal(size=kernel.shape)
    return variables


@pytest.mark.slow
def test_with_the_flip_test_a_mirrored_person_has_the_mirrored_pose():
    image = jnp.array(np.random.default_rng(3).integers(0, 256, (*SIZE, 3)), jnp.float32)
    settings = {"skeleton": LSP_14, "flip_test": True}
    variables = random_variables()
    estimate = jax.jit(
        lambda picture: estimate_positions(
            variables, picture, picture[None] / 255, jnp.eye(2, 3)[None], CONFIG, **settings
        )
    )
    points, score = estimate(image)
    mirrored, again = estimate(image[:, ::-1])
    order = np.array(LSP_14.flip_order)
    assert_close(np.asarray(mirrored[0][order]) * [-1, 1] + [SIZE[1] - 1, 0], points[0], atol=1e-3)
    assert_close(again[0][order], score[0], atol=1e-4)
    assert np.abs(points[0] - 15.5).max() > 0.1


@pytest.mark.slow
def test_the_estimator_predicts_evaluates_and_reads_its_weights(tmp_path):
    weights = Weights(EXPERIMENT, random_variables())
    save_weights(tmp_path / "deep.safetensors", weights)
    read = load_weights(tmp_path / "deep.safetensors")
    assert read.experiment.model == CONFIG
    assert_identical(read.variables, weights.variables)
    estimator = Estimator(read, batch=2)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    poses = estimator(image, [[10, 5, 40, 55], [40, 5, 75, 58], [np.nan, 0, 1, 1]])
    assert poses.points.shape == (2, 14, 2) and np.isfinite(poses.points).all()
    assert ((poses.score > 0) & (poses.score < 1)).all()


# A training step


@functools.cache
def first_state():
    return init_state(jax.random.key(0), EXPERIMENT)


@functools.cache
def compiled_step():
    return jax.jit(functools.partial(train_step, experiment=EXPERIMENT))


@pytest.mark.slow
def test_the_first_loss_is_the_summed_squared_distance_from_the_middle():
    one = override(EXPERIMENT, ["model.stages=1"])
    batch, state = tiny.random_batch(), init_state(jax.random.key(0), one)
    crops = training_crops(batch, example_keys(tiny.KEY, state.step, batch), experiment=one)
    unit = normalised_from_points(crops.points, SIZE)
    expected = (unit**2).sum(-1)[crops.labelled].sum() / crops.labelled.sum()
    _, metrics = jax.jit(functools.partial(train_step, experiment=one))(state, batch, tiny.KEY)
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_one_batch_can_be_learned_by_heart():
    state, losses = first_state(), []
    for _ in range(60):
        state, metrics = compiled_step()(state, tiny.random_batch(), tiny.KEY)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])
    points = jax.jit(functools.partial(predict_step, experiment=EXPERIMENT))(state.average, tiny.random_batch())
    assert points.shape == (4, 14, 2) and np.isfinite(points).all()


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_four_devices_take_the_steps_of_one(accumulate):
    experiment = override(EXPERIMENT, ["optim.batch=8", f"optim.accumulate={accumulate}", "optim.learning_rate=1e-4"])
    halves = tiny.random_batch(1), tiny.random_batch(2)
    batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *halves)
    batch = dataclasses.replace(batch, index=jnp.arange(8, dtype=jnp.int32))
    found = []
    for mapped in (jax.jit, pmap_step):
        step = mapped(functools.partial(train_step, experiment=experiment))
        state, metrics = init_state(jax.random.key(0), experiment), {}
        for _ in range(3):
            state, metrics = step(state, batch, tiny.KEY)
        found.append((metrics["loss"], metrics["accuracy"], state.variables["batch_stats"]["error_0"]))
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_what_the_confidence_learns_does_not_reach_the_positions(monkeypatch):
    gradients = []
    for weight in (0.01, 10.0):
        monkeypatch.setattr(regression, "_CONFIDENCE", weight)
        part = functools.partial(regression.regression_part, first_state(), jnp.array(40), tiny.KEY, EXPERIMENT)
        _, (gradient, sums) = jax.jit(functools.partial(part, None, None))(
            first_state().variables["batch_stats"], tiny.random_batch()
        )
        gradients.append((gradient, sums))
    (mild, sums), (strong, again) = gradients
    assert_close(again, sums)
    for stage in mild:
        assert_close(strong[stage]["positions_zero"], mild[stage]["positions_zero"], rtol=1e-4)
        assert_close(strong[stage]["confidence"]["bias"], 1000 * mild[stage]["confidence"]["bias"], rtol=1e-3)
        assert np.abs(mild[stage]["confidence"]["bias"]).max() > 0


def test_later_stages_see_joints_off_by_errors_of_the_given_law():
    config = dataclasses.replace(CONFIG, displacements=4000, side=4.0, input_size=(32, 32))
    batch = tiny.random_batch()
    crops = training_crops(batch, example_keys(tiny.KEY, jnp.array(0), batch), experiment=EXPERIMENT)
    crop = jax.tree.map(lambda leaf: leaf[0], crops)
    mean, var = np.tile([0.1, -0.2], (14, 1)), np.tile([0.04, 0.01], (14, 1))
    errors = {"mean": jnp.array(mean, jnp.float32), "var": jnp.array(var, jnp.float32)}
    shown = jax.jit(functools.partial(regression._surroundings, errors=errors, config=config))(
        jax.random.key(5), batch.canvas[0], crop, jnp.array(6.0)
    )
    # A start that is off by an error sees the joint off by its opposite; four diameters are one unit.
    off = -4 * np.asarray(shown.target[:, 0])
    assert_close(off.mean(0), mean[0], atol=0.02)
    assert_close(off.var(0), var[0], rtol=0.1, atol=0.0)
    assert set(np.asarray(shown.joint).ravel()) == set(range(14))
    np.testing.assert_array_equal(shown.counted[:, 0], crop.labelled[shown.joint[:, 0]])


def test_the_running_errors_by_hand():
    seen = regression._Shown(
        images=jnp.zeros((2, 1, 1, 3)),
        joint=jnp.array([[0, 1], [0, 1]]),
        target=jnp.zeros((2, 2, 2)),
        counted=jnp.array([[True, False], [True, False]]),
        diameter=jnp.ones(2),
    )
    old = {"mean": jnp.ones((3, 2)), "var": jnp.ones((3, 2))}
    off = jnp.array([[[0.2, 0.0], [9.0, 9.0]], [[0.4, 5.0], [9.0, 9.0]]])
    found = regression._running(old, off, seen, joints=3, axis_name=None)
    # The first joint: means 0.3 and (0 + 1) / 2, variances 0.01 and 0.25; the others were not counted.
    assert_close(found["mean"], [[0.95 + 0.05 * 0.3, 0.95 + 0.05 * 0.5], [1, 1], [1, 1]])
    assert_close(found["var"], [[0.95 + 0.05 * 0.01, 0.95 + 0.05 * 0.25], [1, 1], [1, 1]])


def test_an_stn_needs_heat_maps():
    with pytest.raises(ConfigError, match="localization.kind"):
        dataclasses.replace(EXPERIMENT, localization=LocalizationConfig(kind="small"))


def test_coinciding_joints_have_a_finite_gradient():
    points = jnp.full((14, 2), 5.0)
    gradient = jax.grad(lambda each: pose_diameter(each, jnp.ones(14, bool), LSP_14, size=SIZE))(points)
    np.testing.assert_array_equal(gradient, 0)
