"""The network that scores DPG's proposals, and its training."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_identical, assert_same_under_jit_and_vmap
from made_data import figure

from rmpe_jax.errors import RmpeError
from rmpe_jax.models.proposal_scorer import apply_scorer, init_scorer, scorer_shapes
from rmpe_jax.proposals.mixtures import offsets_of
from rmpe_jax.proposals.offsets import moved_box
from rmpe_jax.proposals.scored import (
    INDICATOR_SIZE,
    ScoredProposals,
    indicator_image,
    indicator_profiles,
    pose_image,
    random_boxes,
    sample_scored,
    window_around,
)
from rmpe_jax.skeleton import COCO_17
from rmpe_jax.train import proposal_scorer
from rmpe_jax.train.proposal_scorer import fit_scorer, mirrored, scorer_loss

BOX = (10.0, 5.0, 60.0, 165.0)
OWN = jnp.array(BOX)
STANDING = figure(COCO_17.joints, BOX)
JOINTS = jnp.array(STANDING, jnp.float32)
ALL = jnp.ones(17, bool)
scores = jax.jit(apply_scorer)


@functools.cache
def fresh():
    return init_scorer(jax.random.key(0))


@functools.cache
def trained():
    """Variables of which none is zero."""
    rng = np.random.default_rng(1)
    shift = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.1).astype(np.float32), fresh())
    return jax.tree.map(np.add, fresh(), shift)


@functools.cache
def proposals(count=9):
    return random_boxes(jax.random.key(3), OWN, num=count)


def profiles_of(boxes, size=INDICATOR_SIZE):
    return jax.vmap(lambda box: indicator_profiles(box, window_around(OWN), size))(boxes)


@functools.cache
def seen():
    """What the network sees of one person: the pose, rows and columns."""
    return pose_image(JOINTS, ALL, window_around(OWN)), *profiles_of(proposals())


# The network


def test_the_network_has_56_609_parameters():
    shapes = scorer_shapes()
    assert list(shapes) == ["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 56_609
    assert jax.tree.map(np.shape, fresh()) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_a_fresh_network_gives_every_proposal_the_probability_one_half():
    np.testing.assert_array_equal(scores(fresh(), *seen()), np.zeros(9))


def test_other_keys_give_other_networks_and_the_same_key_the_same():
    assert_identical(init_scorer(jax.random.key(0)), fresh())
    other = init_scorer(jax.random.key(1))["params"]["Conv_0"]["kernel"]
    assert (other != fresh()["params"]["Conv_0"]["kernel"]).all()


def convolved(image, layer, stride=1):
    """A convolution by 3 x 3 with as many pixels as there were over the stride, tap by tap."""
    height, width = image.shape[0] // stride, image.shape[1] // stride
    before = 1 if stride == 1 else 0
    padded = np.pad(image, ((before, 2 - before), (before, 2 - before), (0, 0)))
    total = np.zeros((height, width, layer["kernel"].shape[-1])) + layer["bias"]
    for row in range(3):
        for column in range(3):
            part = padded[row : row + stride * height : stride, column : column + stride * width : stride]
            total += part @ layer["kernel"][row, column]
    return total


def slow_scores(variables, image, boxes):
    """The network in float64 on full pictures of the proposals, one after another."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, float), variables["params"])

    def relu(x):
        return np.maximum(x, 0)

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    x = 1 - np.asarray(image, float)
    x = relu(convolved(relu(convolved(x, params["Conv_0"], 2)), params["Conv_1"], 2))
    maps = convolved(x, params["Conv_2"])
    whole = relu(dense(relu(convolved(x, params["Conv_3"], 2)).reshape(-1), "Dense_0"))
    result = []
    for box in boxes:
        indicator = np.asarray(indicator_image(box, window_around(OWN), size=INDICATOR_SIZE), float)
        inside = sum(
            maps[row, column] * (1 - indicator[row, column])
            for row in range(INDICATOR_SIZE)
            for column in range(INDICATOR_SIZE)
        )
        rows, columns = indicator_profiles(box, window_around(OWN), INDICATOR_SIZE)
        y = dense(np.concatenate([inside / INDICATOR_SIZE, rows, columns]), "Dense_1") + dense(whole, "Dense_2")
        result.append(dense(relu(dense(relu(y), "Dense_3")), "logit_zero")[0])
    return np.array(result)


def test_logits_are_those_of_full_pictures_of_the_proposals():
    found = np.asarray(scores(trained(), *seen()))
    assert found.std() > 0.05
    assert_close(found, slow_scores(trained(), seen()[0], proposals()), atol=1e-4)


