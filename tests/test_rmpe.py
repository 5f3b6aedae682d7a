import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from checks import assert_close, assert_identical
from made_data import picture

from rmpe_jax.config import AugmentConfig, DeepPoseConfig, LocalizationConfig, override
from rmpe_jax.geometry.affine import compose, invert_affine, pixels_of_resized, transform_points
from rmpe_jax.geometry.remapping import crop_from_stn, sdtn, stn
from rmpe_jax.geometry.sampling import crop_image
from rmpe_jax.heatmaps import decode_dark, decode_heatmaps
from rmpe_jax.models import rmpe as rmpe_module
from rmpe_jax.models.hourglass import apply_hourglass, apply_hourglass_training, init_hourglass
from rmpe_jax.models.localization import init_localization
from rmpe_jax.models.rmpe import (
    LOCALIZATION,
    SPPE,
    Remapped,
    apply_estimator_training,
    estimator_shapes,
    has_stn,
    init_estimator,
    join_parts,
    parallel_heatmaps,
    part_of,
    remap_crops,
    sppe_of,
)
from rmpe_jax.models.single_person import crop_people
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.pretrained import Weights, load_weights, save_weights
from rmpe_jax.train import plan
from rmpe_jax.train import step as step_module
from rmpe_jax.train.augment import heatmap_targets, random_crop
from rmpe_jax.train.checkpoint import Checkpoints
from rmpe_jax.train.loop import train as run
from rmpe_jax.train.parallel import pmap_step
from rmpe_jax.train.step import init_state, predict_step, train_step

SIZE, JOINTS = tiny.EXPERIMENT.model.input_size, tiny.JOINTS
# The localization network learns at a fiftieth of the rate: at 5e-3 the STN leaves the picture within a few steps.
PICTURE = dataclasses.replace(
    tiny.EXPERIMENT, localization=LocalizationConfig(kind="small", rate=0.02, parallel_weight=0.1)
)
CROP = dataclasses.replace(tiny.EXPERIMENT, localization=LocalizationConfig(kind="small", source="crop", rate=0.0))
TWO_STACKS = dataclasses.replace(tiny.EXPERIMENT.model, stacks=2)
IDENTITY = np.eye(2, 3, dtype=np.float32)


def with_theta(variables, theta):
    """Variables whose localization network gives every crop the same theta."""
    bias = jnp.ravel(jnp.asarray(theta) - IDENTITY)
    params = variables["params"]
    last = {**params[LOCALIZATION]["theta_zero"], "bias": bias}
    localization = {**params[LOCALIZATION], "theta_zero": last}
    return {**variables, "params": {**params, LOCALIZATION: localization}}


def other_hourglass(model=tiny.EXPERIMENT.model):
    return init_hourglass(jax.random.key(5), model, joints=JOINTS)


@functools.cache
def first_state():
    """An STN in front of the tiny hourglass, and another hourglass as the parallel SPPE."""
    start = tiny.first_state().variables
    return init_state(jax.random.key(0), PICTURE, start=start, frozen=other_hourglass())


@functools.cache
def compiled_step():
    return jax.jit(functools.partial(train_step, experiment=PICTURE))


def train(state, batches):
    """The state after one step on each batch, and the losses: with the parallel SPPE's, and its part."""
    losses = []
    for batch in batches:
        state, metrics = compiled_step()(state, batch, tiny.KEY)
        losses.append((float(metrics["loss"]), float(metrics["parallel_loss"])))
    return state, losses


@functools.cache
def trained():
    """The state after a few steps on changing batches, and the losses."""
    return train(first_state(), [tiny.random_batch(seed) for seed in range(4)])


def crops(count=3):
    return jax.random.uniform(jax.random.key(1), (count, *SIZE, 3))


def resampled(images):
    """The crops along theta, as the paper samples them."""
    return lambda theta: jax.vmap(lambda image, inner: stn(image, inner, SIZE))(images, theta)


@functools.partial(jax.jit, static_argnames="experiment")
def remap(variables, images, experiment=PICTURE):
    return apply_estimator_training(variables, images, resampled(images), experiment=experiment)


