"""COCO's box AP and recall by height, against pycocotools and by hand."""

import contextlib
import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rmpe_jax.evaluate.protocols import coco_summary
from rmpe_jax.metrics.box_ap import (
    BOX_AP_NAMES,
    MOST,
    RECALL_NAMES,
    box_ap,
    box_numbers,
    box_recalls,
    evaluate_boxes,
    match_boxes,
    pack_boxes,
)

PICTURES, PEOPLE, BOXES = 6, 12, 105
numbers_of = jax.jit(box_ap)
matched = jax.jit(match_boxes, static_argnames=("thresholds", "by", "most"))
counted = jax.jit(box_numbers)
recalled = jax.jit(box_recalls)


def person(picture=1, box=(100.0, 100.0, 40.0, 100.0), *, crowd=0, area=None):
    """A labelled person; the box is x, y, width, height."""
    area = 0.5 * box[2] * box[3] if area is None else area
    return {"image_id": picture, "category_id": 1, "bbox": list(map(float, box)), "area": area, "iscrowd": crowd}


def found_box(picture=1, box=(100.0, 100.0, 40.0, 100.0), *, score=0.5):
    return {"image_id": picture, "category_id": 1, "bbox": list(map(float, box)), "score": score}


def evaluation_of(annotations, results, *, ranges=None):
    """The evaluation by COCO's own code, on dictionaries of its own."""
    truth = COCO()
    people = [dict(annotation) | {"id": number} for number, annotation in enumerate(annotations, 1)]
    images = [{"id": picture} for picture in range(1, PICTURES + 1)]
    truth.dataset = {"info": {}, "images": images, "annotations": people, "categories": [{"id": 1}]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), "bbox")
        if ranges is not None:
            evaluation.params.areaRng = ranges
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def recalls_by_pycocotools(annotations, results):
    """Recall at 0.5 of the heights: pycocotools takes them for areas."""
    tall = [annotation | {"area": annotation["bbox"][3]} for annotation in annotations]
    below, above = np.nextafter(48.0, 0), np.nextafter(96.0, 1e9)
    ranges = [[0, 1e10], [0, below], [48.0, 96.0], [above, 1e10]]
    # Thresholds, categories, ranges, most boxes of a picture.
    return evaluation_of(tall, results, ranges=ranges).eval["recall"][0, 0, :, -1]


def packed(annotations, results):
    """Records of one shape, so that one compilation serves all the small scenes; for more boxes than count."""
    return pack_boxes(annotations, results, range(1, PICTURES + 1), people=PEOPLE, boxes=BOXES)


def evaluated(annotations, results):
    with jax.enable_x64(True):
        return np.asarray(numbers_of(*packed(annotations, results)))


def recalls(annotations, results):
    with jax.enable_x64(True):
        return np.asarray(recalled(matched(*packed(annotations, results), thresholds=(0.5,), by="height")))


def assert_equal_to_pycocotools(annotations, results):
    found = evaluated(annotations, results)
    expected = evaluation_of(annotations, results)
    np.testing.assert_allclose(found, expected.stats[:6], rtol=0, atol=1e-12)
    shares = recalls(annotations, results)
    np.testing.assert_allclose(shares, recalls_by_pycocotools(annotations, results), rtol=0, atol=1e-12)
    return dict(zip(BOX_AP_NAMES, found.tolist(), strict=True)) | dict(zip(RECALL_NAMES, shares.tolist(), strict=True))


def shaken(annotations, rng, *, most=12):
    """Found boxes near labelled ones, near duplicates and false alarms, with scores of which many are equal."""
    results = []
    for picture in range(1, PICTURES + 1):
        people = [annotation for annotation in annotations if annotation["image_id"] == picture]
        for _ in range(int(rng.integers(most + 1)) if people else 2):
            source = np.array((people or annotations)[rng.integers(len(people or annotations))]["bbox"])
            error = 0.3 * rng.random() ** 2
            corner = source[:2] + error * source[2:] * rng.normal(size=2)
            box = np.concatenate([corner, source[2:] * np.exp(error * rng.normal(size=2))])
            score = float(np.round(np.clip(1 - 2 * error + rng.normal(scale=0.2), 0, 1), 1))
            results.append(found_box(picture, box.tolist(), score=score))
    return results


