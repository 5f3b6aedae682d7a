"""Scenes: which parts of pictures a person detector is trained on, and how they are cut out."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from made_data import encoded, picture, write_coco, write_lsp

from rmpe_jax.config import DataConfig
from rmpe_jax.data import scenes as scenes_module
from rmpe_jax.data.files import DataError, PictureFile
from rmpe_jax.data.people import label
from rmpe_jax.data.pipeline import Loader, device_batches, training_batches, training_people, training_positions
from rmpe_jax.data.scenes import Scene, SceneCutting, scenes_in, scenes_without_people, training_scenes
from rmpe_jax.skeleton import LSP_14

CONFIG = DataConfig(canvas=64)
CUTTING = SceneCutting(CONFIG)
CAPACITY = 24


def labelled(path, boxes, *, crowd=(), unlabelled=()):
    """A record of people with these boxes, some of them crowds, some without any joint."""
    people = []
    for number, box in enumerate(boxes):
        visibility = np.full(14, 0 if number in unlabelled else 2)
        points = np.tile(np.array(box[:2], float) + 1, (14, 1))
        people.append({"boxes": box, "points": points, "visibility": visibility, "crowd": number in crowd})
    return label(PictureFile(Path(path)), 1, people, 14)


def scene(boxes, *, crowd=None, complete=True, around=None, path="p.png"):
    boxes = np.array(boxes, float).reshape(-1, 4)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd)
    return Scene(PictureFile(Path(path)), boxes, crowd, complete, around)


# Which scenes there are


def test_a_complete_picture_is_a_scene_and_so_are_the_surroundings_of_everybody_in_it():
    found = scenes_in([labelled("a", [[0, 0, 20, 40], [30, 5, 50, 45]], unlabelled=[1])], complete=True)
    # Whoever has no labelled joint is a person all the same.
    assert [one.around for one in found] == [None, 0, 1]
    for one in found:
        assert str(one.picture) == "a" and one.complete and one.crowd.tolist() == [False, False]
        np.testing.assert_array_equal(one.boxes, [[0, 0, 20, 40], [30, 5, 50, 45]])


def test_an_incomplete_picture_is_one_scene():
    (found,) = scenes_in([labelled("a", [[0, 0, 20, 40], [30, 5, 50, 45]])], complete=False)
    assert found.around is None and not found.complete


def test_a_picture_of_nobody_is_a_scene_only_where_everybody_is_labelled():
    nobody = labelled("a", [])
    assert scenes_in([nobody], complete=False) == []
    (found,) = scenes_in([nobody], complete=True)
    assert found.boxes.shape == (0, 4) and found.crowd.shape == (0,) and found.complete


def test_crowds_and_boxes_of_hardly_a_pixel_are_crowds_and_have_no_surroundings():
    record = labelled("a", [[0, 0, 20, 40], [30, 5, 50, 45], [60, 5, 61.5, 45]], crowd=[0])
    found = scenes_in([record], complete=True)
    assert [one.around for one in found] == [None, 1]
    assert found[0].crowd.tolist() == [True, False, True]
    only = labelled("a", [[0, 0, 20, 40]], crowd=[0])
    assert scenes_in([only], complete=False) == []
    assert [one.around for one in scenes_in([only], complete=True)] == [None]


def test_pictures_without_people_are_those_of_the_folder_in_the_order_of_their_names(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.txt", "d.webp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "e.jpg").write_bytes(b"")
    found = scenes_without_people(tmp_path)
    assert [one.picture.name for one in found] == ["a.PNG", "b.jpg", "d.webp"]
    assert all(one.complete and one.boxes.shape == (0, 4) and one.around is None for one in found)


def test_a_folder_that_is_not_there_or_has_no_pictures_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.negatives: .*gone: no such folder"):
        scenes_without_people(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=r"data\.negatives: .*: has no pictures \(\.jpg"):
        scenes_without_people(str(tmp_path))


def test_training_scenes_come_from_every_set_and_repeated_ones_are_the_same_objects(tmp_path):
    write_coco(tmp_path / "coco", split="train2017", pictures=2)
    write_lsp(tmp_path / "lsp")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "n.png").write_bytes(encoded(picture(), "PNG"))
    folders = {name: str(tmp_path / name) for name in ("coco", "lsp")}
    config = dataclasses.replace(CONFIG, **folders, negatives=str(tmp_path / "none"), synthetic=2)
    once = training_scenes(config)
    counts = {}
    for one in once:
        text = str(one.picture)
        name = "synthetic" if "synthetic" in text else Path(text).relative_to(tmp_path).parts[0]
        counts.setdefault(name, []).append((one.complete, one.around is None, len(one.boxes)))
    # Two pictures of two people each, everybody labelled; four pictures of LSP's with one person.
    assert counts["coco"] == [(True, True, 2), (True, False, 2), (True, False, 2)] * 2
    assert counts["lsp"] == [(False, True, 1)] * 4 and counts["none"] == [(True, True, 0)]
    assert all(complete for complete, *_ in counts["synthetic"]) and len(counts["synthetic"]) >= 4

    many = training_scenes(dataclasses.replace(config, coco_repeat=3, negatives_repeat=2))
    assert len(many) == len(once) + 2 * 6 + 1
    assert len({id(one) for one in many}) == len(once)


def test_no_training_data_says_what_to_set_even_where_there_are_pictures_of_nobody(tmp_path):
    (tmp_path / "n.png").write_bytes(encoded(picture(), "PNG"))
    for config in (CONFIG, dataclasses.replace(CONFIG, negatives=str(tmp_path))):
        with pytest.raises(DataError, match=r"no training data: set one of data\.lspet, .* or data\.synthetic"):
            training_scenes(config)


def test_pictures_without_people_train_no_estimator_of_poses(tmp_path):
    with pytest.raises(DataError, match=r"data\.negatives: pictures without people train a person detector only"):
        training_people(dataclasses.replace(CONFIG, synthetic=2, negatives=str(tmp_path)), LSP_14)


# Canvases


def cut(image, one, **changes):
    """The canvas of one scene, as a record of its fields without their first axis."""
    canvases, said = SceneCutting(dataclasses.replace(CONFIG, **changes)).cut(image, one)
    assert said is None and len(canvases) == 1 and canvases.valid[0]
    return SimpleNamespace(**{name: array[0] for name, array in vars(canvases).items()})


@pytest.mark.parametrize(
    ("shape", "extent"),
    [
        ((100, 100), [-0.5, -0.5, 63.5, 63.5]),
        # The square begins 25 pixels above the picture: 25 and 75 hundredths of 64, edges on edges.
        ((50, 100), [-0.5, 15.5, 63.5, 47.5]),
        ((128, 32), [23.5, -0.5, 39.5, 63.5]),
        ((16, 32), [-0.5, 15.5, 63.5, 47.5]),
    ],
    ids=str,
)
def test_a_whole_picture_lies_in_the_middle_of_its_canvas(shape, extent):
    found = cut(picture(*shape), scene([]))
    np.testing.assert_allclose(found.extent, extent, atol=1e-4)
    assert found.complete and not found.person.any() and not found.ignored.any() and not found.boxes.any()


def bright_box(canvas):
    """The box around what is brighter than halfway, edges at the edges of pixels."""
    rows, columns = np.nonzero(canvas[..., 0] > 130)
    return np.array([columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5])


PLACES = [
    ((100, 80), (10, 20, 60, 90), None),
    ((50, 200), (120, 5, 190, 45), None),
    ((40, 30), (3, 4, 20, 30), None),
    ((600, 400), (100, 200, 300, 500), None),
    ((300, 400), (100, 120, 140, 200), 0),
    ((300, 400), (12, 10, 52, 60), 0),
    ((100, 90), (60, 70, 85, 95), 0),
]


@pytest.mark.parametrize(("shape", "box", "around"), PLACES, ids=str)
def test_a_bright_person_is_found_where_the_canvas_s_box_is(shape, box, around):
    image = np.full((*shape, 3), 40, np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 220
    edges = np.array(box) - 0.5
    found = cut(image, scene([edges], around=around))
    assert found.person.tolist() == [True] + [False] * (CAPACITY - 1)
    # The edge of a pixel of the picture lies within half a pixel of the canvas, or of its own where those are larger.
    side = max(shape) if around is None else max(3 * (edges[2:] - edges[:2]).max(), 64)
    np.testing.assert_allclose(bright_box(found.canvas), found.boxes[0], atol=0.51 + 0.5 * max(64 / side - 1, 0))


def test_surroundings_are_three_times_the_person_and_the_person_is_in_their_middle():
    found = cut(picture(600, 500), scene([[100, 200, 160, 300], [400, 20, 450, 80]], around=0))
    box = found.boxes[0]
    np.testing.assert_allclose((box[2:] - box[:2]) * 300 / 64, [60, 100], rtol=1e-3)
    np.testing.assert_allclose((box[:2] + box[2:]) / 2, 31.5, atol=0.2)
    # The picture begins 130 - 150 = -20 pixels into the square, and does not end in it.
    np.testing.assert_allclose(found.extent, [20 * 64 / 300 - 0.5, -0.5, 63.5, 63.5], atol=0.2)
    # Somebody else may lie wholly beyond the canvas.
    assert found.person[:3].tolist() == [True, True, False] and found.boxes[1, 0] > 63.5


@pytest.mark.parametrize(
    ("shape", "box", "side"),
    [
        ((200, 200), (50, 50, 60, 65), 64),  # at least 64 pixels
        ((50, 40), (10, 10, 20, 22), 50),  # at most the picture
        ((200, 200), (50, 50, 100, 140), 200),
    ],
    ids=str,
)
def test_surroundings_are_no_smaller_than_a_canvas_of_64_and_no_larger_than_the_picture(shape, box, side):
    found = cut(picture(*shape), scene([box], around=0))
    width = found.boxes[0, 2] - found.boxes[0, 0]
    np.testing.assert_allclose(width, (box[2] - box[0]) * 64 / side, rtol=1e-3)


def test_somebody_large_has_the_whole_picture_around():
    one = scene([[10, 10, 60, 90]], around=0)
    whole = cut(picture(100, 80), dataclasses.replace(one, around=None))
    for name, array in vars(cut(picture(100, 80), one)).items():
        np.testing.assert_array_equal(array, getattr(whole, name))


def test_beyond_the_picture_its_outermost_pixels_go_on():
    image = picture(32, 64)  # as wide as the canvas: each pixel is itself
    found = cut(image, scene([]))
    np.testing.assert_array_equal(found.canvas[16:48], image)
    np.testing.assert_array_equal(found.canvas[:16], np.broadcast_to(image[:1], (16, 64, 3)))
    np.testing.assert_array_equal(found.canvas[48:], np.broadcast_to(image[-1:], (16, 64, 3)))
    # Nothing black is mixed in, where a shrunk picture ends between two pixels of the canvas.
    assert (cut(np.full((97, 211, 3), 200, np.uint8), scene([])).canvas == 200).all()
    # In a corner both ways.
    found = cut(picture(200, 200), scene([[0, 0, 20, 20]], around=0))
    x, y = np.ceil(found.extent[:2]).astype(int)
    assert x > 10 and y > 10
    np.testing.assert_array_equal(found.canvas[:y, :x], np.broadcast_to(found.canvas[y, x], (y, x, 3)))


def test_of_more_people_than_there_is_room_for_the_largest_stay_and_nothing_is_said_of_others():
    heights = np.random.default_rng(0).permutation(30) + 5
    boxes = [[3 * n, 2, 3 * n + 3, 2 + height] for n, height in enumerate(heights)]
    crowd = heights == 30
    found = cut(picture(100, 100), scene(boxes, crowd=crowd))
    order = np.argsort(-heights)[:CAPACITY]
    # A hundred pixels of the picture are 64 of the canvas.
    np.testing.assert_allclose((found.boxes[:, 3] - found.boxes[:, 1]) / 0.64, heights[order], rtol=1e-4)
    np.testing.assert_array_equal(found.person, ~crowd[order])
    np.testing.assert_array_equal(found.ignored, crowd[order])
    assert not found.complete
    assert cut(picture(100, 100), scene(boxes[:CAPACITY])).complete
    assert not cut(picture(100, 100), scene(boxes[:2], complete=False)).complete


def test_a_crowd_is_ignored_and_no_person():
    found = cut(picture(64, 64), scene([[1, 1, 20, 30], [10, 10, 60, 60]], crowd=[False, True]))
    # The larger one comes first.
    assert found.person[:3].tolist() == [False, True, False] and found.ignored[:3].tolist() == [True, False, False]
    np.testing.assert_allclose(found.boxes[:2], [[10, 10, 60, 60], [1, 1, 20, 30]], atol=1e-4)


def test_a_box_outside_its_picture_is_named_and_a_crowd_s_is_not():
    canvases, said = CUTTING.cut(picture(50, 50), scene([[1, 1, 20, 30], [70, 5, 90, 30]]))
    assert said == "a box, [70.0, 5.0, 90.0, 30.0], lies outside the picture of 50 x 50 pixels"
    assert not canvases.valid.any() and not canvases.canvas.any() and not canvases.person.any()
    found = cut(picture(50, 50), scene([[1, 1, 20, 30], [70, 5, 90, 30]], crowd=[False, True]))
    assert found.valid


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 5)], ids=str)
def test_the_smallest_and_longest_pictures_have_canvases(shape):
    found = cut(np.full((*shape, 3), 9, np.uint8), scene([[-0.5, -0.5, 0.5, 0.5]], around=0))
    assert np.isfinite(found.boxes).all() and (found.extent[2:] > found.extent[:2]).all()


# Batches


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Scenes of eleven pictures: of one person each, and of their surroundings; one is repeated."""
    folder = tmp_path_factory.mktemp("gallery")
    found = []
    for number in range(11):
        (folder / f"{number}.png").write_bytes(encoded(picture(70, 90, seed=number), "PNG"))
        found += scenes_in([labelled(folder / f"{number}.png", [[10, 10, 30 + number, 40]])], complete=number % 2 == 0)
    return [*found, found[0], found[0], found[3]]


