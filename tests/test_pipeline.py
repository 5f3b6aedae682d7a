import dataclasses
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from made_data import (
    encoded,
    figure,
    picture,
    write_coco,
    write_crowdpose,
    write_flic,
    write_lsp,
    write_lspet,
    write_mpii,
    write_mpii_json,
)

from rmpe_jax.config import DataConfig
from rmpe_jax.data import pipeline
from rmpe_jax.data.files import DataError, PictureFile
from rmpe_jax.data.people import Person
from rmpe_jax.data.pipeline import (
    Canvases,
    Loader,
    cut_canvas,
    device_batches,
    empty_canvases,
    evaluation_batches,
    pose_batch,
    training_batches,
    training_people,
    training_positions,
)
from rmpe_jax.skeleton import COCO_17, COCO_LSP_19, LSP_14
from rmpe_jax.train.parallel import AXIS

CONFIG = DataConfig(canvas=64, extension=0.3, canvas_margin=1.5, min_joints=5)
ONE_CANVAS = 3 * 64**2 / 1e9  # gigabytes


def person(box, points=None, path="p.jpg"):
    points = figure(LSP_14.joints, box) if points is None else np.array(points)
    area = (box[2] - box[0]) * (box[3] - box[1])
    labelled = np.ones(len(points), bool)
    one = PictureFile(Path(path))
    return Person(one, 1, np.array(box, np.float32), points.astype(np.float32), labelled, float(area))


def people_of_files(folder, count, each=1):
    """People of ``count`` pictures, ``each`` in every one of them."""
    people = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        path.write_bytes(encoded(picture(64, 64, seed=number)))
        people += [person((10 + 3 * row, 10, 40 + 3 * row, 50 + number % 9), path=path) for row in range(each)]
    return people


def quiet(line):
    pass


def assert_canvases(actual, expected):
    for field in dataclasses.fields(Canvases):
        np.testing.assert_array_equal(getattr(actual, field.name), getattr(expected, field.name))


def one_by_one(people):
    """What the loader should give: everybody cut out alone."""
    cut = [cut_canvas(one.picture.read(), one, CONFIG) for one in people]
    return Canvases(*(np.concatenate([getattr(c, f.name) for c in cut]) for f in dataclasses.fields(Canvases)))


@pytest.fixture
def decoded(monkeypatch):
    """The names of the pictures that are decoded."""
    names, read, lock = [], PictureFile.read, threading.Lock()

    def reading(one):
        with lock:
            names.append(one.path.stem)
        return read(one)

    monkeypatch.setattr(PictureFile, "read", reading)
    return names


# People for training


def test_training_people_come_from_every_set_that_is_named(tmp_path):
    write_lspet(tmp_path / "lspet")
    write_lsp(tmp_path / "lsp")
    write_mpii_json(tmp_path / "mpii", name="mpii_train.json")
    write_crowdpose(tmp_path / "crowdpose", split="train")
    write_flic(tmp_path / "flic")
    write_coco(tmp_path / "coco", split="train2017")
    folders = {name: str(tmp_path / name) for name in ("lspet", "lsp", "mpii", "crowdpose", "flic", "coco")}
    people = training_people(dataclasses.replace(CONFIG, **folders, synthetic=4), COCO_LSP_19)
    counts = {}
    for one in people:
        assert one.labelled.shape == (19,) and one.labelled.sum() >= 5
        name = Path(str(one.picture)).relative_to(tmp_path).parts[0] if "synth" not in str(one.picture) else "synthetic"
        counts[name] = counts.get(name, 0) + 1
    drawn = counts.pop("synthetic")
    assert counts == {"lspet": 38, "lsp": 4, "mpii": 3, "crowdpose": 3, "flic": 3, "coco": 6} and drawn >= 4


def test_cocos_people_are_repeated_as_the_same_objects(tmp_path):
    write_coco(tmp_path, split="val2017")
    config = dataclasses.replace(CONFIG, coco=str(tmp_path), coco_repeat=3, coco_split="val2017")
    people = training_people(config, COCO_17)
    assert len(people) == 18 and len({id(one) for one in people}) == 6
    assert people[0] is people[6] is people[12]


def test_people_with_too_few_joints_of_the_skeleton_are_left_out(tmp_path):
    write_flic(tmp_path)  # eleven joints, of which LSP has eight
    config = dataclasses.replace(CONFIG, flic=str(tmp_path))
    assert len(training_people(dataclasses.replace(config, min_joints=8), LSP_14)) == 3
    with pytest.raises(DataError, match="no training data"):
        training_people(dataclasses.replace(config, min_joints=9), LSP_14)


