import copy
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close
from made_data import picture, silhouette

from rmpe_jax.config import override
from rmpe_jax.data.images import read_image
from rmpe_jax.heatmaps import flip_heatmaps
from rmpe_jax.models import single_person
from rmpe_jax.models.single_person import estimate_heatmaps, estimate_joints, read_poses
from rmpe_jax.nms.pose import DEFAULT, RELEASED
from rmpe_jax.predict.estimator import (
    Estimator,
    crop_people,
    estimate_poses,
    keep_distinct,
    load,
)
from rmpe_jax.pretrained import save_weights
from rmpe_jax.records import Boxes
from rmpe_jax.train.augment import heatmap_targets

BOXES = np.array(
    [[10, 10, 60, 90], [50, 20, 119, 99], [-20, -10, 40, 50], [0, 0, 8, 8], [30.5, 41.25, 70, 60], [3, 3, 150, 130]],
    np.float32,
)
BROKEN = [
    [np.nan, 0, 10, 10],
    [0, 0, np.inf, 10],
    [-np.inf, 0, 10, 10],
    [50, 10, 20, 60],  # inverted
    [20, 60, 50, 10],
    [30, 30, 30, 60],  # no width
    [-50, 10, -20, 60],  # left of the picture
    [120, 10, 160, 60],
    [10, -50, 60, -2],
    [10, 100, 60, 150],
    [-1e38, -1e38, 2e38, 2e38],
    [0, 0, 3.4e38, 3.4e38],
    [-1e30, -1e30, 1e30, 1e30],
]


CAPACITY = 12


def padded(boxes):
    """Boxes at one capacity for all tests, so that the pure function is compiled once."""
    count = len(boxes)
    xyxy = np.zeros((CAPACITY, 4), np.float32)
    xyxy[:count] = boxes
    return Boxes(jnp.asarray(xyxy), jnp.ones(CAPACITY), jnp.arange(CAPACITY) < count)


def device_picture(height, width, *, seed=0):
    return jnp.asarray(picture(height, width, seed))


def changed(estimator, **attributes):
    """A copy that shares what is compiled."""
    other = copy.copy(estimator)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


@pytest.fixture(scope="module")
def pure(tiny_weights):
    """The pure function of a picture and boxes: no flip test, no NMS."""
    return partial(
        estimate_poses, tiny_weights.variables, experiment=tiny_weights.experiment, flip_test=False, nms=None
    )


@pytest.fixture(scope="module")
def compiled(pure):
    return jax.jit(pure)


@pytest.fixture(scope="module")
def suppressing_estimator(tiny_weights):
    return Estimator(tiny_weights, batch=4, flip_test=False)


# Padding and batches do not show


def test_the_estimator_gives_what_the_pure_function_gives(tiny_estimator, compiled):
    image = picture(100, 120)
    expected, poses = compiled(jnp.asarray(image), padded(BOXES)), tiny_estimator.poses_in_boxes(image, BOXES)
    assert_close(poses.points[:6], expected.points[:6], atol=1e-3)
    assert_close(poses.score[:6], expected.score[:6], atol=1e-4)
    assert expected.valid[:6].all() and poses.valid.tolist() == [True] * 6 + [False] * 2
    assert np.ptp(np.asarray(expected.score[:6])) > 0.1


@pytest.mark.slow
def test_compiled_and_plain_inference_agree(pure, compiled):
    arguments = device_picture(100, 120), padded(BOXES[:2])
    plain, fast = pure(*arguments), compiled(*arguments)
    assert_close(plain.points, fast.points, atol=1e-3)
    assert_close(plain.score, fast.score, atol=1e-4)
    assert plain.valid.tolist() == fast.valid.tolist() == [True] * 2 + [False] * 10


