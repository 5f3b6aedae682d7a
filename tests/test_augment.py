from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_identical, assert_same_under_jit_and_vmap
from made_data import figure

from rmpe_jax.config import AugmentConfig
from rmpe_jax.geometry.affine import compose, identity_affine, image_from_person, transform_points
from rmpe_jax.geometry.sampling import crop_image
from rmpe_jax.heatmaps import decode_heatmaps
from rmpe_jax.proposals.generators import LAWS, Law, cut_patch, patch_share, whole_boxes
from rmpe_jax.proposals.mixtures import OffsetMixtures
from rmpe_jax.skeleton import LSP_14
from rmpe_jax.train.augment import (
    generator_of,
    heatmap_targets,
    mirror,
    random_box,
    random_crop,
    random_proposal,
    random_rotation,
)

NONE = AugmentConfig(flip=0.0, scale=0.0, shift=0.0, rotation=0.0, rotation_probability=0.0, colour=0.0)
STRONG = AugmentConfig(scale=0.25, shift=0.05, rotation=30.0, rotation_probability=0.8, colour=0.4)
CANVAS, SIZE, FLIP_ORDER = 64, (32, 24), (1, 0, 2)
BOX = jnp.array([22.0, 12.0, 42.0, 50.0])
JOINTS = jnp.array([[26.0, 20.0], [38.0, 27.0], [31.0, 43.0]])
KEYS = jax.random.split(jax.random.key(5), 64)


def blobs():
    """A canvas with one bright blob at each joint: joint 0 red, joint 1 green, joint 2 blue."""
    y, x = np.mgrid[:CANVAS, :CANVAS]
    joints = np.asarray(JOINTS)
    squared = (x[..., None] - joints[:, 0]) ** 2 + (y[..., None] - joints[:, 1]) ** 2
    return jnp.array(np.round(170 * np.exp(-squared / (2 * 2.0**2))), jnp.uint8)


def centroids(crop):
    """(x, y) of the centre of gravity of each colour."""
    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]]
    weight = np.asarray(crop, float)
    return np.stack([(weight * axis[..., None]).sum((0, 1)) / weight.sum((0, 1)) for axis in (x, y)], -1)


def parts_of(*arguments, **settings):
    """Image, joints and labels of a random crop."""
    crop = random_crop(*arguments, **settings)
    return crop.image, crop.points, crop.labelled


def crop_with(config, extension=0.3, size=SIZE):
    return jax.jit(partial(parts_of, config=config, size=size, extension=extension, flip_order=FLIP_ORDER))


def many_crops(config, labelled):
    crop = partial(parts_of, config=config, size=SIZE, extension=0.9, flip_order=FLIP_ORDER)
    return jax.jit(jax.vmap(crop, (0, None, None, None, None)))(KEYS, blobs(), BOX, JOINTS, labelled)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_each_blob_is_at_its_returned_joint(flip):
    config = AugmentConfig(flip=flip, scale=0.2, shift=0.05, rotation=30.0, rotation_probability=0.8, colour=0.3)
    crops, points, labelled = many_crops(config, jnp.ones(3, bool))
    # A flipped left joint is a right one: the joint returned first is where the green blob is.
    colours = list(FLIP_ORDER) if flip else [0, 1, 2]
    measured = np.array([centroids(crop)[colours] for crop in crops])
    points = np.asarray(points)
    # Blobs that the crop's edge cuts have another centre of gravity.
    whole = ((points > 4) & (points < np.array([SIZE[1], SIZE[0]]) - 5)).all(-1)
    assert whole.mean() > 0.6 and labelled.all()
    np.testing.assert_allclose(measured[whole], points[whole], atol=0.1)


def test_labels_are_exchanged_with_their_joints():
    _, points, labelled = many_crops(AugmentConfig(flip=1.0), jnp.array([True, False, True]))
    assert (np.asarray(labelled) == [False, True, True]).all()
    assert points.shape == (64, 3, 2)


def test_about_half_of_the_crops_are_flipped():
    _, _, labelled = many_crops(AugmentConfig(flip=0.5), jnp.array([True, False, True]))
    assert 0.25 < labelled[:, 1].mean() < 0.75