# Variables


def test_parts_are_joined_and_taken_out_again():
    sppe, localization = {"params": 1, "batch_stats": 2}, {"params": 3, "batch_stats": 4}
    joined = join_parts(sppe, localization)
    assert joined == {"params": {SPPE: 1, LOCALIZATION: 3}, "batch_stats": {SPPE: 2, LOCALIZATION: 4}}
    assert part_of(joined, SPPE) == sppe and part_of(joined, LOCALIZATION) == localization
    assert sppe_of(joined, PICTURE) == sppe and sppe_of(sppe, tiny.EXPERIMENT) == sppe
    assert has_stn(PICTURE) and not has_stn(tiny.EXPERIMENT)


def test_fresh_variables_have_the_shapes_of_the_experiment():
    for experiment in (tiny.EXPERIMENT, PICTURE):
        shapes, variables = estimator_shapes(experiment), init_estimator(jax.random.key(0), experiment)
        assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda leaf: leaf.shape, variables)
    assert_identical(sppe_of(variables, PICTURE), init_estimator(jax.random.key(0), tiny.EXPERIMENT))


def test_a_run_with_an_stn_starts_from_an_hourglass_or_from_both():
    state, hourglass = first_state(), tiny.first_state().variables
    assert_identical(sppe_of(state.variables, PICTURE), hourglass)
    fresh = init_localization(jax.random.key(0), PICTURE.localization, SIZE)
    assert_identical(jax.tree.map(np.asarray, part_of(state.variables, LOCALIZATION)), fresh)
    both = with_theta(state.variables, [[1.0, 0, 0.1], [0, 1, 0]])
    assert_identical(init_state(jax.random.key(3), PICTURE, start=both).variables, both)
    assert_identical(state.average, state.variables)
    assert_identical(jax.tree.map(np.asarray, state.frozen), other_hourglass())
    assert init_state(jax.random.key(0), PICTURE).frozen == {}


# A fresh STN changes nothing


@pytest.mark.slow
def test_a_fresh_stn_gives_the_maps_of_the_plain_hourglass_exactly():
    state = first_state()
    made, statistics = remap(state.variables, crops())
    plain = jax.jit(functools.partial(apply_hourglass_training, config=tiny.EXPERIMENT.model, joints=JOINTS))
    maps, expected = plain(sppe_of(state.variables, PICTURE), crops())
    np.testing.assert_array_equal(made.maps, maps)
    np.testing.assert_array_equal(made.theta, np.broadcast_to(IDENTITY, (3, 2, 3)))
    np.testing.assert_allclose(made.images, crops(), rtol=0, atol=1e-6)
    assert_identical(statistics[SPPE], expected)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["picture", "crop"])
def test_an_estimator_with_a_fresh_stn_gives_the_poses_without_one(tiny_weights, tiny_estimator, source):
    plain = tiny_weights.experiment
    experiment = dataclasses.replace(plain, localization=LocalizationConfig(kind="small", source=source))
    fresh = init_localization(jax.random.key(4), experiment.localization, plain.model.input_size)
    weights = Weights(experiment, join_parts(tiny_weights.variables, fresh))
    estimator = Estimator(weights, batch=4, nms=None, flip_test=False)
    # The second is shrunk to a fifth and reads a halved copy of the picture.
    boxes = np.array([[10, 10, 60, 90], [-20, -30, 110, 120], [50, 20, 119, 99], [0, 0, 8, 8]], np.float32)
    found, expected = (e.poses_in_boxes(picture(100, 120), boxes) for e in (estimator, tiny_estimator))
    np.testing.assert_array_equal(found.points, expected.points)
    # Sampled again, a crop is the same to the last bit but one: compiled together, products are rounded otherwise.
    np.testing.assert_allclose(found.score, expected.score, rtol=0, atol=0 if source == "picture" else 1e-5)


