"""The person detector: its network, boxes read from its maps, and the search of a whole picture."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_gradients, assert_identical, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from made_data import picture

from rmpe_jax.config import ConfigError, DataConfig, Experiment, HourglassConfig, PersonDetectorConfig, override
from rmpe_jax.models import person_detector
from rmpe_jax.models.hourglass import init_hourglass
from rmpe_jax.models.person_detector import (
    DetectorMaps,
    apply_person_detector,
    apply_person_detector_training,
    boxes_of_maps,
    decode_boxes,
    detect_people,
    detector_shapes,
    init_person_detector,
    with_own_maps,
)
from rmpe_jax.predict.detectors import DetectorError
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.predict.person_detector import PersonDetector
from rmpe_jax.pretrained import Weights, WeightsError, load_weights, save_weights

CONFIG = PersonDetectorConfig(
    stacks=2, features=8, depth=1, input_size=(64, 64), sides=(64,), lengths=(8.0, 64.0), mean=(0.4, 0.4, 0.4)
)
EXPERIMENT = Experiment(name="finder", model=CONFIG, data=DataConfig(canvas=48))


@functools.cache
def fresh():
    return init_person_detector(jax.random.key(0), CONFIG)


@functools.cache
def fresh_weights():
    return Weights(EXPERIMENT, fresh())


def saying(bias):
    """Variables of a network whose last layers give the same five numbers everywhere."""
    variables = jax.tree.map(np.copy, fresh())
    for stack in ("stack_0", "stack_1"):
        layer = variables["params"][stack]["heatmaps"]
        layer["kernel"][:], layer["bias"][:] = 0, bias
    return variables


def some_images(count, height, width):
    return jnp.array(np.random.default_rng(0).random((count, height, width, 3)), jnp.float32)


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.sides=", "sides must be one or more multiples of 8 at depth 1"),
        ("model.sides=64,60", "sides must be one or more multiples of 8 at depth 1, got"),
        ("model.sides=0", "sides must be one or more multiples of 8"),
        ("model.lengths=20,20", "lengths must be two rising positive numbers"),
        ("model.lengths=0,20", "lengths must be two rising positive numbers"),
        ("model.lengths=20,inf", "lengths must be two rising positive numbers"),
        ("model.overlap=1.5", "overlap must be from 0 to 1"),
        ("model.features=6", "features a positive multiple of 4"),
        ("model.input_size=60,64", "input_size must be multiples of 8"),
        ("model.dtype=float16", "dtype must be one of float32, bfloat16"),
        ("model.kind=hourglass", "kind is person_detector, and cannot be changed to 'hourglass': say model=hourglass"),
        ("localization.kind=small", "the STN and SDTN re-map heat maps, which person_detector has none of"),
        ("augment.mosaic=1.1", "mosaic must be from 0 to 1"),
        ("data.negatives_repeat=0", "negatives_repeat must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        override(EXPERIMENT, [change])


def test_its_hourglass_has_its_settings_and_it_has_no_heat_maps_of_joints():
    config = dataclasses.replace(CONFIG, remat=True, dtype="bfloat16", residuals=2)
    expected = {"stacks": 2, "features": 8, "depth": 1, "residuals": 2, "input_size": (64, 64), "mean": (0.4, 0.4, 0.4)}
    assert config.hourglass == HourglassConfig(**expected, remat=True, dtype="bfloat16")
    with pytest.raises(ConfigError, match="finder: the model is a person_detector, which has no heat maps"):
        _ = EXPERIMENT.hourglass


# The network


def test_the_network_is_the_hourglass_with_five_maps():
    shapes, joints = detector_shapes(CONFIG), init_hourglass(jax.random.key(0), CONFIG.hourglass, joints=14)
    assert jax.tree.map(lambda leaf: leaf.shape, fresh()) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert jax.tree.structure(shapes) == jax.tree.structure(joints)
    count = {
        name: sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree["params"]))
        for name, tree in (("detector", shapes), ("joints", joints))
    }
    # Of nine maps fewer, in two stacks: weights and a bias for each, and the first stack merges them.
    assert count["joints"] - count["detector"] == 2 * 9 * (8 + 1) + 9 * 8


def test_maps_are_a_quarter_of_any_picture_and_training_gives_those_of_every_stack():
    maps = jax.jit(functools.partial(apply_person_detector, config=CONFIG))(fresh(), some_images(2, 32, 56))
    assert maps.heat.shape == (2, 8, 14) and maps.log_size.shape == maps.offset.shape == (2, 8, 14, 2)
    every, statistics = jax.jit(functools.partial(apply_person_detector_training, config=CONFIG))(
        fresh(), some_images(2, 32, 56)
    )
    assert every.heat.shape == (2, 2, 8, 14) and every.log_size.shape == every.offset.shape == (2, 2, 8, 14, 2)
    assert jax.tree.structure(statistics) == jax.tree.structure(fresh()["batch_stats"])
    assert not np.array_equal(every.heat[0], every.heat[1])


def test_a_network_that_says_nothing_expects_few_people_of_usual_size_and_sides_stay_finite():
    apply = jax.jit(functools.partial(apply_person_detector, config=CONFIG))
    maps = apply(saying(0.0), some_images(1, 16, 16))
    # One pixel in ten holds a centre, as in CenterNet.
    np.testing.assert_allclose(jax.nn.sigmoid(maps.heat), 0.1, atol=1e-3)
    np.testing.assert_allclose(maps.log_size, np.log(10), rtol=1e-6)
    np.testing.assert_array_equal(maps.offset, 0)
    maps = apply(saying([1, 0.5, -0.5, 2, -3]), some_images(1, 16, 16))
    np.testing.assert_allclose(maps.heat, -1.19, rtol=1e-5)
    np.testing.assert_allclose(maps.log_size, np.broadcast_to(np.log(10) + [0.5, -0.5], (1, 4, 4, 2)), rtol=1e-5)
    np.testing.assert_allclose(maps.offset, np.broadcast_to([2, -3], (1, 4, 4, 2)), rtol=1e-5)
    maps = apply(saying([0, 1e6, -1e6, 0, 0]), some_images(1, 16, 16))
    np.testing.assert_array_equal(maps.log_size, np.broadcast_to([8.0, -3.0], (1, 4, 4, 2)))


def test_of_another_hourglass_all_is_taken_but_what_depends_on_its_number_of_maps():
    start = init_hourglass(jax.random.key(3), CONFIG.hourglass, joints=14)
    mixed = with_own_maps(start, fresh())
    own = {("stack_0", "heatmaps", "kernel"), ("stack_0", "heatmaps", "bias"), ("stack_0", "merge_heatmaps", "kernel")}
    own |= {("stack_1", "heatmaps", "kernel"), ("stack_1", "heatmaps", "bias")}
    theirs = [start, fresh(), mixed]
    leaves = [jax.tree_util.tree_leaves_with_path(tree["params"]) for tree in theirs]
    for (path, old), (_, new), (_, got) in zip(*leaves, strict=True):
        assert got is (new if tuple(key.key for key in path) in own else old), path
    assert_identical(mixed["batch_stats"], start["batch_stats"])
    assert_identical(with_own_maps(fresh(), init_person_detector(jax.random.key(9), CONFIG)), fresh())


# Boxes of maps


def blank_maps(height, width, logit=-9.0):
    """What maps hold in which nobody is, writable; see ``as_maps``."""
    heat, pairs = np.full((height, width), logit, np.float32), np.zeros((2, height, width, 2), np.float32)
    return SimpleNamespace(heat=heat, log_size=pairs[0], offset=pairs[1])


def as_maps(fields):
    return DetectorMaps(*(jnp.array(field) for field in (fields.heat, fields.log_size, fields.offset)))


def maps_of(boxes, scores, size):
    """Maps of (height, width) that hold boxes, in pixels of the network's input, with their scores."""
    maps = blank_maps(*size)
    for box, score in zip(np.asarray(boxes, float), scores, strict=True):
        low, high = ((corner + 0.5) / 4 - 0.5 for corner in box.reshape(2, 2))
        centre = (low + high) / 2
        column, row = np.clip(np.round(centre), 0, [size[1] - 1, size[0] - 1]).astype(int)
        maps.heat[row, column] = np.log(score / (1 - score))
        maps.log_size[row, column], maps.offset[row, column] = np.log(high - low), centre - [column, row]
    return as_maps(maps)