def as_arrays(batch):
    return {field.name: np.asarray(getattr(batch, field.name)) for field in dataclasses.fields(batch)}


def batches(scenes, batch, *, memory=1.0, on_device=False, report=pytest.fail, **options):
    make = device_batches if on_device else training_batches
    with Loader(scenes, CONFIG, cutting=CUTTING, memory=memory, report=report) as loader:
        return [as_arrays(part) for part in make(loader, batch, seed=5, **options)]


def assert_batches(actual, expected):
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].dtype == other[name].dtype


def test_every_example_is_made_of_four_scenes_of_the_step_s_positions(gallery):
    alone = [CUTTING.cut(one.picture.read(), one)[0] for one in gallery]
    assert len(gallery) == 20
    for step, part in enumerate(batches(gallery, 2, first=0, last=5)):
        order = training_positions(20, 8, seed=5, step=step).reshape(2, 4)
        assert part["index"].tolist() == [0, 1] and part["canvas"].shape == (2, 4, 64, 64, 3)
        for example, scene_, position in [(b, q, order[b, q]) for b in range(2) for q in range(4)]:
            for name in ("canvas", "extent", "boxes", "person", "ignored", "complete", "valid"):
                np.testing.assert_array_equal(part[name][example, scene_], getattr(alone[position], name)[0])


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_batches_on_the_devices_are_those_of_the_host(gallery, memory):
    expected = batches(gallery, 4, first=0, last=3)
    assert_batches(batches(gallery, 4, memory=memory, on_device=True, first=0, last=3), expected)
    one = {"devices": jax.devices()[:1], "on_device": True}
    assert_batches(batches(gallery, 3, first=1, last=3, **one), batches(gallery, 3, first=1, last=3))