@pytest.mark.slow
def test_evaluation_with_a_fresh_stn_predicts_what_none_predicts():
    # A box beyond its canvas: the crop is smaller than the canvas and reads a halved copy.
    batch = tiny.random_batch()
    batch = dataclasses.replace(batch, box=batch.box + jnp.array([[-25.0, -25.0, 25.0, 25.0]]))
    points = [
        jax.jit(functools.partial(predict_step, experiment=experiment))(state.variables, batch)
        for experiment, state in ((PICTURE, first_state()), (tiny.EXPERIMENT, tiny.first_state()))
    ]
    np.testing.assert_array_equal(*points)


# An STN that does something


def test_the_picture_is_sampled_once_along_both_maps_and_the_crop_again():
    theta = jnp.array([[0.6, 0.1, 0.2], [-0.1, 0.7, -0.1]])
    image, boxes = jnp.asarray(picture(40, 50)), jnp.array([[10.0, 10, 30, 30]])
    variables = with_theta(first_state().variables, theta)

    @jax.jit
    def run(variables):
        crop, image_from_crop = crop_people(image, boxes, experiment=PICTURE)
        along = compose(image_from_crop[0], crop_from_stn(theta, SIZE))
        expected = crop_image(image, along, SIZE) / 255, stn(crop[0], theta, SIZE)
        given = variables, image, crop, image_from_crop
        return expected, along, [remap_crops(*given, experiment=experiment) for experiment in (PICTURE, CROP)]

    expected, along, found = run(variables)
    for seen, (crops, maps) in zip(expected, found, strict=True):
        assert_close(crops[0], seen, atol=1e-4)
        assert_close(maps[0], along, atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 0.01


@pytest.mark.slow
def test_the_maps_are_those_of_the_resampled_crop_put_back():
    theta = jnp.array([[0.8, 0.1, 0.1], [-0.1, 0.9, -0.1]])
    state, images = first_state(), crops()
    made, _ = remap(with_theta(state.variables, theta), images)
    assert_close(made.theta, np.stack([theta] * 3))

    @jax.jit
    def by_hand(sppe):
        seen = resampled(images)(made.theta)
        maps, _ = apply_hourglass_training(sppe, seen, PICTURE.model, joints=JOINTS)
        return jax.vmap(jax.vmap(lambda one: sdtn(one, theta)))(maps), seen

    maps, seen = by_hand(sppe_of(state.variables, PICTURE))
    assert_close(made.maps, maps, atol=1e-4)
    assert_close(made.images, seen, atol=1e-4)


@pytest.mark.slow
def test_the_parallel_sppe_has_its_own_architecture_and_running_statistics():
    frozen, images = other_hourglass(TWO_STACKS), crops()
    maps = jax.jit(functools.partial(parallel_heatmaps, config=TWO_STACKS, joints=JOINTS))(frozen, images)
    assert maps.shape == (2, 3, *PICTURE.model.output_size, JOINTS)
    expected = jax.jit(functools.partial(apply_hourglass, config=TWO_STACKS, joints=JOINTS))(frozen, images)
    assert_close(maps, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("paths", ["sampling", "inverse", "parallel", "sampling,inverse"])
def test_the_maps_move_theta_only_through_the_paths_that_are_named(paths):
    localization = dataclasses.replace(PICTURE.localization, paths=paths)
    experiment = dataclasses.replace(PICTURE, localization=localization)
    theta = jnp.array([[0.8, 0.1, 0.1], [-0.1, 0.9, -0.1]])
    variables = with_theta(first_state().variables, theta)

    def strength(bias):
        last = {**variables["params"][LOCALIZATION]["theta_zero"], "bias": bias}
        params = {**variables["params"][LOCALIZATION], "theta_zero": last}
        moved = {**variables, "params": {**variables["params"], LOCALIZATION: params}}
        return jnp.square(remap(moved, crops(), experiment)[0].maps).mean()

    def by_hand(sampled, back):
        seen = resampled(crops())(jnp.stack([sampled] * 3))
        maps, _ = apply_hourglass_training(sppe_of(variables, PICTURE), seen, PICTURE.model, joints=JOINTS)
        return jnp.square(jax.vmap(lambda one: sdtn(one, back), in_axes=1)(maps)).mean()

    found = jax.jit(jax.grad(strength))(jnp.ravel(theta - IDENTITY)).reshape(2, 3)
    parts = dict(zip(("sampling", "inverse"), jax.jit(jax.grad(by_hand, (0, 1)))(theta, theta), strict=True))
    expected = sum((parts[path] for path in paths.split(",") if path in parts), jnp.zeros((2, 3)))
    assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(found).max() > 1e-4 or paths == "parallel"


# Freezing


@pytest.mark.slow
def test_the_parallel_branch_trains_only_the_localization_network():
    state, images = first_state(), crops()

    def beside(params, frozen):
        made, _ = apply_estimator_training(
            {**state.variables, "params": params}, images, resampled(images), experiment=PICTURE
        )
        return jnp.square(parallel_heatmaps(frozen, made.images, PICTURE.model, joints=JOINTS)).mean()

    by_params, by_frozen = jax.jit(jax.grad(beside, (0, 1)))(state.variables["params"], state.frozen)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(by_frozen))
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(by_params[SPPE]))
    last = by_params[LOCALIZATION]["theta_zero"]
    assert np.abs(last["bias"]).min() > 1e-4 and np.abs(last["kernel"]).max(0).min() > 1e-4