def random_maps(seed, height=6, width=7):
    rng = np.random.default_rng(seed)
    pairs = rng.normal(0, 1, (2, height, width, 2)).astype(np.float32)
    return DetectorMaps(jnp.array(rng.normal(-1, 2, (height, width)), jnp.float32), *map(jnp.asarray, pairs))


def test_a_box_stands_where_its_pixel_its_offset_and_its_size_put_it():
    maps = blank_maps(4, 5)
    maps.offset[1, 2], maps.log_size[1, 2] = [0.25, -0.5], np.log([2, 4])
    # The centre is (2.25, 0.5) on the map: x from 1.25 to 3.25, y from -1.5 to 2.5, four pixels of the input each.
    boxes = boxes_of_maps(as_maps(maps))
    np.testing.assert_allclose(boxes[1, 2], [6.5, -4.5, 14.5, 11.5], rtol=1e-6)
    # Elsewhere a box of one pixel of the map lies on that pixel.
    np.testing.assert_allclose(boxes[0, 0], [-0.5, -0.5, 3.5, 3.5], rtol=1e-6)
    np.testing.assert_allclose(boxes[3, 4], [15.5, 11.5, 19.5, 15.5], rtol=1e-6)


def test_boxes_of_maps_are_the_same_under_jit_and_vmap_and_have_their_derivatives():
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(random_maps(seed) for seed in range(3)))
    assert_same_under_jit_and_vmap(boxes_of_maps, batch)
    np.testing.assert_allclose(boxes_of_maps(batch), jax.vmap(boxes_of_maps)(batch), rtol=1e-6)
    one = random_maps(0)
    assert_gradients(lambda sizes, offsets: boxes_of_maps(DetectorMaps(one.heat, sizes, offsets)), *jax.tree.leaves(
        (one.log_size, one.offset)
    ))  # fmt: skip