def test_the_score_depends_on_the_pose_and_on_each_side_of_the_box():
    image, *profiles = seen()
    found = scores(trained(), image, *profiles)
    other = pose_image(JOINTS * jnp.array([[1.0, 0.5]]), ALL, window_around(OWN))
    assert np.abs(scores(trained(), other, *profiles) - found).min() > 1e-3
    for side in range(4):
        moved = profiles_of(proposals() + 8 * jax.nn.one_hot(side, 4)[None])
        assert np.abs(scores(trained(), image, *moved) - found).max() > 1e-3


def test_proposals_do_not_see_each_other():
    image, rows, columns = seen()
    found, order = scores(trained(), *seen()), np.random.default_rng(0).permutation(9)
    assert_close(scores(trained(), image, rows[order], columns[order]), found[order])
    assert_close(scores(trained(), image, rows[:1], columns[:1]), found[:1])


def test_empty_pictures_and_no_proposals_give_finite_logits():
    image, rows, columns = seen()
    for picture in (jnp.ones_like(image), jnp.zeros_like(image)):
        assert np.isfinite(scores(trained(), picture, 0 * rows, 0 * columns)).all()
        assert np.isfinite(scores(trained(), picture, rows, columns)).all()
    assert scores(trained(), image, rows[:0], columns[:0]).shape == (0,)


def test_transformations_change_nothing():
    image, rows, columns = seen()
    images = jnp.stack([image, jnp.ones_like(image), image[::-1]])
    batched = [jnp.stack([part[:4], part[4:8], part[1:5]]) for part in (rows, columns)]
    assert_same_under_jit_and_vmap(functools.partial(apply_scorer, trained()), images, *batched)


# The loss

OFFSET = jnp.array([0.1, -0.2, 0.05, 0.3])
loss = jax.jit(scorer_loss)


def test_the_loss_of_a_fresh_network_is_the_logarithm_of_two(key):
    assert loss(fresh(), key, OWN, JOINTS, ALL, OFFSET) == pytest.approx(math.log(2), abs=1e-6)


def test_the_loss_of_one_logit_for_all_by_hand(key):
    last = {"kernel": fresh()["params"]["logit_zero"]["kernel"], "bias": np.ones(1, np.float32)}
    sure = {"params": {**fresh()["params"], "logit_zero": last}}
    # Half of log(1 + exp(-1)) and of log(1 + exp(1)), however many random boxes there are.
    assert loss(sure, key, OWN, JOINTS, ALL, OFFSET) == pytest.approx((0.313262 + 1.313262) / 2, abs=1e-5)


def test_the_loss_is_that_of_the_detection_and_the_random_boxes(key):
    boxes = jnp.concatenate([moved_box(OWN, OFFSET)[None], random_boxes(key, OWN, num=16)])
    p = 1 / (1 + np.exp(-np.asarray(scores(trained(), seen()[0], *profiles_of(boxes)), float)))
    expected = -(np.log(p[0]) + np.log(1 - p[1:]).mean()) / 2
    assert loss(trained(), key, OWN, JOINTS, ALL, OFFSET) == pytest.approx(expected, abs=1e-5)


def test_gradients_reach_every_layer(key):
    gradient = jax.jit(jax.grad(scorer_loss))(trained(), key, OWN, JOINTS, ALL, OFFSET)
    for name, layer in gradient["params"].items():
        assert np.isfinite(layer["kernel"]).all() and np.abs(layer["kernel"]).max() > 0, name


# Mirroring

KNOWN = jnp.arange(17) % 4 != 1
there = functools.partial(mirrored, flip_order=COCO_17.flip_order)


def uneven():
    """A pose whose sides differ."""
    return JOINTS + jnp.array(np.random.default_rng(0).normal(scale=8, size=(17, 2)), jnp.float32)


def test_mirroring_by_hand():
    points, known, offset = there(OWN, uneven(), KNOWN, OFFSET)
    assert_close(offset, [-0.05, -0.2, -0.1, 0.3])
    left, right = (COCO_17.joints.index(f"{side}_wrist") for side in ("left", "right"))
    assert_close(points[left], [70 - uneven()[right, 0], uneven()[right, 1]])
    assert known[left] == KNOWN[right] and known[right] == KNOWN[left]


def test_mirroring_twice_is_the_identity():
    given = uneven(), KNOWN, OFFSET
    assert_close(there(OWN, *there(OWN, *given)), given, atol=1e-4)


def test_mirroring_agrees_with_mirrored_pictures():
    window, order = window_around(OWN), np.array(COCO_17.flip_order)
    points, known, offset = there(OWN, uneven(), KNOWN, OFFSET)
    # In the mirror a left wrist is in the place, and has the colour, of a right one.
    expected = pose_image(uneven()[order], KNOWN[order], window)[:, ::-1]
    assert_close(pose_image(points, known, window), expected, atol=1e-4)
    boxes = moved_box(OWN, OFFSET), moved_box(OWN, offset)
    one, other = (indicator_image(box, window) for box in boxes)
    assert_close(other, one[:, ::-1], atol=1e-4)