def test_boxes_beyond_one_batch_get_the_poses_that_they_get_alone(tiny_estimator):
    boxes = np.concatenate([BOXES, BOXES[:5] + 2])
    image = picture(100, 120)
    together = tiny_estimator.poses_in_boxes(image, boxes)
    assert together.points.shape[0] == 16 and int(together.valid.sum()) == 11
    for index, box in enumerate(boxes):
        alone = tiny_estimator.poses_in_boxes(image, box[None])
        assert_close(together.points[index], alone.points[0], atol=1e-3)
        assert_close(together.score[index], alone.score[0], atol=1e-4)


def test_the_order_of_the_boxes_does_not_matter(tiny_estimator):
    image = picture(100, 120)
    forward, backward = (tiny_estimator(image, boxes) for boxes in (BOXES, BOXES[::-1]))
    assert_close(forward.points, backward.points, atol=1e-3)
    assert_close(forward.boxes, backward.boxes)


def test_pixels_outside_every_crop_do_not_change_poses(tiny_estimator):
    image = picture(200, 240)
    larger = np.concatenate([image, picture(200, 240, seed=9)])
    boxes = np.array([[10, 10, 60, 90], [60, 20, 180, 120]], np.float32)
    assert_close(tiny_estimator(image, boxes).points, tiny_estimator(larger, boxes).points, atol=1e-3)


def test_poses_move_with_the_picture(tiny_estimator):
    image = picture(100, 120)
    moved = np.pad(image, [(32, 0), (64, 0), (0, 0)])
    poses, shifted = tiny_estimator(image, BOXES[:1]), tiny_estimator(moved, BOXES[:1] + [64, 32, 64, 32])
    assert_close(poses.points + np.array([64, 32]), shifted.points, atol=1e-3)


# Results


def test_poses_are_best_first_with_their_own_boxes(tiny_estimator):
    found = tiny_estimator(picture(100, 120), BOXES)
    assert len(found.points) == len(BOXES) and (np.diff(found.pose_score) <= 0).all()
    poses = tiny_estimator.poses_in_boxes(picture(100, 120), BOXES)
    for points, box in zip(found.points, found.boxes, strict=True):
        (index,) = np.flatnonzero((BOXES == box).all(1))
        np.testing.assert_array_equal(points, poses.points[index])


def test_points_lie_in_the_extended_square_around_the_box(tiny_estimator):
    found = tiny_estimator(picture(100, 120), BOXES)
    centre, side = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2, (found.boxes[:, 2:] - found.boxes[:, :2]).max(-1)
    assert (np.abs(found.points - centre[:, None]).max((1, 2)) <= 1.3 * side / 2).all()
    assert (found.score >= 0).all() and (found.score <= 1).all()


def test_the_score_of_a_box_counts_for_whether_its_pose_stays(tiny_estimator):
    image, everything = picture(100, 120), tiny_estimator(picture(100, 120), BOXES[:3])
    limit = float(everything.pose_score.min())
    # The first two boxes are half as sure as the third.
    found = changed(tiny_estimator, smallest_score=limit)(image, Boxes.from_arrays(BOXES[:3], [0.5, 0.5, 1.0]))
    np.testing.assert_array_equal(found.boxes, np.asarray(BOXES[2:3], np.float32))
    assert float(found.pose_score[0]) == pytest.approx(float(tiny_estimator(image, BOXES[2:3]).pose_score[0]), abs=1e-5)


def test_a_pose_in_a_doubtful_box_does_not_take_a_better_one_along(suppressing_estimator):
    image, box = picture(100, 120), [10, 10, 60, 90]
    both = Boxes.from_arrays([box, box], [0.1, 0.9])
    limit = 0.5 * float(suppressing_estimator(image, [box]).pose_score[0])
    assert len(suppressing_estimator(image, both, smallest_score=limit).points) == 1
    assert len(suppressing_estimator(image, both, smallest_score=0.95).points) == 0


def test_in_its_own_boxes_a_detector_says_what_a_pose_must_reach(tiny_estimator):
    class Sure:
        needed_score = 1.0

        def __call__(self, image):
            return Boxes.from_arrays(BOXES[:2])

    estimator = changed(tiny_estimator, detector=Sure())
    assert len(estimator(picture(100, 120)).points) == 0
    assert len(estimator(picture(100, 120), BOXES[:2]).points) == 2
    assert len(changed(estimator, smallest_score=0.0)(picture(100, 120)).points) == 2