def scene(seed, *, distinct=False):
    """People of every size, some of them crowds, on all pictures but the last."""
    rng = np.random.default_rng(seed)
    annotations = []
    for picture in range(1, PICTURES):
        for _ in range(rng.integers(1, 7)):
            box = [*rng.uniform(0, 300, 2), *np.exp(rng.uniform(np.log([8, 16]), np.log([120, 250])))]
            annotations.append(person(picture, box, crowd=int(rng.random() < 0.2)))
    results = shaken(annotations, rng)
    if distinct:
        results = [r | {"score": s} for r, s in zip(results, rng.permutation(len(results)) / 1000.0, strict=True)]
    return annotations, results


@pytest.mark.parametrize("seed", range(6))
def test_scenes_with_everything_get_the_numbers_of_pycocotools(seed):
    assert 0 < assert_equal_to_pycocotools(*scene(seed))["ap50"] < 1


OFFSETS = st.sampled_from([0.0, 1.0, 4.0, 16.0, 60.0])
SIDES = st.sampled_from([16.0, 32.0, 47.0, 48.0, 96.0, 97.0, 130.0])
SPOTS = st.integers(1, PICTURES), st.tuples(OFFSETS, OFFSETS, SIDES, SIDES)
AREAS = st.sampled_from([None, 32.0**2, 96.0**2, 0.0])
MADE_PEOPLE = st.lists(st.builds(person, *SPOTS, crowd=st.sampled_from([0, 0, 1]), area=AREAS), max_size=PEOPLE)
MADE_BOXES = st.builds(found_box, *SPOTS, score=st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@given(MADE_PEOPLE, st.lists(MADE_BOXES, min_size=1, max_size=40))
def test_any_scene_gets_the_numbers_of_pycocotools(annotations, results):
    assert_equal_to_pycocotools(annotations, results)


def test_the_protocol_and_these_tests_ask_pycocotools_alike():
    annotations, results = scene(0)
    numbered = [annotation | {"id": number} for number, annotation in enumerate(annotations, 1)]
    found = coco_summary(numbered, results, list(range(1, PICTURES + 1)), kind="bbox")
    assert tuple(found) == BOX_AP_NAMES
    assert list(found.values()) == evaluation_of(annotations, results).stats[:6].tolist()


def test_boxes_near_real_people_get_the_numbers_of_pycocotools(real_data):
    content = json.loads((real_data / "coco" / "annotations" / "person_keypoints_train2017.json").read_text())
    pictures, rng = [image["id"] for image in content["images"]], np.random.default_rng(0)
    results = []
    for annotation in content["annotations"]:
        box = np.array(annotation["bbox"]) + rng.normal(scale=0.1, size=4) * np.tile(annotation["bbox"][2:], 2)
        results.append(found_box(annotation["image_id"], box.clip(0.1).tolist(), score=rng.random()))
    expected = coco_summary(content["annotations"], results, pictures, kind="bbox")
    found = evaluate_boxes(content["annotations"], results, pictures)
    assert tuple(found) == BOX_AP_NAMES and 0.1 < found["ap"] < 0.9
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=1e-12)


# By hand


def test_three_boxes_for_two_people_by_hand():
    people = [person(1), person(2, (0.0, 0.0, 20.0, 40.0))]
    stray = found_box(1, (300.0, 300.0, 40.0, 100.0), score=0.8)
    # The second overlaps by 40 x 100 of 40 x 125: 0.8, which seven of the ten thresholds reach.
    results = [found_box(1, (100.0, 100.0, 40.0, 125.0), score=0.9), stray]
    results.append(found_box(2, (0.0, 0.0, 20.0, 40.0), score=0.7))
    # Recall 0.5 (51 of 101 levels) at precision 1, the rest at 2/3; above 0.8 the only hit has precision 1/3.
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101 / 3
    # Areas are half the boxes': 400 is small, 2,000 medium. Unmatched boxes of other sizes do not count by size.
    medium, small = 7 / 10, 1.0
    by_hand = [(7 * both + 3 * one) / 10, both, both, small, medium, -1]
    np.testing.assert_allclose(evaluated(people, results), by_hand, rtol=0, atol=1e-12)
    assert recalls(people, results).tolist() == [1, 1, -1, 1]
    assert_equal_to_pycocotools(people, results)


def test_a_box_counts_from_an_overlap_of_half():
    half, less = found_box(1, (100.0, 100.0, 40.0, 50.0)), found_box(1, (100.0, 100.0, 40.0, 49.0))
    assert assert_equal_to_pycocotools([person()], [half])["ap50"] == pytest.approx(1)
    assert assert_equal_to_pycocotools([person()], [less])["recall50"] == 0