def test_mirroring_keeps_a_standing_figure():
    points, known, offset = there(OWN, JOINTS, ALL, jnp.array([-0.1, 0.2, 0.1, 0.3]))
    assert_close((points, known, offset), (JOINTS, ALL, jnp.array([-0.1, 0.2, 0.1, 0.3])), atol=1e-4)


# The training

SPREAD, STEPS = 0.1, 200
MEANS = np.array([[0, -0.3, 0, 0], [0, 0, 0.3, 0]])


@functools.cache
def planted():
    """Arms up, and knees and feet to the right."""
    up, bent = STANDING.copy(), STANDING.copy()
    for joint, name in enumerate(COCO_17.joints):
        if name.endswith(("elbow", "wrist")):
            up[joint, 1] -= 80
        if name.endswith(("knee", "ankle")):
            bent[joint] += [60, -50]
    return np.stack([up, bent])


@functools.cache
def people(count=300):
    """Boxes, joints, labels, offsets and whose they are: those of arms up are tall, those of the bent ones wide."""
    rng, kind = np.random.default_rng(0), np.arange(count) % 2
    points = planted()[kind] + rng.normal(scale=2, size=(count, 17, 2))
    offsets = MEANS[kind] + rng.normal(scale=SPREAD, size=(count, 4))
    points[0, 0], labelled = np.nan, np.ones((count, 17), bool)
    labelled[0, 0] = False
    return np.tile(BOX, (count, 1)), points, labelled, offsets, np.arange(count)


@functools.cache
def fitted(steps, seed=0):
    return fit_scorer(*people(), COCO_17, steps=steps, seed=seed)


@functools.cache
def chosen_for(pose):
    """Offsets of 400 boxes that the fitted network chooses for a pose, given as bytes."""
    points = jnp.array(np.frombuffer(pose).reshape(17, 2), jnp.float32)
    generator = ScoredProposals(fitted(STEPS)[0], apply_scorer, "coco_17", tuple(range(17)), candidates=1024)
    draw = jax.jit(lambda key: sample_scored(key, OWN, points, ALL, generator, num=4))
    boxes = jnp.concatenate([draw(key) for key in jax.random.split(jax.random.key(0), 100)])
    return np.asarray(offsets_of(boxes, jnp.tile(OWN, (400, 1))))


@pytest.mark.slow
def test_training_tells_planted_detections_from_random_boxes():
    variables, last = fitted(STEPS)
    # One that knew both laws would lose 0.184, one that knows nothing log 2.
    assert 0.18 < last < 0.6 * math.log(2)
    # The average of the steps, as a tree of arrays of the host like a fresh network.
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, fresh())
    assert all(type(leaf) is np.ndarray and np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


@pytest.mark.slow
@pytest.mark.parametrize("pose", [0, 1])
def test_the_boxes_chosen_have_the_planted_offsets_of_the_pose(pose):
    offsets = chosen_for(planted()[pose].tobytes())
    np.testing.assert_allclose(offsets.mean(0), MEANS[pose], atol=0.1)
    assert (offsets.std(0) < 0.2).all()  # those of random boxes are 0.25


@pytest.mark.slow
def test_a_mirrored_pose_that_was_never_seen_gets_mirrored_boxes():
    pose = planted()[1].copy()
    pose[:, 0] = 70 - pose[:, 0]
    offsets = chosen_for(pose[list(COCO_17.flip_order)].tobytes())
    np.testing.assert_allclose(offsets.mean(0), [-0.3, 0, 0, 0], atol=0.1)


@pytest.mark.slow
def test_the_seed_alone_decides():
    variables, last = fitted(3)
    again, same = fit_scorer(*people(), COCO_17, steps=3)
    assert_identical(again, variables)
    assert same == last
    other, _ = fitted(3, seed=1)
    first = variables["params"]["Conv_0"]["kernel"], other["params"]["Conv_0"]["kernel"]
    assert (first[0] != first[1]).all()


def test_a_training_that_diverges_is_an_error_that_names_the_steps(monkeypatch):
    monkeypatch.setattr(proposal_scorer, "_RATE", 1e30)
    steps = []

    def progress(numbers):
        for number in numbers:
            steps.append(number)
            yield number

    with pytest.raises(RmpeError, match="training the proposal scorer: the loss is (nan|inf) at step 5"):
        fit_scorer(*people(), COCO_17, steps=5, progress=progress)
    assert steps == [0, 1, 2, 3, 4]