SPOT = st.tuples(st.floats(4, 56), st.floats(4, 56), st.floats(1, 60), st.floats(1, 60), st.floats(0.05, 0.95))


@given(SPOT)
def test_a_box_written_into_maps_is_read_from_them(spot):
    x, y, width, height, score = spot
    box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    found = decode_boxes(maps_of([box], [score], (16, 16)), capacity=3)
    np.testing.assert_allclose(found.xyxy[0], box, atol=1e-3)
    np.testing.assert_allclose(found.score[0], score, rtol=1e-4)
    assert found.valid[0] and (np.asarray(found.score[1:]) < 1e-3).all()


def test_peaks_are_read_in_the_order_of_their_scores():
    boxes = [[2, 2, 20, 40], [30, 10, 60, 50], [8, 40, 24, 62]]
    found = decode_boxes(maps_of(boxes, [0.3, 0.9, 0.6], (16, 16)), capacity=3)
    np.testing.assert_allclose(found.xyxy, np.array(boxes)[[1, 2, 0]], atol=1e-4)
    np.testing.assert_allclose(found.score, [0.9, 0.6, 0.3], rtol=1e-5)
    assert found.valid.all()


def test_a_pixel_beside_a_higher_one_is_no_peak_on_a_slope_by_hand():
    maps = blank_maps(3, 4)
    maps.heat[:] = [[0, 1, 2, 1], [0, 1, 2, 3], [5, 1, 0, 1]]
    found = decode_boxes(as_maps(maps), capacity=12)
    # Of the twelve only 3 at (3, 1) and 5 at (0, 2) have no higher neighbour.
    np.testing.assert_allclose(found.score[:2], 1 / (1 + np.exp([-5.0, -3.0])), rtol=1e-6)
    np.testing.assert_allclose(found.xyxy[:2], [[-0.5, 7.5, 3.5, 11.5], [11.5, 3.5, 15.5, 7.5]], rtol=1e-6)
    assert found.valid.tolist() == [True] * 2 + [False] * 10
    np.testing.assert_array_equal(found.xyxy[2:], 0)
    np.testing.assert_array_equal(found.score[2:], 0)