@pytest.mark.slow
def test_the_parallel_sppe_never_changes_in_any_bit():
    state, losses = trained()
    assert_identical(jax.tree.map(np.asarray, state.frozen), other_hourglass())
    before, after = (jax.tree.leaves(s.variables["params"]) for s in (first_state(), state))
    assert np.mean([(np.asarray(a) != np.asarray(b)).any() for a, b in zip(before, after, strict=True)]) > 0.9
    assert all(beside > 0 for _, beside in losses)


@pytest.mark.slow
def test_weights_after_training_hold_no_parallel_branch_and_predict_without_it(tmp_path):
    state = trained()[0]
    save_weights(tmp_path / "w.safetensors", Weights(PICTURE, jax.tree.map(np.asarray, state.average)))
    read = load_weights(tmp_path / "w.safetensors")
    assert set(read.variables["params"]) == {SPPE, LOCALIZATION}
    predict = jax.jit(functools.partial(predict_step, experiment=PICTURE))
    np.testing.assert_array_equal(*(predict(v, tiny.random_batch()) for v in (state.average, read.variables)))


# Labels of the parallel branch


VARIED = AugmentConfig(proposals="alphapose_global", rotation_probability=0.5)


@functools.cache
def examples(augment=VARIED):
    """The tiny batch's crops, their targets, and those of the parallel SPPE."""
    experiment = dataclasses.replace(PICTURE, augment=augment)
    make = jax.jit(functools.partial(step_module._examples, experiment=experiment))
    return make(jnp.zeros((), jnp.int32), tiny.random_batch(), tiny.KEY)


def test_patches_neutralise_the_parallel_branch():
    found, targets, centred = examples(AugmentConfig(patch=1.0))
    assert_identical(found.canvas_from_centred, found.canvas_from_crop)
    # The joints go to the canvas and back: the last bits differ.
    assert_close(centred, targets, atol=1e-4)


@pytest.mark.slow
def test_the_branch_wants_the_joints_where_the_labelled_box_would_put_them():
    found, targets, centred = examples()
    batch, flip_order = tiny.random_batch(), np.array(PICTURE.joints.flip_order)
    assert np.abs(found.canvas_from_centred - found.canvas_from_crop).max() > 0.5
    mirrored = np.linalg.det(found.canvas_from_crop[:, :, :2]) < 0
    assert 0 < mirrored.sum() < 4
    map_from_crop = pixels_of_resized(SIZE, PICTURE.model.output_size)
    find = jax.jit(jax.vmap(decode_heatmaps))
    for index, turned in enumerate(mirrored):
        points = batch.points[index][flip_order if turned else np.arange(JOINTS)]
        for canvas_from_target, maps in ((found.canvas_from_crop, targets), (found.canvas_from_centred, centred)):
            wanted = transform_points(compose(map_from_crop, invert_affine(canvas_from_target[index])), points)
            peaks, height = find(maps)
            shown = np.asarray(height[index] > 0.75)  # a joint between four pixels has 0.78
            assert shown.sum() > 5
            assert np.abs(peaks[index] - wanted)[shown].max() < 0.5