def test_a_crowd_is_matched_many_times_by_the_boxes_own_area_and_costs_nothing():
    crowd, lone = person(1, (0.0, 0.0, 300.0, 300.0), crowd=1), person(2)
    inside = [found_box(1, (30.0 * number, 10.0, 40.0, 90.0), score=0.9) for number in range(5)]
    right = assert_equal_to_pycocotools([crowd, lone], [*inside, found_box(2, score=0.1)])
    assert right["ap"] == pytest.approx(1) and right["recall50"] == 1
    # The same box around one large person is not found by them.
    wrong = assert_equal_to_pycocotools([crowd | {"iscrowd": 0}, lone], [*inside, found_box(2, score=0.1)])
    assert wrong["ap"] < 0.2 and wrong["recall50"] == 0.5


def test_a_second_box_of_the_same_person_is_a_false_alarm():
    people = [person(1), person(2)]
    twice = [found_box(1, score=0.9), found_box(1, score=0.8), found_box(2, score=0.7)]
    assert assert_equal_to_pycocotools(people, twice)["ap"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert assert_equal_to_pycocotools(people, [twice[0], twice[2]])["ap"] == pytest.approx(1)


def test_heights_are_those_of_the_box_and_the_borders_are_in_the_middle():
    heights = (47.0, 48.0, 96.0, 97.0)
    people = [person(1, (100.0 * number, 0.0, 40.0, height)) for number, height in enumerate(heights)]
    for number, expected in enumerate([[0.25, 1, 0, 0], [0.25, 0, 0.5, 0], [0.25, 0, 0.5, 0], [0.25, 0, 0, 1]]):
        assert recalls(people, [found_box(1, people[number]["bbox"])]).tolist() == expected
    # In float32 too.
    shares = recalled(matched(*packed(people, [found_box(1, people[0]["bbox"])]), thresholds=(0.5,), by="height"))
    assert shares.dtype == jnp.float32 and shares.tolist() == [0.25, 1, 0, 0]


def test_only_the_hundred_best_boxes_of_a_picture_count():
    strays = [found_box(1, (400.0, 400.0, 20.0, 20.0), score=0.9) for _ in range(MOST)]
    hit = found_box(1, score=0.1)
    assert assert_equal_to_pycocotools([person()], [*strays, hit])["recall50"] == 0
    assert assert_equal_to_pycocotools([person()], [*strays[1:], hit])["recall50"] == 1
    assert pack_boxes([], [*strays, hit], [1])[1].score.shape == (1, MOST)


def test_without_boxes_all_is_zero_and_without_people_minus_one():
    assert evaluated([person()], []).tolist() == [0, 0, 0, -1, 0, -1]
    assert recalls([person()], []).tolist() == [0, -1, -1, 0]
    for nobody in ([], [person(crowd=1)]):
        assert set(assert_equal_to_pycocotools(nobody, [found_box()]).values()) == {-1.0}
    assert evaluate_boxes([person()], [], [1])["ap"] == 0


# Properties


def test_the_order_of_pictures_and_boxes_plays_no_part_where_scores_differ():
    truth, found = packed(*scene(2, distinct=True))
    rng = np.random.default_rng(0)
    pictures, places = rng.permutation(PICTURES), rng.permutation(BOXES)
    with jax.enable_x64(True):
        expected = numbers_of(truth, found)
        shuffled = jax.tree.map(lambda leaf: leaf[pictures], truth)
        found = jax.tree.map(lambda leaf: leaf[pictures][:, places], found)
        np.testing.assert_allclose(numbers_of(shuffled, found), expected, atol=1e-12)


def test_enlarged_pictures_have_the_same_ap():
    def enlarged(records):
        return [record | {"bbox": [4 * value + 8 for value in record["bbox"][:2]] + tall(record)} for record in records]

    def tall(record):
        return [4 * side for side in record["bbox"][2:]]

    annotations, results = scene(3)
    # Sizes are those of the outlines, which are left as they are: only the first numbers are of everybody.
    expected = evaluated(annotations, results)[:3]
    np.testing.assert_allclose(evaluated(enlarged(annotations), enlarged(results))[:3], expected, atol=1e-12)


def test_what_is_not_valid_never_changes_the_numbers():
    truth, found = jax.tree.map(np.array, packed(*scene(4)))
    rng = np.random.default_rng(0)

    def filled(record):
        empty, fields = ~record.valid, {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        for name in fields.keys() - {"valid"}:
            values = fields[name].copy()
            values[empty] = rng.uniform(0, 200, values[empty].shape).astype(values.dtype)
            fields[name] = values
        return type(record)(**fields)

    with jax.enable_x64(True):
        assert numbers_of(filled(truth), filled(found)).tolist() == numbers_of(truth, found).tolist()


def test_nothing_is_nan_for_numbers_that_are_not_finite():
    truth, found = jax.tree.map(np.array, packed(*scene(5, distinct=True)))
    expected = np.asarray(numbers_of(truth, found))
    assert expected.dtype == np.float32
    np.testing.assert_allclose(expected, evaluated(*scene(5, distinct=True)), atol=1e-4)
    for name in ("box", "area", "score"):
        for value in (np.nan, np.inf, -np.inf):
            broken = getattr(found, name).copy()
            broken[:, 0] = value
            result = np.asarray(numbers_of(truth, dataclasses.replace(found, **{name: broken})))
            assert np.isfinite(result).all() and (np.abs(result) <= 1 + 1e-6).all(), (name, value)
    # A score that is no number leaves the box out.
    gone, without = found.score.copy(), found.valid.copy()
    gone[:, 0], without[:, 0] = np.nan, False
    left_out = numbers_of(truth, dataclasses.replace(found, score=gone))
    assert_close(left_out, numbers_of(truth, dataclasses.replace(found, valid=without)), rtol=0, atol=0)


def test_whole_weights_are_copies_of_pictures():
    annotations, results = scene(1, distinct=True)
    weight = np.array([0, 1, 2, 1, 2, 0])

    def copies(records):
        # As many pictures as before, so that the shapes are the same.
        places = np.repeat(np.arange(1, PICTURES + 1), weight)
        return [r | {"image_id": n} for n, source in enumerate(places, 1) for r in records if r["image_id"] == source]

    with jax.enable_x64(True):
        found = counted(matched(*packed(annotations, results)), weight=jnp.array(weight, float))
    np.testing.assert_allclose(found, evaluated(copies(annotations), copies(results)), rtol=0, atol=1e-12)


def test_a_bootstrap_maps_over_weights():
    weights = np.random.default_rng(0).multinomial(PICTURES, np.full(PICTURES, 1 / PICTURES), 4).astype(float)
    with jax.enable_x64(True):
        matches = matched(*packed(*scene(5)))
        mapped = jax.jit(jax.vmap(lambda weight: box_numbers(matches, weight=weight)))(weights)
        np.testing.assert_allclose(mapped, [counted(matches, weight=jnp.array(w)) for w in weights], atol=1e-12)
        once = counted(matches, weight=jnp.ones(PICTURES))
        np.testing.assert_allclose(once, evaluated(*scene(5)), atol=1e-12)
        assert counted(matches, weight=jnp.zeros(PICTURES)).tolist() == [-1.0] * 6


# What is handed over


@pytest.mark.parametrize(
    ("people", "boxes", "message"),
    [
        ([person() | {"bbox": [1, 2, 3]}], [], "annotation number 1: bbox: expected 4 finite numbers, got 3 of them"),
        ([person() | {"area": None}], [], "annotation number 1: area: expected 1 finite number, got None"),
        ([], [found_box() | {"bbox": None}], "result number 1: bbox: expected 4 finite numbers, got None"),
        ([], [found_box(), found_box(score=np.nan)], "result number 2: score: expected 1 finite number, got nan"),
        ([], [found_box(99)], "result number 1: image_id: not one of the pictures"),
        ([person()] * 13, [], "expected at most 12 people in a picture, got 13"),
    ],
)
def test_a_wrong_record_is_named(people, boxes, message):
    with pytest.raises(ValueError, match=message):
        packed(people, boxes)


def test_no_pictures_and_a_capacity_of_zero_are_refused():
    with pytest.raises(ValueError, match="expected at least one picture"):
        pack_boxes([], [], [])
    truth, found = packed([person()], [found_box()])
    with pytest.raises(ValueError, match=r"expected at least one entry, got \(6, 12\) people, \(6, 0\) detections"):
        match_boxes(truth, jax.tree.map(lambda leaf: leaf[:, :0], found))


def test_the_packer_keeps_the_best_and_takes_the_room_that_is_needed():
    results = [found_box(2, score=0.1), found_box(1, score=0.2), found_box(2, (1.0, 2.0, 3.0, 4.0), score=0.3)]
    truth, found = pack_boxes([person(2), person(9)], results, [2, 1])
    assert truth.valid.tolist() == [[False], [True]] and truth.box[1, 0].tolist() == [100, 100, 140, 200]
    assert found.score.tolist() == [[0.2, 0], [0.3, 0.1]] and found.valid.tolist() == [[True, False], [True, True]]
    assert found.box[1, 0].tolist() == [1, 2, 4, 6] and found.area[1].tolist() == [12, 4000]
    assert pack_boxes([], results, [1, 2], boxes=1)[1].score.tolist() == [[0.2], [0.3]]