def test_no_training_data_says_what_to_set():
    with pytest.raises(DataError, match=r"set one of data\.lspet, data\.lsp, .*data\.coco to .* or data\.synthetic"):
        training_people(DataConfig(), LSP_14)


def test_training_data_that_cannot_be_read_is_named(tmp_path):
    write_mpii(tmp_path)
    with pytest.raises(DataError, match="hourglass"):
        training_people(dataclasses.replace(CONFIG, mpii=str(tmp_path)), LSP_14)


# Canvases


def test_a_bright_pixel_at_a_joint_is_found_at_its_canvas_point():
    joints = np.array([[30, 40], [60, 90], [45, 63]])
    for index, (x, y) in enumerate(joints):
        image = np.zeros((160, 120, 3), np.uint8)
        image[y, x] = 255
        cut = cut_canvas(image, person((20, 30, 70, 100), joints), dataclasses.replace(CONFIG, canvas=410))
        bright = np.argwhere(cut.canvas[0, ..., 0] == cut.canvas.max())[:, ::-1]
        # At three canvas pixels for one of the picture the pixel is a plateau: its middle is the joint.
        np.testing.assert_allclose(bright.mean(0), cut.points[0, index], atol=0.6)


def test_a_canvas_as_large_as_its_square_is_the_picture_itself():
    image = picture(200, 200)
    box = (60.0, 70.0, 124.0, 134.0)
    side = int(np.ceil(64 * 1.3 * 1.5))
    cut = cut_canvas(image, person(box), dataclasses.replace(CONFIG, canvas=side))
    start = np.round(np.array([92, 102]) - (side - 1) / 2).astype(int)
    np.testing.assert_array_equal(cut.canvas[0], image[start[1] : start[1] + side, start[0] : start[0] + side])
    np.testing.assert_allclose(cut.points[0], figure(LSP_14.joints, box) - start, atol=1e-4)
    np.testing.assert_allclose(cut.box[0], np.array(box) - np.tile(start, 2), atol=1e-4)
    assert cut.valid.tolist() == [True]


@pytest.mark.parametrize("canvas", [30, 39, 48, 64, 97])
def test_a_shrinking_cut_keeps_the_mean_of_the_picture(canvas):
    image = picture(300, 300)
    cut = cut_canvas(image, person((100, 100, 200, 200)), dataclasses.replace(CONFIG, canvas=canvas))
    assert cut.canvas.mean() == pytest.approx(image[52:247, 52:247].mean(), abs=0.5)


def test_a_shrinking_cut_averages_and_does_not_skip():
    image = np.zeros((400, 400, 3), np.uint8)
    image[::2] = 200  # rows of one pixel: sampling without averaging would keep them
    cut = cut_canvas(image, person((100, 100, 300, 300)), dataclasses.replace(CONFIG, canvas=64))
    assert cut.canvas[0].std() < 10 and cut.canvas.mean() == pytest.approx(100, abs=2)


def test_what_lies_outside_the_picture_is_black():
    image = np.full((100, 100, 3), 200, np.uint8)
    cut = cut_canvas(image, person((80, 80, 130, 130)), CONFIG)
    scale = 64 / 98
    edge = round((100 - (105 - 48.5)) * scale)
    assert (cut.canvas[0, : edge - 1, : edge - 1] == 200).all()
    assert (cut.canvas[0, edge + 1 :] == 0).all() and (cut.canvas[0, :, edge + 1 :] == 0).all()


@pytest.mark.parametrize("box", [(-500, -400, -300, -100), (500, 10, 600, 90), (10, 300, 60, 500)])
def test_someone_wholly_outside_the_picture_gets_a_black_canvas(box):
    cut = cut_canvas(picture(), person(box), CONFIG)
    assert (cut.canvas == 0).all() and np.isfinite(cut.points).all() and np.isfinite(cut.box).all()


@pytest.mark.parametrize("factor", [10, 1e6])
def test_a_huge_box_takes_no_huge_memory_and_keeps_its_points_right(factor):
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:24, 30:34] = 255
    box = np.array([40, 30, 40, 30]) + factor * 40 * np.array([-1, -1, 1, 1])
    cut = cut_canvas(image, person(box, [[31.5, 21.5]] * 14), dataclasses.replace(CONFIG, canvas=240))
    bright = np.argwhere(cut.canvas[0, ..., 0] > 200)[:, ::-1]
    np.testing.assert_allclose(bright.mean(0), cut.points[0, 0], atol=0.6)