def test_the_perfect_crop_of_an_exact_proposal_is_the_crop():
    config = AugmentConfig(proposals="exact")
    crop = functools.partial(random_crop, config=config, size=SIZE, extension=0.3, flip_order=PICTURE.joints.flip_order)
    batch = tiny.random_batch()
    found = jax.jit(jax.vmap(crop))(
        jax.random.split(tiny.KEY, 4), batch.canvas, batch.box, batch.points, batch.labelled
    )
    assert_identical(found.canvas_from_centred, found.canvas_from_crop)


# Steps


@pytest.mark.slow
def test_a_batch_can_be_learned_by_heart_through_the_stn():
    state, losses = train(first_state(), [tiny.random_batch()] * 30)
    whole, beside = np.array(losses).T
    own = whole - beside
    assert np.isfinite(whole).all()
    assert own[-5:].mean() < 0.5 * own[:3].mean() and whole[-5:].mean() < 0.6 * whole[:3].mean()
    bias = state.variables["params"][LOCALIZATION]["theta_zero"]["bias"]
    assert np.abs(bias).max() > 1e-3


@pytest.mark.parametrize("corners", [False, True], ids=["edges", "corners"])
@pytest.mark.parametrize("experiment", [PICTURE, CROP], ids=["picture", "crop"])
def test_training_samples_along_theta_what_the_localization_network_saw(experiment, corners):
    experiment = override(experiment, [f"model.align_corners={corners}".lower()])
    found, batch, theta = (
        examples()[0],
        tiny.random_batch(),
        jnp.array([[0.6, 0.1, 0.2], [-0.1, 0.7, 0]]),
    )
    resample = jax.jit(functools.partial(step_module._resample, experiment=experiment))
    same = resample(batch.canvas, found, jnp.stack([IDENTITY] * 4))
    np.testing.assert_allclose(same, found.image, rtol=0, atol=1e-6)
    seen = resample(batch.canvas, found, jnp.stack([theta] * 4))
    if experiment.localization.source == "crop":
        expected = stn(found.image[1], theta, SIZE, align_corners=corners)
    else:
        along = compose(found.canvas_from_crop[1], crop_from_stn(theta, SIZE, align_corners=corners))
        expected = jnp.clip(crop_image(batch.canvas[1], along, SIZE) / 255 * found.colour[1][None, None], 0, 1)
    assert_close(seen[1], expected, atol=1e-4)


@pytest.mark.parametrize("corners", [False, True], ids=["edges", "corners"])
def test_training_takes_maps_back_in_the_frame_that_they_were_made_in(monkeypatch, corners):
    # Both networks are made up: maps with one bump for each joint, and one theta.
    experiment = override(PICTURE, [f"model.align_corners={corners}".lower(), "model.input_size=64,64"])
    size, theta = experiment.model.input_size, jnp.array([[0.8, 0.1, 0.1], [-0.1, 0.9, -0.05]])
    points = jnp.array(np.random.default_rng(0).uniform(24, 40, (JOINTS, 2)), jnp.float32)
    frames = {"size": size, "output_size": experiment.model.output_size, "sigma": 2.0, "align_corners": corners}
    draw = functools.partial(heatmap_targets, labelled=jnp.ones(JOINTS, bool), **frames)
    in_stn = transform_points(invert_affine(crop_from_stn(theta, size, align_corners=corners)), points)
    monkeypatch.setattr(rmpe_module, "apply_hourglass_training", lambda *_, **__: (draw(in_stn)[None, None], {}))
    monkeypatch.setattr(rmpe_module, "apply_localization_training", lambda *_, **__: (theta[None], {}))
    variables = {"params": {SPPE: {}, LOCALIZATION: {}}, "batch_stats": {SPPE: {}, LOCALIZATION: {}}}
    crops = jnp.zeros((1, *size, 3))
    made, _ = rmpe_module.apply_estimator_training(variables, crops, lambda _: crops, experiment=experiment)
    off = jax.vmap(decode_dark)(made.maps[0])[0][0] - jax.vmap(decode_dark)(draw(points)[None])[0][0]
    assert np.abs(off).max() < 0.1