@pytest.mark.parametrize("capacity", [1, 4, 42, 100])
def test_decoding_is_that_of_a_loop_over_pixels(capacity):
    for seed in range(4):
        maps = random_maps(seed)
        expected = oracles.peak_boxes(*map(np.asarray, (maps.heat, maps.log_size, maps.offset)), capacity)
        found = decode_boxes(maps, capacity=capacity)
        assert len(found.score) == min(capacity, 42)
        assert found.valid.tolist() == [True] * len(expected) + [False] * (len(found.score) - len(expected))
        np.testing.assert_allclose(found.score[found.valid], [score for score, _ in expected], rtol=1e-5)
        np.testing.assert_allclose(found.xyxy[found.valid], [box for _, box in expected], rtol=1e-4, atol=1e-4)


def test_of_equal_peaks_the_first_in_reading_order_comes_first():
    maps = blank_maps(4, 6)
    for row, column in ((3, 1), (0, 4), (0, 0), (0, 1)):  # the last two side by side
        maps.heat[row, column] = 1.0
    found = decode_boxes(as_maps(maps), capacity=4)
    np.testing.assert_allclose((np.asarray(found.xyxy[:, :2]) + 0.5) / 4, [[0, 0], [1, 0], [4, 0], [1, 3]], atol=1e-6)


@pytest.mark.parametrize("field", ["heat", "log_size", "offset"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_never_reach_a_box_and_leave_the_other_peaks(field, bad):
    boxes = [[2, 2, 20, 40], [30, 10, 60, 50]]
    maps = SimpleNamespace(
        **{name: np.array(leaf) for name, leaf in vars(maps_of(boxes, [0.9, 0.6], (16, 16))).items()}
    )
    getattr(maps, field)[5, 2] = bad  # at the first one's centre, and no other's
    found = jax.tree.map(np.asarray, vars(decode_boxes(as_maps(maps), capacity=100)))
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    xyxy, score = found["xyxy"][found["valid"]], found["score"][found["valid"]]
    full = (xyxy[:, 2:] > xyxy[:, :2]).all(1) & (score > 0.01)
    # An infinite logit is a certain one, and what has no size is an empty box; all else makes none.
    expected, scores = (boxes, [1.0, 0.6]) if field == "heat" and bad == np.inf else (boxes[1:], [0.6])
    np.testing.assert_allclose(xyxy[full], expected, atol=1e-3)
    np.testing.assert_allclose(score[full], scores, rtol=1e-5)


def test_maps_of_nothing_but_nan_hold_nobody():
    maps = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), random_maps(0))
    for each in (maps, dataclasses.replace(random_maps(0), heat=maps.heat)):
        found = decode_boxes(each, capacity=5)
        assert not found.valid.any() and not found.xyxy.any() and not found.score.any()


def test_decoding_is_the_same_under_jit_and_vmap():
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(random_maps(seed) for seed in range(4)))
    assert_same_under_jit_and_vmap(lambda maps: vars(decode_boxes(maps, capacity=9)), batch)


# The search of a picture


def replaced_network(monkeypatch, maps_for, *, levels=1):
    """Has the network's place taken by a function from what it would see, (side, side, 3), to its maps.

    Copies of the picture take time to compile, and only matter to a function that looks at it.
    """
    monkeypatch.setattr(person_detector, "_LEVELS", levels)

    def apply(variables, images, config):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], maps_for(images[0]))

    monkeypatch.setattr(person_detector, "apply_person_detector", apply)