def test_points_without_a_label_stay_zero_on_the_canvas():
    one = person((20, 30, 70, 100))
    labelled = np.arange(14) % 2 == 0
    cut = cut_canvas(picture(), dataclasses.replace(one, labelled=labelled), CONFIG)
    assert (cut.points[0, ~labelled] == 0).all() and (cut.points[0, labelled] != 0).all()
    np.testing.assert_array_equal(cut.labelled[0], labelled)


# The loader


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("memory", [0.0, 5 * ONE_CANVAS, 1.0])
def test_canvases_are_those_cut_one_by_one_whatever_the_workers_and_the_memory(tmp_path, workers, memory):
    people = people_of_files(tmp_path, 6, each=2)
    expected = one_by_one(people)
    order = np.random.default_rng(0).permutation(12)
    with Loader(people, CONFIG, workers=workers, memory=memory) as loader:
        assert len(loader) == 12
        for _ in range(2):  # read, then kept
            assert_canvases(loader.load(np.arange(12)), expected)
        shuffled = loader.load(order)
    np.testing.assert_array_equal(shuffled.canvas, expected.canvas[order])
    np.testing.assert_array_equal(shuffled.box, expected.box[order])


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_processes_give_what_threads_give(tmp_path, memory):
    people = people_of_files(tmp_path, 6, each=2)
    with Loader(people, CONFIG, workers=2, processes=True, memory=memory) as loader:
        assert_canvases(loader.load(np.arange(12)), one_by_one(people))


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_batches_come_in_the_order_asked_for(tmp_path, memory):
    people = people_of_files(tmp_path, 8, each=2)
    expected = one_by_one(people)
    orders = [np.random.default_rng(n).permutation(16)[:5] for n in range(20)]
    with Loader(people, CONFIG, workers=4, memory=memory) as loader:
        for order, canvases in zip(orders, loader.batches(iter(orders)), strict=True):
            np.testing.assert_array_equal(canvases.canvas, expected.canvas[order])
            np.testing.assert_array_equal(canvases.points, expected.points[order])


def test_a_picture_that_is_kept_is_decoded_once_for_everybody_in_it(tmp_path, decoded):
    people = people_of_files(tmp_path, 4, each=3)
    with Loader(people, CONFIG, memory=1.0) as loader:
        for _ in loader.batches(iter(np.random.default_rng(0).permutation(12).reshape(6, 2))):
            pass
        loader.load(np.arange(12))
    assert sorted(decoded) == ["0", "1", "2", "3"]


def test_what_is_not_kept_is_decoded_again_and_only_once_for_a_batch(tmp_path, decoded):
    people = people_of_files(tmp_path, 2, each=3)
    with Loader(people, CONFIG, memory=0.0) as loader:
        loader.load(np.arange(6))
        assert sorted(decoded) == ["0", "1"]
        loader.load(np.arange(6))
    assert sorted(decoded) == ["0", "0", "1", "1"]


def test_memory_keeps_whole_pictures_as_far_as_they_fit(tmp_path, decoded):
    people = people_of_files(tmp_path, 4, each=2)
    with Loader(people, CONFIG, memory=5.5 * ONE_CANVAS) as loader:
        loader.load(np.arange(8))
        loader.load(np.arange(8))
    assert sorted(decoded) == ["0", "1", "2", "2", "3", "3"]