@pytest.mark.parametrize("on_device", [False, True])
def test_the_shares_of_all_processes_make_the_whole_batch(gallery, on_device):
    whole = batches(gallery, 4, first=0, last=3)
    split = {"on_device": on_device, "first": 0, "last": 3, "processes": 2}
    shares = [batches(gallery, 4, process=number, **split) for number in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*shares, strict=True)]
    assert_batches(joined, whole)


def test_a_batch_of_more_scenes_than_there_are_is_refused(gallery):
    with pytest.raises(DataError, match="a batch of 24 .* is larger than the 20 "):
        batches(gallery, 6, first=0, last=1)


def test_an_unreadable_picture_is_named_once_and_its_scenes_stay_as_not_valid(tmp_path):
    records = []
    for number in range(100):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture(20, 20, seed=number), "PNG"))
        records.append(labelled(tmp_path / f"{number}.png", [[2, 2, 10, 15]]))
    (tmp_path / "40.png").write_bytes(b"nothing")
    scenes, lines = scenes_in(records, complete=True), []
    broken = [position for position, one in enumerate(scenes) if one.picture.name == "40.png"]
    assert len(broken) == 2
    for step, part in enumerate(batches(scenes, 50, first=0, last=1, report=lines.append)):
        order = training_positions(200, 200, seed=5, step=step).reshape(50, 4)
        np.testing.assert_array_equal(part["valid"], ~np.isin(order, broken))
        for name in ("canvas", "extent", "boxes", "person", "ignored", "complete"):
            assert not part[name][~part["valid"]].any()
    assert len(lines) == 1 and "40.png" in lines[0]


def test_the_room_for_people_is_what_the_records_have():
    assert CUTTING.empty(3).boxes.shape == (3, scenes_module._CAPACITY, 4) and scenes_module._CAPACITY == CAPACITY