def knowing(boxes, scores, shape):
    """Maps of boxes that are given in pixels of a picture, at whatever scale it is seen."""
    longer = max(shape)

    def maps_for(seen):
        side = len(seen)
        return maps_of((np.asarray(boxes, float) + 0.5) * side / longer - 0.5, scores, (side // 4, side // 4))

    return maps_for


def searched(image, shape=None, *, config=CONFIG, threshold=0.1, capacity=10, variables=None):
    """What is found in a picture, compiled: boxes and scores of the valid entries, after a look at the others."""
    settings = {"config": config, "threshold": threshold, "capacity": capacity}
    # Unoptimised, it is compiled in half the time.
    options = {"xla_backend_optimization_level": 0}
    detect = jax.jit(functools.partial(detect_people, **settings), compiler_options=options)
    size = np.array(shape or image.shape[:2], np.float32)
    found = jax.tree.map(np.asarray, detect(variables or {}, jnp.asarray(image), size))
    assert np.isfinite(found.xyxy).all() and not found.xyxy[~found.valid].any()
    assert (np.diff(found.score[found.valid]) <= 0).all() and (found.score[found.valid] >= threshold).all()
    return found.xyxy[found.valid], found.score[found.valid]


SHAPES = [(100, 37), (41, 300), (700, 500), (9, 12)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sides", [(64,), (128, 64)], ids=str)
def test_boxes_come_back_in_pixels_of_the_picture(monkeypatch, shape, sides):
    height, width = shape
    boxes = np.array([[0.1, 0.1, 0.4, 0.7], [0.5, 0.3, 0.95, 0.9]]) * [width, height, width, height]
    replaced_network(monkeypatch, knowing(boxes, [0.6, 0.8], shape))
    config = dataclasses.replace(CONFIG, sides=sides)
    found, score = searched(np.zeros((*shape, 3), np.uint8), config=config)
    assert len(found) == 2
    np.testing.assert_allclose(found, boxes[[1, 0]], atol=1e-3 * max(shape))
    np.testing.assert_allclose(score, [0.8, 0.6], rtol=1e-4)


def brightest_rectangle(seen):
    """Maps of the box around the pixels that are bright in what the network sees."""
    bright = seen.mean(-1) > 0.5
    columns, rows = bright.any(0), bright.any(1)
    side = len(seen)
    low = jnp.stack([columns.argmax(), rows.argmax()]) - 0.5
    high = side - 0.5 - jnp.stack([columns[::-1].argmax(), rows[::-1].argmax()])
    low, high = ((corner + 0.5) / 4 - 0.5 for corner in (low, high))
    column, row = jnp.round((low + high) / 2).astype(int)
    maps = as_maps(blank_maps(side // 4, side // 4))
    return DetectorMaps(
        maps.heat.at[row, column].set(2.0),
        maps.log_size.at[row, column].set(jnp.log(high - low)),
        maps.offset.at[row, column].set((low + high) / 2 - jnp.stack([column, row])),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_the_network_sees_lies_where_its_boxes_are_read(monkeypatch, shape):
    height, width = shape
    x0, y0, x1, y1 = (np.array([0.2, 0.3, 0.6, 0.8]) * [width, height, width, height]).astype(int)
    image = np.zeros((*shape, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    replaced_network(monkeypatch, brightest_rectangle, levels=6)
    found, _ = searched(image)
    # Half a pixel of what the network sees, on both sides.
    np.testing.assert_allclose(found, [[x0 - 0.5, y0 - 0.5, x1 - 0.5, y1 - 0.5]], atol=0.51 * max(max(shape) / 64, 1))


def mean_colours(seen):
    """Maps that say what the network sees: the red of each of their pixels, the green, and the blue."""
    side = len(seen) // 4
    red, green, blue = jnp.moveaxis(seen.reshape(side, 4, side, 4, 3).mean((1, 3)), -1, 0)
    return DetectorMaps(9 * red - 5, jnp.stack([2 * green, green], -1), jnp.stack([blue, -blue], -1))


@pytest.mark.parametrize("shape", [(40, 61), (300, 90)], ids=str)
def test_black_padding_at_the_right_and_at_the_bottom_changes_nothing(monkeypatch, shape):
    image = picture(*shape)
    replaced_network(monkeypatch, mean_colours, levels=4)
    found, score = searched(image)
    padded = np.pad(image, [(0, 24), (0, 35), (0, 0)])
    same, same_score = searched(padded, shape)
    assert len(found) > 3
    np.testing.assert_allclose(same, found, atol=1e-3)
    np.testing.assert_allclose(same_score, score, rtol=1e-4)
    # That it is padding is what the size says.
    other, _ = searched(padded)
    assert other.shape != found.shape or np.abs(other - found).max() > 1


def test_boxes_below_the_threshold_are_left_out(monkeypatch):
    boxes = [[2, 2, 20, 40], [30, 10, 60, 50], [8, 42, 24, 62]]
    replaced_network(monkeypatch, knowing(boxes, [0.3, 0.9, 0.6], (64, 64)))
    blank = np.zeros((64, 64, 3), np.uint8)
    for threshold, count in ((0.2, 3), (0.5, 2), (0.7, 1), (0.95, 0)):
        found, score = searched(blank, threshold=threshold)
        np.testing.assert_allclose(score, [0.9, 0.6, 0.3][:count], rtol=1e-4)
        np.testing.assert_allclose(found, np.array(boxes)[[1, 2, 0]][:count], atol=1e-3)


@pytest.mark.parametrize("capacity", [1, 2, 3, 1000])
def test_of_more_boxes_than_asked_for_the_best_are_kept(monkeypatch, capacity):
    boxes = [[2, 2, 20, 40], [30, 10, 60, 50], [8, 42, 24, 62]]
    config = dataclasses.replace(CONFIG, sides=(128, 64))
    replaced_network(monkeypatch, knowing(boxes, [0.3, 0.9, 0.6], (64, 64)))
    found, score = searched(np.zeros((64, 64, 3), np.uint8), config=config, capacity=capacity)
    np.testing.assert_allclose(score, [0.9, 0.6, 0.3][:capacity], rtol=1e-4)
    np.testing.assert_allclose(found, np.array(boxes)[[1, 2, 0]][:capacity], atol=1e-3)


def test_of_two_boxes_that_overlap_more_than_allowed_the_weaker_goes(monkeypatch):
    # Their intersection is 24 x 40 of 28 x 40 pixels, six sevenths.
    boxes = [[10, 10, 36, 50], [12, 10, 38, 50]]
    maps = blank_maps(16, 16)
    for (x0, y0, x1, y1), place, logit in zip(boxes, [(7, 3), (7, 9)], [1.0, 2.0], strict=True):
        maps.heat[place], maps.log_size[place] = logit, np.log([(x1 - x0) / 4, (y1 - y0) / 4])
        centre = (np.array([x0 + x1, y0 + y1]) / 2 + 0.5) / 4 - 0.5
        maps.offset[place] = centre - place[::-1]
    replaced_network(monkeypatch, lambda seen: as_maps(maps))
    for overlap, expected in ((0.8, [1]), (0.9, [1, 0])):
        config = dataclasses.replace(CONFIG, overlap=overlap)
        found, _ = searched(np.zeros((64, 64, 3), np.uint8), config=config)
        np.testing.assert_allclose(found, np.array(boxes)[expected], atol=1e-3)


def test_boxes_are_cut_at_the_picture_s_edges_and_one_beyond_them_goes(monkeypatch):
    # The picture is 64 pixels wide and 32 high; the last box lies in what is black below it.
    boxes = [[-10, -8, 20, 20], [40, 10, 80, 50], [10, 36, 30, 60]]
    replaced_network(monkeypatch, knowing(boxes, [0.9, 0.8, 0.7], (32, 64)))
    found, _ = searched(np.zeros((32, 64, 3), np.uint8))
    np.testing.assert_allclose(found, [[-0.5, -0.5, 20, 20], [40, 10, 63.5, 31.5]], atol=1e-3)


def test_a_scale_gives_no_boxes_of_sizes_that_another_knows_better(monkeypatch):
    # Lengths of 16 to 64, with slack 12.8 to 80, of what is seen at 128 and at 64 pixels; the picture has 128.
    config = dataclasses.replace(CONFIG, sides=(128, 64), lengths=(16.0, 64.0))
    sizes = np.array([5, 20, 70, 110])
    boxes = np.array([[4, 4, 9, 8], [90, 2, 110, 15], [50, 30, 120, 60], [5, 60, 115, 120]], float)
    for only, expected in ((128, [1, 1, 1, 0]), (64, [0, 0, 1, 1])):

        def at_one_scale(seen, only=only):
            nobody = as_maps(blank_maps(len(seen) // 4, len(seen) // 4))
            return knowing(boxes, [0.6, 0.7, 0.8, 0.9], (128, 128))(seen) if len(seen) == only else nobody

        replaced_network(monkeypatch, at_one_scale)
        found, _ = searched(np.zeros((128, 128, 3), np.uint8), config=config)
        lengths = (found[:, 2:] - found[:, :2]).max(1)
        # At 128 whatever is small is kept, at 64 whatever is large: nobody else would find it.
        np.testing.assert_allclose(np.sort(lengths), sizes[np.array(expected) > 0], atol=1e-3)


def test_a_box_found_at_both_scales_is_given_once(monkeypatch):
    boxes = [[20, 20, 50, 60]]
    replaced_network(monkeypatch, knowing(boxes, [0.9], (64, 64)))
    found, _ = searched(np.zeros((64, 64, 3), np.uint8), config=dataclasses.replace(CONFIG, sides=(128, 64, 32)))
    np.testing.assert_allclose(found, boxes, atol=1e-3)


# Ready to use


@pytest.fixture(scope="module")
def detector():
    return PersonDetector(fresh_weights(), threshold=0.0, capacity=20)


@pytest.mark.parametrize("shape", [(64, 48), (1, 1), (2, 66_000), (3000, 1), (255, 257)], ids=str)
def test_boxes_of_any_picture_are_host_arrays_within_it(detector, shape):
    image = picture(*shape)
    before = image.copy()
    image.flags.writeable = False
    found = detector(image)
    np.testing.assert_array_equal(image, before)
    assert isinstance(found.xyxy, np.ndarray) and found.valid.all() and 0 < len(found.xyxy) <= 20
    x0, y0, x1, y1 = found.xyxy.T
    assert (x0 >= -0.5).all() and (y0 >= -0.5).all() and (x1 <= shape[1] - 0.5).all() and (y1 <= shape[0] - 0.5).all()
    assert (x0 < x1).all() and (y0 < y1).all()
    assert (np.diff(found.score) <= 0).all() and (found.score > 0).all() and (found.score < 1).all()
    again = detector(image.copy())
    assert_identical((again.xyxy, again.score), (found.xyxy, found.score))


def test_what_it_finds_is_what_the_pure_function_finds(detector):
    image = picture(64, 50)
    found = detector(image)
    xyxy, score = searched(image, threshold=0.0, capacity=20, variables=fresh())
    np.testing.assert_allclose(found.xyxy, xyxy, atol=1e-3)
    np.testing.assert_allclose(found.score, score, rtol=1e-4)
    best = PersonDetector(fresh_weights(), threshold=float(score[2:4].mean()), capacity=20)(image)
    np.testing.assert_allclose(best.xyxy, found.xyxy[:3], atol=1e-3)


def test_its_boxes_are_in_pixels_of_the_picture_whatever_its_size(monkeypatch):
    replaced_network(monkeypatch, brightest_rectangle)
    detector = PersonDetector(fresh_weights(), threshold=0.5)
    for height, width in [*SHAPES, (64, 64), (30, 2000), (1200, 31), (63, 65)]:
        x0, y0, x1, y1 = (np.array([0.2, 0.3, 0.7, 0.8]) * [width, height, width, height]).round().astype(int)
        image = np.zeros((height, width, 3), np.uint8)
        image[y0:y1, x0:x1] = 255
        found = detector(image)
        # Half a pixel of what the network sees, and what a side loses that has no whole number of them.
        atol = max(max(height, width) / 64, 1)
        np.testing.assert_allclose(found.xyxy, [[x0 - 0.5, y0 - 0.5, x1 - 0.5, y1 - 0.5]], atol=atol)


def test_weights_of_another_network_are_refused(tiny_weights):
    with pytest.raises(DetectorError, match="tiny: weights of kind hourglass, not of a person detector"):
        PersonDetector(tiny_weights)


def test_an_estimator_refuses_a_detector_s_weights():
    with pytest.raises(WeightsError, match="finder: weights of a person detector, which estimates no poses"):
        Estimator(fresh_weights())


def test_weights_survive_a_file_and_their_folders_do_not(tmp_path, detector):
    path, data = tmp_path / "finder.safetensors", dataclasses.replace(EXPERIMENT.data, negatives="/somewhere")
    save_weights(path, Weights(dataclasses.replace(EXPERIMENT, data=data), fresh()))
    loaded = load_weights(path)
    assert loaded.experiment == EXPERIMENT
    assert_identical(loaded.variables, fresh())
    image = picture(40, 60)
    assert_close(vars(PersonDetector(path, threshold=0.0, capacity=20)(image)), vars(detector(image)))


def test_weights_of_another_size_than_their_settings_are_refused(tmp_path):
    path = tmp_path / "finder.safetensors"
    other = dataclasses.replace(EXPERIMENT, model=dataclasses.replace(CONFIG, features=16))
    save_weights(path, Weights(other, fresh()))
    with pytest.raises(WeightsError, match=r"has shape .*, expected"):
        load_weights(path)