def test_people_who_are_repeated_are_decoded_and_kept_once(tmp_path, decoded):
    write_coco(tmp_path, split="train2017", pictures=3)
    config = dataclasses.replace(CONFIG, coco=str(tmp_path), coco_repeat=4)
    people = training_people(config, COCO_17)
    with Loader(people, config, memory=6.5 * ONE_CANVAS) as loader:
        assert len(loader) == 24
        canvases = loader.load(np.arange(24))
    assert len(decoded) == 3
    for again in range(6, 24, 6):
        np.testing.assert_array_equal(canvases.canvas[again : again + 6], canvases.canvas[:6])


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_an_unreadable_picture_in_a_hundred_is_named_once_and_its_people_are_marked(tmp_path, memory):
    people = people_of_files(tmp_path, 100)
    people.append(person((5, 5, 30, 30), path=tmp_path / "40.jpg"))
    expected = one_by_one([*people[:40], people[0], *people[41:100], people[0]])
    (tmp_path / "40.jpg").write_bytes(b"nothing")
    lines = []
    with Loader(people, CONFIG, memory=memory, report=lines.append) as loader:
        first, canvases = (loader.load(np.arange(101)) for _ in range(2))
        assert_canvases(first, canvases)
        assert loader.failures == [line.removeprefix("left out: ") for line in lines]
    assert len(lines) == 1 and str(tmp_path / "40.jpg") in lines[0]
    assert np.flatnonzero(~canvases.valid).tolist() == [40, 100]
    assert not canvases.canvas[[40, 100]].any() and not canvases.labelled[[40, 100]].any()
    np.testing.assert_array_equal(canvases.canvas[canvases.valid], expected.canvas[canvases.valid])


def test_a_box_outside_its_picture_is_named_once_and_marked(tmp_path):
    people = people_of_files(tmp_path, 100)
    people.append(person((70, 5, 90, 30), path=tmp_path / "40.jpg"))
    lines = []
    with Loader(people, CONFIG, report=lines.append) as loader:
        canvases = loader.load(np.arange(101))
    assert len(lines) == 1 and "40.jpg: a box, [70.0, 5.0, 90.0, 30.0], lies outside the picture of 64 x 64" in lines[0]
    assert np.flatnonzero(~canvases.valid).tolist() == [100] and canvases.canvas[40].any()


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_more_unusable_pictures_than_one_in_a_hundred_stop_the_run(tmp_path, memory):
    people = people_of_files(tmp_path, 100)
    for number in (7, 8):
        (tmp_path / f"{number}.jpg").write_bytes(b"nothing")
    lines = []
    with Loader(people, CONFIG, memory=memory, report=lines.append) as loader:
        with pytest.raises(DataError, match=r"2 of 100 pictures cannot be used; the first: .*7\.jpg"):
            loader.load(np.arange(100))
    assert len(lines) == 2


def test_leaving_in_the_middle_stops_reading(tmp_path, monkeypatch, decoded):
    people, read = people_of_files(tmp_path, 80), PictureFile.read
    monkeypatch.setattr(PictureFile, "read", lambda one: time.sleep(0.005) or read(one))
    with pytest.raises(ZeroDivisionError):
        with Loader(people, CONFIG, workers=2) as loader:
            for _ in loader.batches(iter(np.arange(80).reshape(2, 40))):
                raise ZeroDivisionError
    assert 40 <= len(decoded) < 60
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_an_error_in_a_worker_reaches_whoever_waits(tmp_path, monkeypatch):
    people = people_of_files(tmp_path, 3)

    def failing(*rest):
        raise MemoryError("too large")

    monkeypatch.setattr(pipeline, "cut_canvas", failing)
    with pytest.raises(MemoryError), Loader(people, CONFIG) as loader:
        loader.load(np.arange(3))


def test_nobody_is_loaded_as_an_empty_batch():
    with Loader([], CONFIG) as loader:
        assert len(loader) == 0 and len(loader.load(np.zeros(0, int))) == 0


# Batches


def test_a_batch_depends_on_the_seed_and_the_step_only():
    first = [training_positions(50, 8, seed=3, step=step) for step in (0, 5, 6, 77)]
    again = [training_positions(50, 8, seed=3, step=step) for step in (77, 6, 5, 0)][::-1]
    np.testing.assert_array_equal(first, again)
    assert any((training_positions(50, 8, seed=4, step=0) != first[0]).tolist())


@pytest.mark.parametrize(("count", "batch"), [(48, 8), (50, 8), (8, 8), (5, 1)])
def test_an_epoch_shows_everybody_at_most_once_and_leaves_out_only_the_rest(count, batch):
    steps = count // batch
    orders = []
    for epoch in range(3):
        shown = [training_positions(count, batch, seed=0, step=epoch * steps + place) for place in range(steps)]
        order = np.concatenate(shown)
        assert len(np.unique(order)) == len(order) == steps * batch and order.min() >= 0 and order.max() < count
        orders.append(order.tolist())
    assert steps == 1 or len({tuple(order) for order in orders}) == 3


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(DataError, match="batch of 9 people is larger than the 8 people"):
        training_positions(8, 9, seed=0, step=0)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    return people_of_files(tmp_path_factory.mktemp("crowd"), 11, each=2)