def test_without_augmentation_the_crop_is_that_of_inference(key):
    canvas = jax.random.randint(key, (CANVAS, CANVAS, 3), 0, 256).astype(jnp.uint8)
    labelled = jnp.array([True, False, True])
    crop, points, kept = crop_with(NONE)(key, canvas, BOX, JOINTS, labelled)
    matrix = image_from_person(BOX, SIZE, extension=0.3)
    assert_close(crop, crop_image(canvas, matrix, SIZE) / 255, atol=1e-4)
    assert_close(transform_points(matrix, points), JOINTS, atol=1e-3)
    np.testing.assert_array_equal(kept, labelled)


def test_a_flip_alone_mirrors_the_crop_of_inference(key):
    canvas = jax.random.randint(key, (CANVAS, CANVAS, 3), 0, 256).astype(jnp.uint8)
    flip = AugmentConfig(flip=1.0, scale=0.0, shift=0.0, rotation=0.0, rotation_probability=0.0, colour=0.0)
    crop, points, _ = crop_with(flip)(key, canvas, BOX, JOINTS, jnp.ones(3, bool))
    plain, plain_points, _ = crop_with(NONE)(key, canvas, BOX, JOINTS, jnp.ones(3, bool))
    assert_close(crop, plain[:, ::-1], atol=1e-3)
    mirrored = plain_points * jnp.array([[-1.0, 1.0]]) + jnp.array([[SIZE[1] - 1.0, 0.0]])
    assert_close(points, mirrored[np.array(FLIP_ORDER)], atol=1e-3)


def test_mirroring_twice_is_the_identity():
    assert_close(compose(mirror(7), mirror(7)), identity_affine())
    assert_close(transform_points(mirror(7), jnp.array([[0.0, 2.0], [6.0, 3.0]])), [[6, 2], [0, 3]])


def test_colours_stay_in_range_and_differ_between_channels():
    crop = jax.jit(
        jax.vmap(
            lambda key: parts_of(
                key,
                jnp.full((CANVAS, CANVAS, 3), 230, jnp.uint8),
                jnp.array([24.0, 24.0, 40.0, 40.0]),
                JOINTS,
                jnp.ones(3, bool),
                config=AugmentConfig(colour=0.4),
                size=(4, 4),
                extension=0.0,
                flip_order=FLIP_ORDER,
            )[0]
        )
    )(KEYS)
    value = np.asarray(crop[:, 2, 2])
    np.testing.assert_allclose(crop, np.broadcast_to(value[:, None, None], crop.shape), rtol=1e-5)
    assert value.max() == 1.0 and 0.6 * 230 / 255 - 1e-5 <= value.min() < 0.75
    assert (value.std(1) > 1e-3).mean() > 0.9


def test_the_same_key_gives_the_same_crop_and_another_key_another():
    crop, canvas = crop_with(STRONG), blobs()
    first, again, other = (crop(key, canvas, BOX, JOINTS, jnp.ones(3, bool)) for key in (KEYS[0], KEYS[0], KEYS[1]))
    np.testing.assert_array_equal(first[0], again[0])
    assert np.abs(first[1] - other[1]).max() > 0.5


def test_a_box_is_scaled_and_shifted_within_its_bounds():
    config = AugmentConfig(scale=0.25, shift=0.05)
    boxes = np.asarray(jax.jit(jax.vmap(lambda key: random_box(key, BOX, config)))(KEYS))
    size, centre = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    factor = size / np.asarray(BOX[2:] - BOX[:2])
    np.testing.assert_allclose(factor[:, 0], factor[:, 1], rtol=1e-4)
    assert 0.75 - 1e-4 <= factor.min() < 0.85 and 1.15 < factor.max() <= 1.25 + 1e-4
    # By fractions of the longer side, 38, on both axes.
    shift = np.abs(centre - [32.0, 31.0]).max(0) / 38
    assert ((0.03 < shift) & (shift <= 0.05 + 1e-5)).all()


def test_rotations_are_cut_at_two_standard_deviations_and_often_zero():
    config = AugmentConfig(rotation=30.0, rotation_probability=0.6)
    keys = jax.random.split(jax.random.key(0), 2000)
    angles = np.rad2deg(jax.jit(jax.vmap(lambda key: random_rotation(key, config)))(keys))
    turned = angles[angles != 0]
    assert 0.55 < len(turned) / 2000 < 0.65
    assert np.abs(angles).max() == pytest.approx(60, abs=1e-3)
    assert abs(turned.mean()) < 3 and 26 < turned.std() < 31