def test_poses_below_the_smallest_score_are_left_out(tiny_estimator):
    scores = tiny_estimator(picture(100, 120), BOXES).pose_score
    limit = float(np.sort(scores)[3]) - 1e-6
    assert len(changed(tiny_estimator, smallest_score=limit)(picture(100, 120), BOXES).points) == 3


def test_duplicates_are_removed_and_the_better_one_stays(suppressing_estimator):
    boxes = np.array([[10, 10, 60, 90], [10, 10, 60, 90], [70, 20, 118, 95]], np.float32)
    found = suppressing_estimator(picture(100, 120), boxes)
    assert len(found.points) == 2 and len({tuple(box) for box in found.boxes}) == 2


def test_without_nms_duplicates_stay(tiny_estimator):
    assert len(tiny_estimator(picture(100, 120), np.repeat(BOXES[:1], 3, 0)).points) == 3


def test_a_picture_without_boxes_has_no_poses(tiny_estimator, suppressing_estimator):
    for estimator in (tiny_estimator, suppressing_estimator):
        found = estimator(picture(100, 120), [])
        assert len(found.points) == 0 and found.points.shape == (0, 19, 2) and found.pose_score.shape == (0,)


def test_the_detector_is_asked_where_no_boxes_are_given(tiny_estimator):
    image, box = silhouette()
    asked = []

    def detector(given):
        asked.append(given)
        return Boxes.from_arrays([box], [0.3])

    found = changed(tiny_estimator, detector=detector)(image)
    assert found.boxes.tolist() == [box.tolist()] and len(asked) == 1 and asked[0] is image


def test_detections_may_be_handed_over_as_they_are(tiny_estimator):
    given = Boxes.from_arrays(BOXES[:2], [0.1, 0.9])
    assert_close(tiny_estimator(picture(100, 120), given).points, tiny_estimator(picture(100, 120), BOXES[:2]).points)


# What is broken


@pytest.mark.parametrize("flip_test", [False, True])
def test_broken_and_outside_boxes_give_no_pose_and_never_nan(tiny_weights, tiny_estimator, flip_test):
    estimator = Estimator(tiny_weights, batch=4, nms=None) if flip_test else tiny_estimator
    boxes = np.array([*BROKEN, [10, 10, 60, 90]], np.float32)
    found = estimator(picture(100, 120), boxes)
    assert found.boxes.tolist() == [[10, 10, 60, 90]] and np.isfinite(found.points).all()
    poses = estimator.poses_in_boxes(picture(100, 120), boxes)
    assert np.isfinite(poses.points).all() and np.isfinite(poses.score).all()


def test_the_pure_function_masks_broken_boxes_under_jit(compiled):
    broken = [box for box in BROKEN if not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]]
    far = [box for box in BROKEN if max(box) > 1e6 and np.isfinite(box).all()]
    assert len(broken) == 6 and len(far) == 3
    poses = compiled(device_picture(100, 120), padded([BOXES[0], *broken, *far]))
    assert poses.valid.tolist() == [True] + [False] * 11
    assert np.isfinite(poses.points).all() and np.isfinite(poses.score).all()


def test_an_invalid_entry_changes_no_other_pose(compiled):
    image = device_picture(100, 120)
    given = padded(BOXES[:4])
    masked = dataclasses.replace(given, xyxy=given.xyxy.at[3].set(given.xyxy[0]), valid=jnp.arange(CAPACITY) < 3)
    full, part = compiled(image, given), compiled(image, masked)
    assert_close(full.points[:3], part.points[:3])
    assert part.valid.tolist() == [True] * 3 + [False] * 9