def test_a_parallel_sppe_whose_maps_lie_otherwise_is_refused(tmp_path):
    model = dataclasses.replace(tiny.EXPERIMENT.model, align_corners=True)
    beside = dataclasses.replace(tiny.EXPERIMENT, model=model)
    save_weights(tmp_path / "beside.safetensors", Weights(beside, other_hourglass(model)))
    given = [f"localization.parallel={tmp_path / 'beside.safetensors'}", "data.synthetic=8", "data.min_joints=1"]
    with pytest.raises(plan.TrainingError, match="lie on the crop otherwise: say model.align_corners=true"):
        plan.plan_run(override(PICTURE, given))


@pytest.mark.slow
def test_at_rate_zero_only_the_estimator_learns(monkeypatch):
    # Two numbers stand in for the networks: the step is what is tested.
    variables = {"params": {SPPE: {"a": jnp.ones(())}, LOCALIZATION: {"b": jnp.ones(())}}, "batch_stats": {}}

    def networks(variables, crops, sample, **settings):
        level = variables["params"][SPPE]["a"] + variables["params"][LOCALIZATION]["b"]
        maps = jnp.broadcast_to(level, (1, len(crops), *PICTURE.model.output_size, JOINTS))
        return Remapped(maps, jnp.stack([IDENTITY] * len(crops)), crops), {}

    monkeypatch.setattr(step_module, "apply_estimator_training", networks)
    state, moved = init_state(jax.random.key(0), CROP, start=variables), {}
    for rate in (0.0, 0.5):
        localization = dataclasses.replace(CROP.localization, rate=rate)
        step = jax.jit(functools.partial(train_step, experiment=dataclasses.replace(CROP, localization=localization)))
        after = step(step(state, tiny.random_batch(), tiny.KEY)[0], tiny.random_batch(), tiny.KEY)[0]
        moved[rate] = jax.tree.map(lambda new, old: float(old - new), after.variables["params"], variables["params"])
    for rate, change in moved.items():
        assert change[SPPE]["a"] > 1e-3 and change[LOCALIZATION]["b"] == pytest.approx(
            rate * change[SPPE]["a"], rel=1e-3
        )


@pytest.mark.slow
def test_by_small_differences_theta_learns_from_the_parallel_sppe_what_it_learns_exactly():
    # The bias of the last layer is moved by theta's gradient alone; only its direction survives the optimiser's first
    # step, so the gradient is read from the optimiser's first moment.
    variables = with_theta(first_state().variables, [[0.8, 0.1, 0.1], [-0.1, 0.9, -0.1]])
    moments = {}
    for step in (0.0, 1e-2):
        localization = dataclasses.replace(PICTURE.localization, parallel_step=step, paths="parallel")
        experiment = dataclasses.replace(PICTURE, localization=localization)
        state = init_state(jax.random.key(0), experiment, start=variables, frozen=other_hourglass())
        after, metrics = jax.jit(functools.partial(train_step, experiment=experiment))(
            state, tiny.random_batch(), tiny.KEY
        )
        moment = optax.tree_utils.tree_get(after.optimizer, "mu")[LOCALIZATION]["theta_zero"]["bias"]
        moments[step] = np.asarray(moment), float(metrics["loss"]), float(metrics["parallel_loss"])
    (exact, *losses), (found, *same) = moments.values()
    np.testing.assert_allclose(losses, same, rtol=1e-5)
    # A random network is not smooth: the slope over a hundredth is nearly, not quite, the derivative.
    cosine = exact @ found / np.linalg.norm(exact) / np.linalg.norm(found)
    assert cosine > 0.9 and 0.5 < np.linalg.norm(found) / np.linalg.norm(exact) < 2