def batches(people, batch, *, memory=1.0, workers=2, **options):
    with Loader(people, CONFIG, workers=workers, memory=memory) as loader:
        found = list(training_batches(loader, batch, seed=5, **options))
    return [{f.name: np.asarray(getattr(part, f.name)) for f in dataclasses.fields(part)} for part in found]


def assert_batches(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(("memory", "workers"), [(1.0, 1), (0.0, 4), (7 * ONE_CANVAS, 3)])
def test_training_batches_hold_the_people_of_the_steps_positions(crowd, memory, workers):
    expected = one_by_one(crowd)
    for step, part in enumerate(batches(crowd, 4, memory=memory, workers=workers, first=0, last=12)):
        order = training_positions(22, 4, seed=5, step=step)
        for name in ("canvas", "points", "labelled", "box"):
            np.testing.assert_array_equal(part[name], getattr(expected, name)[order])
        assert part["valid"].all() and part["index"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("first", [1, 5, 7])
def test_a_resumed_run_sees_what_an_unbroken_one_sees(crowd, first):
    whole = batches(crowd, 4, first=0, last=12)
    assert_batches(batches(crowd, 4, first=first, last=12, memory=0.0), whole[first:])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_shares_of_all_processes_make_the_whole_batch(crowd, processes):
    whole = batches(crowd, 8, first=0, last=4)
    shares = [batches(crowd, 8, first=0, last=4, process=n, processes=processes) for n in range(processes)]
    joined = [
        {name: np.concatenate([share[name] for share in step]) for name in step[0]}
        for step in zip(*shares, strict=True)
    ]
    assert_batches(joined, whole)


def test_an_uneven_share_is_refused(crowd):
    with pytest.raises(DataError, match="a batch of 8 people cannot be split evenly over 3 processes"):
        batches(crowd, 8, first=0, last=1, processes=3)


def test_unreadable_people_are_not_valid_in_their_batch(tmp_path):
    people = people_of_files(tmp_path, 100)
    (tmp_path / "40.jpg").write_bytes(b"nothing")
    with Loader(people, CONFIG, report=quiet) as loader:
        for step, part in enumerate(training_batches(loader, 20, seed=5, first=0, last=5)):
            order = training_positions(100, 20, seed=5, step=step)
            np.testing.assert_array_equal(part.valid, order != 40)


@pytest.mark.parametrize(("count", "batch"), [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_evaluation_shows_everybody_once_in_batches_of_one_shape(crowd, count, batch):
    canvases = one_by_one(crowd[:count])
    seen = []
    for part in evaluation_batches(canvases, batch):
        assert part.canvas.shape == (batch, 64, 64, 3) and part.points.shape == (batch, 14, 2)
        assert np.isfinite(part.points).all()
        seen.append(np.asarray(part.box)[np.asarray(part.valid)])
    np.testing.assert_array_equal(np.concatenate(seen), canvases.box)


def test_a_batch_numbers_its_people_and_pads_with_invalid_copies(crowd):
    canvases = one_by_one(crowd[:2])
    part = pose_batch(canvases, size=5, start=10)
    assert part.index.tolist() == [10, 11, 12, 13, 14]
    assert part.valid.tolist() == [True, True, False, False, False]
    np.testing.assert_array_equal(part.box, canvases.box[[0, 1, 0, 1, 0]])


def test_a_batch_keeps_who_is_not_valid():
    canvases = empty_canvases(3, 64, 14)
    canvases.valid[1] = True
    assert pose_batch(canvases).valid.tolist() == [False, True, False]
    assert pose_batch(canvases, size=4).valid.tolist() == [False, True, False, False]


# Batches gathered on the devices


def on_devices(people, batch, *, memory=0.0, report=quiet, **options):
    with Loader(people, CONFIG, memory=memory, report=report) as loader:
        found = list(device_batches(loader, batch, seed=5, **options))
    return [{f.name: np.asarray(getattr(part, f.name)) for f in dataclasses.fields(part)} for part in found]


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize(("batch", "memory"), [(4, 0.0), (4, 1.0), (5, 0.0)])
def test_device_batches_are_those_of_the_host_over_two_epochs(crowd, batch, memory, devices):
    people = [*crowd, *crowd[3:9]]
    steps = 2 * (28 // batch)
    expected = batches(people, batch, first=0, last=steps)
    found = on_devices(people, batch, memory=memory, first=0, last=steps, devices=jax.devices()[:devices])
    assert_batches(found, expected)
    assert all(found[0][name].dtype == array.dtype for name, array in expected[0].items())


@pytest.mark.parametrize("first", [1, 9])
def test_a_resumed_run_sees_the_same_batches_on_the_devices(crowd, first):
    assert_batches(on_devices(crowd, 4, first=first, last=12), batches(crowd, 4, first=first, last=12))


@pytest.mark.parametrize("process", [0, 1])
def test_device_batches_are_the_share_of_the_process(crowd, process):
    share = {"first": 0, "last": 4, "process": process, "processes": 2}
    found = on_devices(crowd, 8, **share)
    assert_batches(found, batches(crowd, 8, **share))
    assert found[0]["index"].tolist() == [4 * process + place for place in range(4)]


def test_an_uneven_share_is_refused_before_anybody_is_read(crowd, decoded):
    with pytest.raises(DataError, match="a batch of 8 people cannot be split evenly over 3 processes"):
        on_devices(crowd, 8, first=0, last=1, processes=3)
    assert not decoded


def test_unreadable_people_are_not_valid_on_the_devices_either(tmp_path):
    people = people_of_files(tmp_path, 100)
    (tmp_path / "40.jpg").write_bytes(b"nothing")
    lines = []
    found = on_devices(people, 20, first=0, last=10, report=lines.append)
    assert len(lines) == 1 and "40.jpg" in lines[0]
    with Loader(people, CONFIG, report=quiet) as loader:
        expected = list(training_batches(loader, 20, seed=5, first=0, last=10))
    assert_batches(found, [{name: np.asarray(array) for name, array in vars(part).items()} for part in expected])
    assert sum((~part["valid"]).sum() for part in found) == 2


def test_too_many_unreadable_pictures_stop_a_run_before_its_first_step(tmp_path):
    people = people_of_files(tmp_path, 100)
    for number in (7, 8):
        (tmp_path / f"{number}.jpg").write_bytes(b"nothing")
    with Loader(people, CONFIG, report=quiet) as loader, pytest.raises(DataError, match="2 of 100 pictures cannot"):
        device_batches(loader, 4, seed=5, first=0, last=1)


@pytest.mark.parametrize("piece", [1, 5, 22])
def test_everybody_is_read_once_in_pieces_that_progress_sees(crowd, monkeypatch, decoded, piece):
    monkeypatch.setattr(pipeline, "_PIECE", piece)
    seen = []

    def progress(starts):
        for start in starts:
            seen.append(start)
            yield start

    found = on_devices([*crowd, *crowd], 4, memory=1.0, first=0, last=2, progress=progress)
    assert seen == list(range(0, 22, piece))
    assert sorted(decoded) == sorted(str(number) for number in range(11))
    assert_batches(found, batches([*crowd, *crowd], 4, first=0, last=2))


@pytest.mark.parametrize(("batch", "split"), [(8, PartitionSpec(AXIS)), (6, PartitionSpec())])
def test_device_batches_lie_where_a_step_wants_them(crowd, batch, split):
    everywhere = Mesh(np.array(jax.devices()), (AXIS,))
    with Loader(crowd, CONFIG) as loader:
        part = next(device_batches(loader, batch, seed=5, first=0, last=1))
    wanted = NamedSharding(everywhere, split)
    assert all(leaf.sharding.is_equivalent_to(wanted, leaf.ndim) for leaf in jax.tree.leaves(part))
    # Placing them once more, as a step does, moves nothing.
    again = jax.device_put(part, wanted)
    for leaf, other in zip(jax.tree.leaves(part), jax.tree.leaves(again), strict=True):
        places = [[shard.data.unsafe_buffer_pointer() for shard in one.addressable_shards] for one in (leaf, other)]
        assert places[0] == places[1]


def test_people_who_do_not_fit_on_a_device_are_refused_before_they_are_read(crowd, monkeypatch, decoded):
    stats = {"bytes_limit": 500_000, "bytes_in_use": 240_000}
    monkeypatch.setattr(type(jax.devices()[0]), "memory_stats", lambda device: stats)
    with pytest.raises(DataError, match=r"the canvases of 22 people take 0\.000273 GB, but .*0\.00026 GB free"):
        on_devices([*crowd, *crowd], 4, first=0, last=1)
    assert not decoded
    stats["bytes_in_use"] = 0
    assert len(on_devices([*crowd, *crowd], 4, first=0, last=1)) == 1