@pytest.mark.parametrize(
    ("image", "described"),
    [
        (np.zeros((20, 20, 3), np.float32), r"float32 \(20, 20, 3\)"),
        (np.zeros((20, 20, 3), np.int64), "int64"),
        (np.zeros((20, 20), np.uint8), r"\(20, 20\)"),
        (np.zeros((20, 20, 4), np.uint8), r"\(20, 20, 4\)"),
        (np.zeros((1, 20, 20, 3), np.uint8), r"\(1, 20, 20, 3\)"),
        (np.zeros((0, 20, 3), np.uint8), r"\(0, 20, 3\)"),
    ],
)
def test_other_pictures_are_refused_with_what_was_expected(tiny_estimator, image, described):
    with pytest.raises(ValueError, match=f"expected a picture.*{described}"):
        tiny_estimator(image, BOXES)
    with pytest.raises(ValueError, match=f"expected a picture.*{described}"):
        tiny_estimator.poses_in_boxes(image, BOXES)


def test_boxes_of_another_shape_are_refused(tiny_estimator):
    with pytest.raises(ValueError, match="shape"):
        tiny_estimator(picture(), np.zeros((4, 2)))


# The parts


def test_crops_are_rgb_from_0_to_1_and_the_map_finds_them_in_the_picture(tiny_experiment):
    image = np.zeros((100, 120, 3), np.uint8)
    image[40:60, 50:70] = (255, 128, 0)
    crops, image_from_crop = crop_people(
        jnp.asarray(image), jnp.array([[55.0, 45.0, 65.0, 55.0]]), experiment=tiny_experiment
    )
    assert crops.shape == (1, 32, 32, 3)
    assert_close(crops[0], np.tile(np.array([255, 128, 0]) / 255, (32, 32, 1)))
    np.testing.assert_allclose(image_from_crop[0] @ np.array([15.5, 15.5, 1]), [60, 50], atol=1e-4)


def test_the_flip_test_mirrors_with_the_crop(tiny_weights):
    experiment = tiny_weights.experiment
    crops = jnp.asarray(picture(32, 32)[None] / 255, jnp.float32)

    @partial(jax.jit, static_argnums=1)
    def maps(crops, flip_test):
        return estimate_heatmaps(tiny_weights.variables, crops, experiment=experiment, flip_test=flip_test)[0]

    plain, both, mirrored = maps(crops, False), maps(crops, True), maps(crops[:, :, ::-1], True)
    assert_close(mirrored, flip_heatmaps(both, experiment.joints.flip_order))
    assert float(jnp.abs(plain - both).max()) > 1e-3
    assert_close(both, (plain + flip_heatmaps(maps(crops[:, :, ::-1], False), experiment.joints.flip_order)) / 2)


def test_a_maximum_of_the_maps_is_found_in_the_picture(tiny_experiment):
    heatmaps = np.zeros((1, 8, 8, 19), np.float32)
    heatmaps[0, 5, 2] = 0.75
    scale = np.array([[[2.0, 0, 100], [0, 3.0, 50]]], np.float32)
    points, score = read_poses(jnp.asarray(heatmaps), jnp.asarray(scale), experiment=tiny_experiment)
    # Map pixel (2, 5) is crop point (9.5, 21.5): four crop pixels to one of the map, edges on edges.
    assert_close(points[0], np.broadcast_to([2 * 9.5 + 100, 3 * 21.5 + 50], (19, 2)))
    assert_close(score[0], np.full(19, 0.75))


def test_pictures_are_batched_by_vmap(pure, compiled):
    images = jnp.stack([device_picture(100, 120, seed=seed) for seed in (1, 2)])
    boxes = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), padded(BOXES[:3]))
    both = jax.jit(jax.vmap(pure))(images, boxes)
    for index in range(2):
        alone = compiled(images[index], padded(BOXES[:3]))
        assert_close(both.points[index], alone.points, atol=1e-3)
        assert_close(both.score[index], alone.score, atol=1e-4)


