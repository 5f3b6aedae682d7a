"""What a person detector sees while it is trained: pictures and labels agree, whatever is done to them at random."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_identical

from rmpe_jax.config import AugmentConfig, DataConfig, Experiment, PersonDetectorConfig
from rmpe_jax.records import SceneBatch
from rmpe_jax.train import mosaics
from rmpe_jax.train.augment import example_keys
from rmpe_jax.train.mosaics import training_scenes

CANVAS, PEOPLE, BATCH = 64, 3, 48
CONFIG = PersonDetectorConfig(
    stacks=1, features=8, depth=1, input_size=(64, 64), sides=(64,), lengths=(14.0, 40.0)
)  # fmt: skip
KEY = jax.random.key(11)
GREY = 70
# Of the people of each of the four scenes of an example, told apart by which of their channels are bright.
COLOURS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
#: Canvases lie in landscape: above and below is nothing but what the loader puts there.
EXTENT = [-0.5, 7.5, 63.5, 55.5]


def empty_batch(count=BATCH, *, extent=EXTENT, complete=True):
    """A batch of grey pictures of nobody, as writable arrays by the names of its fields."""
    return {
        "canvas": np.full((count, 4, CANVAS, CANVAS, 3), GREY, np.uint8),
        "extent": np.tile(np.array(extent, np.float32), (count, 4, 1)),
        "boxes": np.zeros((count, 4, PEOPLE, 4), np.float32),
        "person": np.zeros((count, 4, PEOPLE), bool),
        "ignored": np.zeros((count, 4, PEOPLE), bool),
        "complete": np.full((count, 4), complete),
        "index": np.arange(count, dtype=np.int32),
        "valid": np.ones((count, 4), bool),
    }


def draw(fields, example, scene, slot, box, colour):
    """Puts somebody of one colour there, from one pixel up to before another."""
    x0, y0, x1, y1 = box
    fields["canvas"][example, scene, y0:y1, x0:x1] = colour
    fields["boxes"][example, scene, slot] = np.array(box) - 0.5
    fields["person"][example, scene, slot] = True


@functools.cache
def coloured_batch():
    """In every scene one person of its colour, whose left half is brighter."""
    rng, fields = np.random.default_rng(0), empty_batch()
    for example in range(BATCH):
        for scene, colour in enumerate(COLOURS):
            (x0, y0), (width, height) = rng.integers([3, 11], [30, 30]), rng.integers(10, 24, 2)
            draw(fields, example, scene, 0, (x0, y0, x0 + 2 * (width // 2), y0 + height), 255 * colour)
            fields["canvas"][example, scene, y0 : y0 + height, x0 + width // 2 : x0 + 2 * (width // 2)] = 204 * colour
    return fields


def as_batch(fields):
    return SceneBatch(**{name: jnp.asarray(array) for name, array in fields.items()})


@functools.cache
def compiled(model):
    """``training_scenes`` for any probabilities, which are arguments here, so that it is compiled once."""

    def make(batch, step, chances, black):
        augment = AugmentConfig()
        for name, value in chances.items():
            object.__setattr__(augment, name, value)
        experiment = Experiment(name="finder", model=model, data=DataConfig(canvas=CANVAS), augment=augment)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mosaics, "_BLACK", black)
            # Copies of canvases halved take long to compile, and plain colours look the same without.
            patch.setattr(mosaics, "_LEVELS", 1)
            return vars(training_scenes(batch, example_keys(KEY, step, batch), experiment=experiment))

    # Unoptimised, it is there in half the time.
    return jax.jit(make, compiler_options={"xla_backend_optimization_level": 0})


def seen(fields, *, model=CONFIG, step=0, black=0.5, **chances):
    """The examples of a batch, as NumPy arrays by the names of their fields; without changes of colour."""
    chances = {"colour": 0.0, "flip": 0.0, "mosaic": 0.0, **chances}
    return jax.tree.map(np.asarray, compiled(model)(as_batch(fields), step, chances, black))


@functools.cache
def coloured(**augment):
    return seen(coloured_batch(), **augment)


def of_colour(images, colour):
    """Pixels whose bright channels are those of a colour: bright is beyond halfway from the background to them."""
    bright = images > (GREY / 255 + 0.8) / 2
    return (bright == np.array(colour, bool)).all(-1)


def box_around(mask):
    rows, columns = np.nonzero(mask)
    return np.array([columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5])


def shared(batch, name):
    """The records of a batch that the four scenes share."""
    return batch[name].reshape(BATCH, 4, PEOPLE, *batch[name].shape[2:])


# People


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_people_are_seen_where_their_boxes_are(mosaic, flip):
    found = coloured(mosaic=mosaic, flip=flip)
    boxes, person = shared(found, "boxes"), shared(found, "person")
    checked = 0
    for example in range(BATCH):
        for scene, colour in enumerate(COLOURS):
            mask = of_colour(found["image"][example], colour)
            box = boxes[example, scene, 0]
            assert not person[example, scene, 1:].any()
            if min(box[2:] - box[:2]) > 3:
                np.testing.assert_allclose(box_around(mask), box, atol=1.1)
                # Of somebody who is to be found the greater part is there.
                checked += person[example, scene, 0]
            if not mask.any():
                assert not person[example, scene, 0]
    # The one of the only scene is always found; of four scenes some are too small, or have hardly any room.
    assert checked == BATCH if mosaic == 0 else checked > 2 * BATCH


@pytest.mark.parametrize(("flip", "share"), [(0.0, (0, 0)), (1.0, (1, 1)), (0.5, (0.25, 0.75))])
def test_a_flip_mirrors_the_picture_and_the_boxes_with_it(flip, share):
    found = coloured(flip=flip)
    mirrored = []
    for example in range(BATCH):
        x0, y0, x1, y1 = shared(found, "boxes")[example, 0, 0]
        middle, quarter = round((x0 + x1) / 2), (x1 - x0) / 4
        inside = found["image"][example, round(y0) + 2 : round(y1) - 1, :, 0]
        left, right = inside[:, round(x0) + 2 : middle - 1].mean(), inside[:, middle + 2 : round(x1) - 1].mean()
        if x0 > 0 and x1 < 63 and quarter > 3:  # nothing of the person is cut off
            assert abs(left - right) > 0.1
            mirrored.append(right > left)
    assert len(mirrored) > BATCH / 4 and share[0] <= np.mean(mirrored) <= share[1]


def test_without_a_mosaic_only_the_first_scene_is_seen_and_with_it_up_to_four():
    counts = {}
    for mosaic in (0.0, 1.0, 0.5):
        found = coloured(mosaic=mosaic)
        there = np.stack([of_colour(found["image"], colour).sum((1, 2)) > 4 for colour in COLOURS], -1)
        counts[mosaic] = there.sum(-1)
        if mosaic == 0:
            assert there[:, 0].all() and not there[:, 1:].any()
            assert not shared(found, "person")[:, 1:].any()
    assert counts[1.0].max() == 4 and counts[1.0].mean() > 3
    single = (counts[0.5] == 1).mean()
    assert 0.2 < single < 0.8


def test_lengths_follow_the_settings_and_not_the_pictures():
    lengths = {}
    for size in (10, 40):
        fields = empty_batch(extent=[-0.5, -0.5, 63.5, 63.5])
        for example in range(BATCH):
            draw(fields, example, 0, 0, (12, 12, 12 + size, 12 + size // 2), 255)
        boxes = seen(fields)["boxes"][:, 0]
        # Only of somebody who is not cut off the whole length is known.
        inside = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < 63).all(1)
        lengths[size] = (boxes[:, 2] - boxes[:, 0])[inside]
    for found in lengths.values():
        assert len(found) > BATCH / 4
        # Ten per cent, as a logarithm, for the aspect.
        assert found.min() >= 14 * np.exp(-0.1) and found.max() <= 40 * np.exp(0.1)
        assert found.min() < 20
    # Ten pixels are enlarged by two and a half at most.
    assert lengths[10].max() <= 25 * np.exp(0.1) and lengths[40].max() > 25


def test_width_and_height_are_stretched_by_ten_per_cent_each():
    fields = empty_batch(extent=[-0.5, -0.5, 63.5, 63.5])
    for example in range(BATCH):
        draw(fields, example, 0, 0, (22, 22, 42, 42), 255)
    boxes = seen(fields)["boxes"][:, 0]
    inside = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < 63).all(1)
    ratio = np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))[inside]
    assert len(ratio) > BATCH / 4 and np.abs(ratio).max() <= 0.2 + 1e-4
    assert ratio.min() < -0.07 and ratio.max() > 0.07


def test_each_of_the_four_scenes_is_placed_by_chances_of_its_own():
    fields = empty_batch(extent=[-0.5, -0.5, 63.5, 63.5])
    for example, scene in np.ndindex(BATCH, 4):
        draw(fields, example, scene, 0, (27, 27, 37, 37), 255)
    found = seen(fields, mosaic=1.0, flip=0.5, colour=0.3)
    sizes = [shared(found, "boxes")[:, scene, 0, 2:] - shared(found, "boxes")[:, scene, 0, :2] for scene in range(4)]
    whole = [shared(found, "person")[:, scene, 0] & (size.min(1) > 8) for scene, size in enumerate(sizes)]
    for one, other in ((0, 1), (0, 2), (1, 3), (2, 3)):
        both = whole[one] & whole[other]
        assert both.sum() > 5
        ratio = sizes[one][both] / sizes[other][both]
        # The same chances would give the same aspect.
        assert (np.abs(np.log(ratio[:, 0] / ratio[:, 1])) > 0.01).mean() > 0.7


def test_the_four_scenes_cover_an_example_and_do_not_overlap():
    fields = empty_batch()
    fields["canvas"][:] = 128
    # Where two lay on one another it would be brighter, and in a gap black.
    for mosaic in (0.0, 1.0):
        np.testing.assert_allclose(seen(fields, mosaic=mosaic, black=0.0)["image"], 128 / 255, rtol=1e-5)


def test_four_scenes_meet_in_one_corner_in_the_middle_part():
    fields = empty_batch(extent=[-0.5, -0.5, 63.5, 63.5])
    for scene, colour in enumerate(COLOURS):
        fields["canvas"][:, scene] = 250 * colour
    monochrome = seen(fields, mosaic=1.0)["image"]
    corners = []
    for image in monochrome:
        # Beyond a picture it may be black.
        filled = [of_colour(image, colour) for colour in COLOURS]
        for mask, (right, below) in zip(filled, [(0, 0), (1, 0), (0, 1), (1, 1)], strict=True):
            if mask.any():
                x0, y0, x1, y1 = box_around(mask)
                assert (x0 > 17 if right else x1 < 46) and (y0 > 17 if below else y1 < 46)
        if filled[0].any():
            corners.append(box_around(filled[0])[2:])
    assert np.ptp(corners, 0).min() > 10


def test_colours_change_channel_by_channel_within_their_range():
    fields = empty_batch()
    fields["canvas"][:] = 100
    images = seen(fields, colour=0.3)["image"]
    brightest = images.max((1, 2))
    assert (np.abs(brightest / (100 / 255) - 1) <= 0.3 + 1e-5).all() and np.ptp(brightest, 0).min() > 0.15
    assert np.abs(brightest[:, 0] - brightest[:, 1]).max() > 0.05


@pytest.mark.parametrize("black", [0.0, 1.0])
def test_beyond_a_picture_it_is_black_or_its_outermost_pixels_go_on(black):
    images = seen(coloured_batch(), black=black)["image"]
    share = (images.max(-1) == 0).mean()
    assert share > 0.05 if black else share == 0


# What is known


def blocks(images):
    """The four middle pixels of each pixel of the maps, and whether all sixteen are alike."""
    count, side = len(images), images.shape[1] // 4
    parts = images.reshape(count, side, 4, side, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(count, side, side, 16, 3)
    return parts[..., 5, :], np.ptp(parts, -2).max(-1) < 0.02


def painted(*, complete, ignored=False, box=(20, 20, 36, 44)):
    """In every scene a red person; around them in green what is theirs, a twentieth of the sides all around."""
    fields = empty_batch(complete=complete)
    x0, y0, x1, y1 = box
    for example, scene in np.ndindex(BATCH, 4):
        margin_x, margin_y = round(0.05 * (x1 - x0)), round(0.05 * (y1 - y0))
        fields["canvas"][example, scene, y0 - margin_y : y1 + margin_y, x0 - margin_x : x1 + margin_x] = [0, 255, 0]
        draw(fields, example, scene, 0, box, [255, 0, 0])
    if ignored:
        fields["person"][:, :, 0], fields["ignored"][:, :, 0] = False, True
    return fields


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_where_everybody_is_labelled_all_is_known(mosaic):
    found = seen(painted(complete=True), mosaic=mosaic)
    centre, even = blocks(found["image"])
    unknown = ~found["known"] & even
    # But for those whom nobody is asked to find: too little of them is left, or they are too small.
    boxes, person = found["boxes"], found["person"]
    assert found["known"].mean() > 0.9
    for example, row, column in np.argwhere(unknown):
        x, y = 4 * column + 1.5, 4 * row + 1.5
        inside = (boxes[example, :, :2] <= [x, y]).all(-1) & (boxes[example, :, 2:] > [x, y]).all(-1)
        assert (inside & ~person[example]).any()
        assert centre[example, row, column, 0] > 0.9  # red
    if mosaic == 0:
        assert found["known"].all()


def test_where_not_everybody_is_labelled_only_their_ground_is_known_and_what_is_beyond_the_picture():
    found = seen(painted(complete=False, box=(12, 10, 52, 50)), flip=0.5, black=1.0)
    centre, even = blocks(found["image"])
    red, green = centre[..., 0] > 0.9, centre[..., 1] > 0.9
    black = centre.max(-1) == 0
    assert found["person"][:, 0].all() and min(red.sum(), black.sum()) > 100
    np.testing.assert_array_equal(found["known"][even], (red | green | black)[even])
    assert (~found["known"]).sum() > 100


@pytest.mark.parametrize("complete", [True, False])
def test_ignored_people_are_neither_to_be_found_nor_known(complete):
    fields = painted(complete=complete, ignored=True)
    found = seen(fields)
    centre, even = blocks(found["image"])
    red = centre[..., 0] > 0.9
    assert not found["person"].any() and red.sum() > 100
    assert not found["known"][red & even].any()
    if complete:
        assert found["known"][~red & even].all()


def test_an_ignored_box_over_a_person_leaves_the_person_and_hides_the_ground():
    fields = painted(complete=True)
    fields["boxes"][:, :, 1], fields["ignored"][:, :, 1] = fields["boxes"][:, :, 0], True
    found = seen(fields)
    centre, even = blocks(found["image"])
    assert found["person"][:, 0].all() and not found["person"][:, 1].any()
    assert not found["known"][(centre[..., 0] > 0.9) & even].any()


@pytest.mark.parametrize(("inside", "expected"), [(0.3, False), (0.5, True)])
def test_of_whom_too_little_is_in_the_picture_is_not_to_be_found_and_not_known(inside, expected):
    fields = empty_batch()
    for example in range(BATCH):
        # The picture ends at 63.5, the box later.
        draw(fields, example, 0, 0, (48, 16, 64, 48), [255, 0, 0])
        fields["boxes"][example, 0, 0] = [47.5, 15.5, 47.5 + 16 / inside, 47.5]
    found = seen(fields)
    centre, even = blocks(found["image"])
    red = (centre[..., 0] > 0.9) & even
    # Somebody far in the picture's corner may be out of sight: never found, but not always.
    assert found["person"][:, 0].any() == expected and red.sum() > 50
    shown = red & ~found["person"][:, 0, None, None]
    unknown = ~found["known"]
    # Where outermost pixels go on they are red beyond the picture; the box ends with it.
    x = 4 * np.arange(16) + 1.5
    x0, y0, x1, y1 = np.moveaxis(found["boxes"][:, 0], -1, 0)[..., None, None]
    within = (x >= x0) & (x < x1) & (x[:, None] >= y0) & (x[:, None] < y1)
    assert unknown[shown & within].all() and not unknown[~within].any()
    assert (found["boxes"][:, 0, 2] <= 64).all()


def test_people_much_smaller_or_larger_than_the_lengths_are_ignored():
    lengths = dataclasses.replace(CONFIG, lengths=(14.0, 18.0))
    fields = empty_batch(extent=[-0.5, -0.5, 63.5, 63.5])
    for example in range(BATCH):
        draw(fields, example, 0, 0, (4, 4, 60, 60), [255, 0, 0])
        draw(fields, example, 0, 1, (26, 26, 32, 32), [0, 255, 0])
    found = seen(fields, model=lengths)
    sizes = (found["boxes"][:, :2, 2:] - found["boxes"][:, :2, :2]).max(-1)
    expected = (sizes >= 0.6 * 14) & (sizes <= 1.3 * 18)
    np.testing.assert_array_equal(found["person"][:, :2], expected)
    # Sixty pixels shrunk to 16 leave the other two; and that one's 15 make sixty, cut or not, of the first.
    assert not expected.all(1).any() and expected[:, 0].any() and expected[:, 1].any()
    centre, even = blocks(found["image"])
    green = (centre[..., 1] > 0.9) & even & ~found["person"][:, 1, None, None]
    red = (centre[..., 0] > 0.9) & even & ~found["person"][:, 0, None, None]
    assert not found["known"][green | red].any() and red.any()


# What is not valid


def test_scenes_that_are_not_valid_are_black_hold_nobody_and_change_nothing():
    fields = {name: array.copy() for name, array in coloured_batch().items()}
    for name in ("canvas", "extent", "boxes", "person", "complete", "valid"):
        fields[name][:, 1] = 0
    garbage = {name: array.copy() for name, array in fields.items()}
    garbage["boxes"][:, 1], garbage["person"][:, 1, :2], garbage["ignored"][:, 1, 2] = [5, 9, 40, 50], True, True
    garbage["extent"][:, 1], garbage["complete"][:, 1] = EXTENT, True
    expected, found = seen(fields, mosaic=1.0), seen(garbage, mosaic=1.0)
    for name in ("image", "person", "known"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert not shared(found, "person")[:, 1].any()
    whole = coloured(mosaic=1.0)
    for scene in (0, 2, 3):
        for name in ("boxes", "person"):
            np.testing.assert_array_equal(shared(found, name)[:, scene], shared(whole, name)[:, scene])
    # Nothing is known of where it would be, and all that is elsewhere is.
    changed = (found["image"] != whole["image"]).any(-1)
    assert changed.any() and not found["image"][changed].any()
    upper_right = ~found["known"] & whole["known"]
    assert upper_right.any(0)[2, 13] and not upper_right[:, 12:].any() and not upper_right[:, :, :4].any()


def test_an_example_without_any_valid_scene_is_black_and_unknown():
    fields = {name: np.zeros_like(array) for name, array in empty_batch().items()}
    for mosaic in (0.0, 1.0):
        found = seen(fields, mosaic=mosaic)
        assert not any(array.any() for name, array in found.items() if name != "boxes")


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_empty_boxes_and_pictures_never_make_anything_that_is_not_finite(mosaic):
    fields = empty_batch()
    fields["person"][:, :, 0] = True
    fields["boxes"][:, :, 0] = [20, 20, 20, 20]  # a point
    fields["boxes"][:, :, 1] = [20, 20, 20, 50]  # a line
    fields["person"][::2, :, 1] = True
    fields["ignored"][1::2, :, 1] = True
    fields["extent"][::3] = [9.5, 9.5, 9.5, 9.5]
    found = seen(fields, mosaic=mosaic)
    assert all(np.isfinite(array).all() for array in found.values())
    assert not found["person"].any()
    assert (found["image"] >= 0).all() and (found["image"] <= 1).all()


# Randomness


def test_examples_are_the_same_however_a_batch_is_split():
    chances = {"mosaic": 0.5, "flip": 0.5, "colour": 0.3}
    whole = seen(coloured_batch(), **chances)
    for part in (slice(0, 24), slice(24, 48)):
        found = seen({name: array[part] for name, array in coloured_batch().items()}, **chances)
        assert_close(found, {name: array[part] for name, array in whole.items()})
    order = np.random.default_rng(0).permutation(BATCH)
    shuffled = seen({name: array[order] for name, array in coloured_batch().items()}, **chances)
    assert_close(shuffled, {name: array[order] for name, array in whole.items()})


def test_the_step_changes_examples_and_the_same_step_does_not():
    chances = {"mosaic": 0.5, "flip": 0.5}
    first, again, later = (seen(coloured_batch(), step=step, **chances) for step in (3, 3, 4))
    assert_identical(again, first)
    assert (np.abs(later["image"] - first["image"]).max((1, 2, 3)) > 0.1).all()
    # Nor do two examples of the same scenes look alike.
    fields = {name: np.repeat(array[:1], BATCH, 0) for name, array in coloured_batch().items()}
    alike = seen({**fields, "index": np.arange(BATCH, dtype=np.int32)}, **chances)["image"]
    assert len({image.tobytes() for image in alike}) == BATCH


def test_an_input_that_is_no_square_has_its_maps_and_its_people():
    wide = dataclasses.replace(CONFIG, input_size=(40, 96))
    found = seen(coloured_batch(), model=wide)
    assert found["image"].shape == (BATCH, 40, 96, 3) and found["known"].shape == (BATCH, 10, 24)
    for example in range(BATCH):
        box = found["boxes"][example, 0]
        if min(box[2:] - box[:2]) > 3:
            np.testing.assert_allclose(box_around(of_colour(found["image"][example], COLOURS[0])), box, atol=1.1)
    assert (found["boxes"][:, 0, 2].max() > 64) and (found["boxes"][..., 3] <= 39.5).all()