def test_targets_peak_at_the_joints_and_leave_out_the_rest():
    points = jnp.array([[9.5, 17.5], [40.0, 5.0], [12.0, 8.0], [-0.4, 31.4]])
    labelled = jnp.array([True, True, False, True])
    targets = jax.jit(partial(heatmap_targets, size=SIZE, output_size=(8, 6), sigma=1.0))
    maps = targets(points, labelled)
    assert maps.shape == (8, 6, 4)
    assert maps[4, 2, 0] == 1.0  # (9.5 + 0.5) / 4 - 0.5 = 2, (17.5 + 0.5) / 4 - 0.5 = 4
    np.testing.assert_array_equal(maps[..., 1:3], 0.0)  # outside the crop; not labelled
    assert jax.jit(decode_heatmaps)(maps)[0][3].tolist() == [0.0, 7.0]


def test_an_empty_box_gives_finite_values(key):
    crop, points, _ = crop_with(STRONG)(key, blobs(), jnp.zeros(4), JOINTS, jnp.zeros(3, bool))
    assert np.isfinite(crop).all() and np.isfinite(points).all()


def test_transformations_do_not_change_the_crops(key):
    canvases = jax.random.randint(key, (3, 16, 16, 3), 0, 256).astype(jnp.uint8)
    boxes = jnp.array([[4.0, 4.0, 10.0, 12.0], [2.0, 3.0, 9.0, 9.0], [6.0, 1.0, 12.0, 9.0]])
    points, labelled = jax.random.uniform(key, (3, 3, 2), maxval=15.0), jnp.ones((3, 3), bool)
    # Rotated positions differ in their last bits, and a random picture changes by its full range within a pixel.
    crop = partial(parts_of, config=NONE, size=(8, 8), extension=0.3, flip_order=FLIP_ORDER)
    assert_same_under_jit_and_vmap(crop, KEYS[:3], canvases, boxes, points, labelled)


# Proposals


@pytest.mark.parametrize("name", LAWS)
def test_the_settings_name_a_law(name, key):
    config = AugmentConfig(proposals=name)
    assert generator_of(config) == Law(name)
    whole = whole_boxes(key, BOX, JOINTS, jnp.ones(3, bool), generator=Law(name), num=1)[0]
    expected = cut_patch(jax.random.fold_in(key, 1), whole, BOX, patch_share(Law(name)))
    for given in (None, Law(name)):
        found = random_proposal(key, BOX, JOINTS, jnp.ones(3, bool), config=config, generator=given)
        assert_close(found, expected)


def test_jitter_is_the_random_box(key):
    config = AugmentConfig(scale=0.2, shift=0.1)
    assert generator_of(config) is None
    box, _ = random_proposal(key, BOX, JOINTS, jnp.ones(3, bool), config=config, generator=None)
    assert_close(box, random_box(key, BOX, config))


def test_a_file_of_proposals_without_what_it_holds_is_refused(key):
    config = AugmentConfig(proposals="law.npz")
    with pytest.raises(ValueError, match="proposals 'law.npz' are of a file: hand over what `load_proposals` reads"):
        generator_of(config)
    with pytest.raises(ValueError, match="are of a file"):
        random_proposal(key, BOX, JOINTS, jnp.ones(3, bool), config=config, generator=None)


def test_patches_are_cut_whatever_the_generator_is():
    config = AugmentConfig(proposals="law.npz", patch=1.0)
    propose = partial(random_proposal, config=config, generator=Law("harsh"))
    boxes, patch = jax.jit(jax.vmap(propose, (0, None, None, None)))(KEYS, BOX, JOINTS, jnp.ones(3, bool))
    assert patch.all() and (boxes[:, :2] >= BOX[None, :2] - 1e-3).all() and (boxes[:, 2:] <= BOX[None, 2:] + 1e-3).all()