def test_heat_maps_have_finite_gradients_in_the_picture_and_the_boxes(tiny_weights):
    experiment = tiny_weights.experiment

    # Run once: compiling it well takes longer.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    @jax.grad
    def gradients(arguments):
        crops, _ = crop_people(*arguments, experiment=experiment)
        return (estimate_heatmaps(tiny_weights.variables, crops, experiment=experiment, flip_test=False) ** 2).sum()

    boxes = np.array([*BOXES[:4], [np.nan, 0, 10, 10], [50, 10, 20, 60]], np.float32)
    by_image, by_boxes = gradients((jnp.asarray(picture(100, 120), jnp.float32), jnp.asarray(boxes)))
    assert np.isfinite(by_image).all() and np.isfinite(by_boxes).all()
    assert (np.abs(by_boxes[:4]).max(1) > 0).all() and (by_boxes[4:] == 0).all()
    assert np.abs(by_image[20:60, 20:50]).max() > 0


def test_suppression_changes_nothing_but_the_mask(suppressing_estimator, tiny_estimator):
    poses = tiny_estimator.poses_in_boxes(picture(100, 120), np.repeat(BOXES[:1], 2, 0))
    kept = keep_distinct(poses, DEFAULT)
    np.testing.assert_array_equal(kept.points, poses.points)
    assert int(kept.valid.sum()) == 1


def test_a_merging_suppression_moves_the_pose_that_stays_to_the_mean(tiny_estimator):
    poses = tiny_estimator.poses_in_boxes(picture(100, 120), np.repeat(BOXES[:1], 2, 0))
    points, score = np.array(poses.points), np.array(poses.score)
    points[1] += 2.0
    score[:] = [[0.75], [0.25]]
    kept = keep_distinct(dataclasses.replace(poses, points=points, score=score), RELEASED)
    assert np.asarray(kept.valid).tolist() == [True, False]
    assert_close(kept.points[0], points[0] + 0.5, atol=1e-3)


def test_load_reads_a_weight_file_and_passes_options_on(tmp_path, tiny_weights, tiny_estimator):
    save_weights(tmp_path / "w.safetensors", tiny_weights)
    loaded = load(tmp_path / "w.safetensors", batch=4, nms=None, flip_test=False)
    assert loaded.skeleton == tiny_estimator.skeleton
    assert_close(loaded(picture(100, 120), BOXES).points, tiny_estimator(picture(100, 120), BOXES).points)


def test_a_real_picture_goes_from_file_to_poses(real_data, suppressing_estimator):
    path = next(iter(sorted((real_data / "coco" / "val2017").glob("*.jpg"))))
    found = suppressing_estimator(read_image(path))
    assert np.isfinite(found.points).all() and found.points.shape[1:] == (19, 2)


@pytest.mark.slow
def test_joints_are_read_by_the_decoder_that_is_named(tiny_weights):
    image = np.asarray(device_picture(100, 120))
    found = {
        name: Estimator(tiny_weights, batch=4, nms=None, flip_test=False, decoder=name)(image, BOXES[:3]).points
        for name in (None, "quarter", "dark", "soft_argmax")
    }
    np.testing.assert_array_equal(found[None], found["quarter"])
    for name in ("dark", "soft_argmax"):
        assert np.isfinite(found[name]).all() and not np.array_equal(found[name], found["quarter"])
    # The maximum's pixel is the same: four pixels of the crop, which shows a box's longer side and 30 % more on 32.
    step = 1.3 * 130 / 8
    assert np.abs(found["dark"] - found["quarter"]).max() <= 1.25 * step


def test_an_unknown_decoder_is_refused(tiny_weights):
    with pytest.raises(ValueError, match="decoder must be one of quarter, dark, soft_argmax, got 'best'"):
        Estimator(tiny_weights, decoder="best")


# The multi-scale test and how maps lie on the crop