@pytest.mark.slow
@pytest.mark.parametrize("step", [0.0, 0.1])
def test_the_step_compares_the_parallel_sppe_with_the_centred_labels_at_its_weight(step):
    localization = dataclasses.replace(PICTURE.localization, parallel_step=step, parallel_weight=0.7)
    experiment = dataclasses.replace(PICTURE, localization=localization, augment=VARIED)
    theta = [[0.8, 0.1, 0.1], [-0.1, 0.9, -0.1]]
    start, batch = with_theta(first_state().variables, theta), tiny.random_batch()
    frozen = other_hourglass()
    state = init_state(jax.random.key(0), experiment, start=start, frozen=frozen)
    _, metrics = jax.jit(functools.partial(train_step, experiment=experiment))(state, batch, tiny.KEY)

    @jax.jit
    def by_hand(batch):
        crops, targets, centred = step_module._examples(jnp.zeros((), int), batch, tiny.KEY, experiment)
        thetas = jnp.broadcast_to(jnp.array(theta), (len(crops.image), 2, 3))
        images = step_module._resample(batch.canvas, crops, thetas, experiment=experiment)
        maps = apply_hourglass(frozen, images, experiment.model, joints=JOINTS)
        weight = 1 + experiment.optim.positive_weight

        def loss(target):
            factor = 1 + (weight - 1) * target[None]
            each = (factor * (maps - target[None]) ** 2).mean((2, 3))
            return jnp.where(crops.labelled[None], each, 0).sum() / crops.labelled.sum()

        return loss(centred), loss(targets)

    expected, other = by_hand(batch)
    np.testing.assert_allclose(metrics["parallel_loss"], 0.7 * expected, rtol=1e-4)
    assert abs(other / expected - 1) > 1e-3


@pytest.mark.slow
def test_without_the_path_of_the_parallel_sppe_its_loss_moves_nothing():
    moved = []
    for frozen, paths in ((other_hourglass(), "sampling,inverse"), (None, "sampling,inverse,parallel")):
        localization = dataclasses.replace(PICTURE.localization, paths=paths)
        experiment = dataclasses.replace(PICTURE, localization=localization)
        state = init_state(jax.random.key(0), experiment, start=first_state().variables, frozen=frozen)
        step = jax.jit(functools.partial(train_step, experiment=experiment))
        moved.append(step(state, tiny.random_batch(), tiny.KEY)[0].variables["params"])
    assert_close(*moved, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_four_devices_give_what_one_device_gives_with_an_stn():
    assert len(jax.devices()) == 4
    step, state, losses = pmap_step(functools.partial(train_step, experiment=PICTURE)), first_state(), []
    for seed in range(4):
        state, metrics = step(state, tiny.random_batch(seed), tiny.KEY)
        losses.append((float(metrics["loss"]), float(metrics["parallel_loss"])))
        if seed == 0:
            alone, _ = train(first_state(), [tiny.random_batch(seed)])
            # Only after the first step, see ``test_step``.
            moments = [optax.tree_utils.tree_get(s.optimizer, "mu") for s in (state, alone)]
            assert_close(*moments, rtol=1e-3, atol=1e-5)
            assert_close(state.variables["batch_stats"], alone.variables["batch_stats"], rtol=1e-4, atol=1e-5)
    assert_identical(jax.tree.map(np.asarray, state.frozen), other_hourglass())
    np.testing.assert_allclose(losses, trained()[1], rtol=1e-3)


# Files


def test_weights_with_an_stn_are_read_back_in_every_bit(tmp_path):
    variables = with_theta(init_estimator(jax.random.key(2), PICTURE), [[0.9, 0.1, 0.2], [0.3, 0.8, 0.1]])
    weights = Weights(PICTURE, jax.tree.map(np.asarray, variables))
    save_weights(tmp_path / "w.safetensors", weights)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert_identical(loaded.variables, weights.variables)
    assert loaded.experiment == PICTURE


def test_a_checkpoint_holds_the_parallel_sppe(tmp_path):
    state = dataclasses.replace(first_state(), step=jnp.array(3, jnp.int32))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, PICTURE)
    empty = jax.tree.map(jnp.zeros_like, state)
    reports = []
    with Checkpoints(tmp_path) as checkpoints:
        saved = checkpoints.restore(empty, PICTURE, report=reports.append)
    assert_identical(saved.state, state)
    assert reports == []