@pytest.mark.parametrize(
    ("name", "setting", "share"),
    [
        ("patch_15", 0.0, 0.15),
        ("patch_30", 0.0, 0.3),
        ("patch_30", 0.1, 0.1),  # the setting goes before the law
        ("alphapose_global", 0.0, 0.0),
        ("alphapose_global", 0.5, 0.5),
        ("jitter", 0.0, 0.0),
        ("jitter", 0.3, 0.3),
    ],
)
def test_so_many_proposals_are_parts_of_the_person(name, setting, share):
    config = AugmentConfig(proposals=name, patch=setting)
    propose = partial(random_proposal, config=config, generator=None)
    keys = jax.random.split(jax.random.key(2), 4000)
    boxes, patch = jax.jit(jax.vmap(propose, (0, None, None, None)))(keys, BOX, JOINTS, jnp.ones(3, bool))
    assert patch.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4000))
    scale = np.asarray((boxes[:, 2:] - boxes[:, :2]) / (BOX[2:] - BOX[:2])[None])[patch]
    np.testing.assert_allclose(scale[:, 0], scale[:, 1], rtol=1e-4)
    assert (scale > 1 - share - 1e-4).all() and (scale < 1 + 1e-4).all()
    inside = (boxes[:, :2] >= BOX[None, :2] - 1e-3).all(1) & (boxes[:, 2:] <= BOX[None, 2:] + 1e-3).all(1)
    assert inside[patch].all() and not (boxes == BOX[None]).all(1)[patch].any()


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_perfect_crop_of_a_part_is_the_part_itself(flip):
    config = AugmentConfig(proposals="patch_30", flip=flip, rotation_probability=1.0, colour=0.0)
    make = partial(random_crop, config=config, size=(8, 8), extension=0.3, flip_order=FLIP_ORDER)
    keys = jax.random.split(jax.random.key(2), 400)
    crops = jax.jit(jax.vmap(make, (0, None, None, None, None)))(keys, blobs(), BOX, JOINTS, jnp.ones(3, bool))
    itself = np.abs(crops.canvas_from_crop - crops.canvas_from_centred).max((1, 2)) == 0
    # Pixels of the canvas for one of the crop, whatever the turn; so wide is the crop of the labelled box.
    scale = np.hypot(crops.canvas_from_crop[:, 0, 0], crops.canvas_from_crop[:, 1, 0])
    whole = np.hypot(crops.canvas_from_centred[:, 0, 0], crops.canvas_from_centred[:, 1, 0])[~itself]
    assert itself.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 400))
    np.testing.assert_allclose(whole, whole[0], rtol=1e-4)
    assert ((scale[itself] > 0.7 * whole[0] - 1e-3) & (scale[itself] <= whole[0] + 1e-3)).all()


def law_by_pose():
    """People on their feet are found without their legs, those on their heads exactly, all others in wide boxes."""
    atoms = (figure(LSP_14.joints, (-0.5, -1.2, 0.5, 2.0)))[None] * [[[1.0, 1]], [[1, -1]]]
    mean = np.array([[0, 0, 0, -0.5], [0, 0, 0, 0], [-0.5, 0, 0.5, 0]])[:, None]
    arrays = (atoms, np.ones((3, 1)), mean, np.tile(1e-4 * np.eye(4), (3, 1, 1, 1)))
    return OffsetMixtures(*(np.asarray(array, np.float32) for array in arrays), skeleton="lsp_14")


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(
    ("turned", "labelled", "wanted"),
    [
        (False, True, [22, 12, 42, 31]),
        (True, True, [22, 12, 42, 50]),
        (False, False, [12, 12, 52, 50]),
    ],
)
def test_training_crops_follow_the_generator_handed_over(flip, turned, labelled, wanted, key):
    points = figure(LSP_14.joints, np.asarray(BOX))
    points[:, 1] = 62 - points[:, 1] if turned else points[:, 1]
    # The file's name alone; colours and turns off. No shift and no scale: those are the jitter's.
    config = AugmentConfig(proposals="law.npz", flip=flip, rotation_probability=0.0, colour=0.0)
    make = partial(random_crop, config=config, size=SIZE, extension=0.3, flip_order=LSP_14.flip_order)
    crop = jax.jit(partial(make, generator=law_by_pose()))(
        key, blobs(), BOX, jnp.array(points, jnp.float32), jnp.full(14, labelled)
    )
    matrix = image_from_person(jnp.array(wanted, jnp.float32), SIZE, extension=0.3)
    matrix = compose(matrix, mirror(SIZE[1])) if flip else matrix
    assert_close(crop.canvas_from_crop, matrix, atol=0.1)
    # The perfect crop is still that of the labelled box.
    perfect = image_from_person(BOX, SIZE, extension=0.3)
    assert_close(crop.canvas_from_centred, compose(perfect, mirror(SIZE[1])) if flip else perfect, atol=1e-3)


def test_a_generator_goes_before_the_law_of_the_settings(key):
    config = AugmentConfig(proposals="harsh")
    chosen = random_proposal(key, BOX, JOINTS, jnp.ones(3, bool), config=config, generator=Law("exact"))[0]
    assert_identical(chosen, BOX)