def means_of_four(variables, crops, *_, **__):
    """A network that shows each channel at a quarter of the size."""
    b, h, w, _ = crops.shape
    shown = crops.reshape(b, h // 4, 4, w // 4, 4, 3).mean((2, 4))
    return jnp.tile(shown, (1, 1, 1, 7))[None, ..., :19]


def blob(height, width, x, y, sigma):
    """A picture with one bright Gaussian at a point."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    bright = jnp.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))
    return 255 * bright[..., None] * jnp.ones((1, 1, 3))


@pytest.mark.parametrize("scales", [(1.0,), (0.8,), (1.5,), (0.8, 1.0, 1.25)])
def test_a_point_is_found_where_it_is_at_every_scale(monkeypatch, tiny_experiment, scales):
    monkeypatch.setattr(single_person, "apply_hourglass", means_of_four)
    experiment = override(tiny_experiment, ["model.decoder=dark", "model.input_size=64,64"])
    image, boxes = blob(100, 120, 57.0, 44.0, 12.0), jnp.array([[20.0, 10, 100, 90], [30, 20, 90, 80]])
    crops, maps = crop_people(image, boxes, experiment=experiment)
    points, score = estimate_joints({}, image, crops, maps, experiment=experiment, flip_test=False, scales=scales)
    assert np.abs(points - jnp.array([57.0, 44.0])[None, None]).max() < 0.3
    assert (score > 0.8).all()


def test_scales_are_averaged_where_their_crops_reach(tiny_experiment):
    experiment = override(tiny_experiment, ["model.input_size=32,32"])
    wide, narrow = jnp.full((1, 8, 8, 1), 0.2), jnp.full((1, 8, 8, 1), 0.6)
    mean = single_person._mean_over_scales([wide, narrow], (1.0, 0.5), experiment)[0, :, :, 0]
    expected = np.full((8, 8), 0.2)
    expected[2:6, 2:6] = 0.4
    assert_close(mean, expected)
    alone = single_person._mean_over_scales([narrow], (0.5,), experiment)[0, :, :, 0]
    expected[:] = 0
    expected[2:6, 2:6] = 0.6
    assert_close(alone, expected)


def test_several_scales_of_an_estimator_are_those_of_the_function(tiny_weights):
    image, scales = np.asarray(device_picture(100, 120)), (0.9, 1.1)
    estimator = Estimator(tiny_weights, batch=4, nms=None, flip_test=False, scales=scales)
    settings = {"experiment": tiny_weights.experiment, "flip_test": False, "scales": scales, "nms": None}
    pure = jax.jit(partial(estimate_poses, **settings))(tiny_weights.variables, jnp.asarray(image), padded(BOXES[:3]))
    found = estimator.poses_in_boxes(image, BOXES[:3])
    assert_close(found.points[:3], pure.points[:3], atol=1e-2)


@pytest.mark.parametrize("scales", [(), (0.0,), (float("nan"),), (1.0, -1.0)])
def test_scales_that_are_none_are_refused(tiny_weights, scales):
    with pytest.raises(ValueError, match="scales must be one or more numbers from 0.1 to 10"):
        Estimator(tiny_weights, scales=scales)


@pytest.mark.parametrize("corners", [False, True])
def test_joints_are_read_from_maps_that_lie_as_the_targets_did(tiny_experiment, corners):
    experiment = override(
        tiny_experiment, ["model.input_size=128,96", "model.decoder=dark", f"model.align_corners={corners}".lower()]
    )
    config, rng = experiment.model, np.random.default_rng(0)
    points = jnp.array(rng.uniform(25, [70, 102], (19, 2)), jnp.float32)
    frames = {"size": config.input_size, "output_size": config.output_size, "sigma": experiment.optim.sigma}
    maps = heatmap_targets(points, jnp.ones(19, bool), **frames, align_corners=corners)
    found, _ = read_poses(maps[None], jnp.eye(2, 3)[None], experiment=experiment)
    assert_close(found[0], points, atol=0.02)
    # The other frame is off by 1.5 pixels at the crop's edge and by nothing in its middle.
    other = override(experiment, [f"model.align_corners={not corners}".lower()])
    off = read_poses(maps[None], jnp.eye(2, 3)[None], experiment=other)[0][0] - points
    middle = jnp.array([47.5, 63.5])[None]
    expected = (points - middle) / jnp.array([47.5, 63.5])[None] * 1.5 * (1 if corners else -1)
    assert_close(off, -expected, atol=0.1)