@pytest.mark.parametrize("experiment", [tiny.EXPERIMENT, PICTURE], ids=["hourglass", "with an STN"])
def test_a_run_takes_the_hourglass_of_either_weights_as_its_parallel_sppe(tmp_path, monkeypatch, experiment):
    path, given = tmp_path / "beside.safetensors", []
    save_weights(path, Weights(experiment, init_estimator(jax.random.key(2), experiment)))

    def stop(key, experiment, **parts):
        given.append(parts)
        raise InterruptedError

    monkeypatch.setattr(plan, "init_state", stop)
    localization = dataclasses.replace(PICTURE.localization, parallel=str(path))
    data = dataclasses.replace(PICTURE.data, synthetic=4)
    with pytest.raises(InterruptedError):
        run(dataclasses.replace(PICTURE, localization=localization, data=data), tmp_path / "run")
    assert_identical(given[0]["frozen"], init_hourglass(jax.random.key(2), PICTURE.model, joints=JOINTS))
    assert given[0]["start"] is None


# Weights to start from


def test_weights_tell_the_names_of_others_but_not_where_they_lay(tmp_path):
    localization = LocalizationConfig(kind="small", parallel="/somewhere/beside.safetensors")
    experiment = dataclasses.replace(PICTURE, start="/somewhere/start.safetensors", localization=localization)
    save_weights(tmp_path / "a.safetensors", Weights(experiment, init_estimator(jax.random.key(0), experiment)))
    read = load_weights(tmp_path / "a.safetensors").experiment
    assert (read.start, read.localization.parallel) == ("start.safetensors", "beside.safetensors")


def start_of(tmp_path, experiment, **changes):
    """An experiment that starts from fresh weights of another one."""
    other = dataclasses.replace(experiment, **changes)
    path = tmp_path / "start.safetensors"
    save_weights(path, Weights(other, init_estimator(jax.random.key(3), other)))
    return plan._starting_variables(dataclasses.replace(experiment, start=str(path)))


def test_an_hourglass_starts_an_experiment_with_an_stn_and_the_other_way_round(tmp_path):
    plain = start_of(tmp_path, PICTURE, localization=LocalizationConfig())
    assert plain is not None and SPPE not in plain["params"]
    again = start_of(tmp_path, tiny.EXPERIMENT, localization=PICTURE.localization)
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    both = start_of(tmp_path, PICTURE)
    assert both is not None and set(both["params"]) == {SPPE, LOCALIZATION}


def test_weights_of_another_architecture_do_not_start_a_run(tmp_path):
    wide = dataclasses.replace(tiny.EXPERIMENT.model, features=16)
    with pytest.raises(
        plan.TrainingError,
        match=r"start\.safetensors: of another architecture or crop: features: 16 against 8",
    ):
        start_of(tmp_path, tiny.EXPERIMENT, model=wide)
    other_layout = dataclasses.replace(tiny.EXPERIMENT.model, layout="bearpaw")
    with pytest.raises(plan.TrainingError, match="of another architecture or crop: layout: bearpaw against rmpe"):
        start_of(tmp_path, tiny.EXPERIMENT, model=other_layout)
    with pytest.raises(plan.TrainingError, match="of another architecture or crop: kind: deep_pose against hourglass"):
        start_of(tmp_path, tiny.EXPERIMENT, model=DeepPoseConfig(width=1 / 32, stages=1, input_size=(32, 32)))
    with pytest.raises(plan.TrainingError, match=r"predicts coco_17, but the experiment lsp_14"):
        start_of(tmp_path, tiny.EXPERIMENT, skeleton="coco_17")
