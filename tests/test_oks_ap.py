import contextlib
import dataclasses
import io
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rmpe_jax.metrics.average_precision import Matches, average_precision, hits_of_levels
from rmpe_jax.metrics.oks import oks
from rmpe_jax.metrics.oks_ap import (
    OKS_AP_NAMES,
    coco_numbers,
    evaluate_keypoints,
    match_keypoints,
    oks_ap,
    oks_matrix,
    pack_keypoints,
)
from rmpe_jax.skeleton import COCO_17

PICTURES, PEOPLE, DETECTIONS = 6, 24, 26
BASE = np.random.default_rng(0).uniform(0, 1, (17, 2))
numbers_of = jax.jit(oks_ap)
matched = jax.jit(match_keypoints)
counted = jax.jit(coco_numbers)


def keypoints(points, seen):
    return np.concatenate([points, np.reshape(seen, (17, 1))], 1).ravel().tolist()


def person(picture=1, corner=(100.0, 100.0), size=100.0, *, seen=None, crowd=0, area=None):
    """A person in a square box; nobody's joints are labelled where ``seen`` is all zero."""
    seen = np.full(17, 2) if seen is None else np.asarray(seen)
    points = np.where(seen[:, None] > 0, np.asarray(corner) + size * BASE, 0)
    labels = {"keypoints": keypoints(points, seen), "num_keypoints": int((seen > 0).sum()), "iscrowd": crowd}
    box = [float(corner[0]), float(corner[1]), size, size]
    return labels | {"image_id": picture, "category_id": 1, "bbox": box, "area": size**2 if area is None else area}


def detection(picture=1, corner=(100.0, 100.0), size=100.0, *, score=0.5):
    points = np.asarray(corner) + size * BASE
    return {"image_id": picture, "category_id": 1, "keypoints": keypoints(points, np.ones(17)), "score": score}


def by_pycocotools(annotations, results, pictures=None):
    """The evaluation by COCO's own code, on dictionaries of its own."""
    pictures = list(range(1, PICTURES + 1)) if pictures is None else pictures
    truth = COCO()
    people = [dict(annotation) | {"id": number} for number, annotation in enumerate(annotations, 1)]
    images = [{"id": picture} for picture in pictures]
    truth.dataset = {"info": {}, "images": images, "annotations": people, "categories": [{"id": 1}]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def packed(annotations, results):
    """Records of one shape, so that one compilation serves all the small scenes; for more detections than count."""
    return pack_keypoints(annotations, results, range(1, PICTURES + 1), people=PEOPLE, most=DETECTIONS)


def evaluated(annotations, results):
    with jax.enable_x64(True):
        return np.asarray(numbers_of(*packed(annotations, results)))


def assert_equal_to_pycocotools(annotations, results):
    found = evaluated(annotations, results)
    np.testing.assert_allclose(found, by_pycocotools(annotations, results).stats, rtol=0, atol=1e-12)
    return dict(zip(OKS_AP_NAMES, found.tolist(), strict=True))


def simulated(annotations, rng, *, count=24):
    """Detections of labelled people with noise, near duplicates and false alarms, more than COCO counts."""
    results = []
    for picture in sorted({annotation["image_id"] for annotation in annotations}):
        people = [a for a in annotations if a["image_id"] == picture and a["num_keypoints"]]
        for _ in range(int(rng.integers(count + 1)) if people else 2):
            source = people[rng.integers(len(people))] if people else annotations[rng.integers(len(annotations))]
            joints = np.array(source["keypoints"], float).reshape(17, 3)
            x, y, width, height = source["bbox"]
            points = np.where(joints[:, 2:] > 0, joints[:, :2], np.array([x + width / 2, y + height / 2]))
            error = 0.2 * rng.random() ** 2
            points = points + rng.normal(scale=error * np.sqrt(source["area"]), size=(17, 2))
            score = float(np.round(np.clip(1 - 4 * error + rng.normal(scale=0.2), 0, 1), 2))
            results.append(
                {"image_id": picture, "category_id": 1, "keypoints": keypoints(points, np.ones(17)), "score": score}
            )
    return results


def scene(seed, *, distinct=False):
    """People of every kind and detections on all pictures but the last two, one of which has detections only."""
    rng = np.random.default_rng(seed)
    annotations = []
    for picture in range(1, PICTURES - 1):
        for _ in range(rng.integers(1, 5)):
            seen = 2 * (rng.random(17) < rng.choice([0.0, 0.6, 1.0]))
            corner, size = rng.uniform(0, 300, 2), float(rng.uniform(10, 150))
            annotations.append(person(picture, corner, size, seen=seen, crowd=int(rng.random() < 0.15)))
    results = simulated(annotations, rng) + [detection(PICTURES - 1, score=0.61), detection(PICTURES - 1, score=0.2)]
    if distinct:
        results = [r | {"score": s} for r, s in zip(results, rng.permutation(len(results)) / 1000.0, strict=True)]
    return annotations, results


def test_simulated_detections_of_real_people_get_the_numbers_of_pycocotools(real_data):
    annotations, pictures = [], []
    for split in ("train2017", "val2017"):
        content = json.loads((real_data / "coco" / "annotations" / f"person_keypoints_{split}.json").read_text())
        annotations += content["annotations"]
        pictures += [image["id"] for image in content["images"]]
    results = simulated(annotations, np.random.default_rng(0))
    expected = by_pycocotools(annotations, results, pictures).stats
    found = evaluate_keypoints(annotations, results, pictures)
    assert tuple(found) == OKS_AP_NAMES and 0.3 < found["ap"] < 0.95
    np.testing.assert_allclose(list(found.values()), expected, rtol=0, atol=1e-12)


def test_a_recall_that_is_a_whole_percentage_is_compared_as_cocoeval_does():
    # Seven of ten found: 7 / 10 is below cocoeval's level 0.7, which is 0.7000000000000001; 5 / 10 is not below 0.5.
    people = [person(1 + number % 5, (number * 200.0, 0.0)) for number in range(10)]
    for hits in range(1, 11):
        found = [detection(1 + number % 5, (number * 200.0, 0.0), score=1 - 0.01 * number) for number in range(hits)]
        assert_equal_to_pycocotools(people, [*found, detection(6, score=0.99)])


@pytest.mark.parametrize("seed", range(6))
def test_scenes_with_everything_get_the_numbers_of_pycocotools(seed):
    assert_equal_to_pycocotools(*scene(seed))


OFFSETS = st.sampled_from([0.0, 1.0, 3.0, 8.0, 40.0])
SIZES = st.sampled_from([20.0, 32.0, 50.0, 96.0, 130.0])
LABELS = st.sampled_from([np.full(17, 2), np.zeros(17, int), np.arange(17) % 3, np.eye(17, dtype=int)[4]])
SPOTS = st.integers(1, PICTURES), st.tuples(OFFSETS, OFFSETS), SIZES
MADE_PEOPLE = st.lists(st.builds(person, *SPOTS, seen=LABELS, crowd=st.sampled_from([0, 0, 0, 1])), max_size=PEOPLE)
MADE_DETECTIONS = st.builds(detection, *SPOTS, score=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))


@given(MADE_PEOPLE, st.lists(MADE_DETECTIONS, min_size=1, max_size=50))
def test_any_scene_gets_the_numbers_of_pycocotools(annotations, results):
    assert_equal_to_pycocotools(annotations, results)


def test_three_detections_of_two_people_by_hand():
    people = [person(1), person(2)]
    found = [detection(1, score=0.9), detection(1, (900.0, 900.0), score=0.8), detection(2, score=0.7)]
    # Up to recall 0.5 (51 of 101 levels) the precision is 1, beyond it 2/3; a person of 100 x 100 pixels is large.
    expected = (51 + 50 * 2 / 3) / 101
    by_hand = [expected, expected, expected, -1, expected, 1, 1, 1, -1, 1]
    np.testing.assert_allclose(evaluated(people, found), by_hand, rtol=0, atol=1e-12)
    assert_equal_to_pycocotools(people, found)


def test_a_better_precision_further_on_counts_for_every_recall_before():
    people = [person(5)] + [person(6, (200.0 * number, 0.0)) for number in range(20)]
    strays = [detection(1 + number % 4, score=0.9 if number < 40 else 0.5) for number in range(80)]
    hits = [detection(6, (200.0 * number, 0.0), score=0.3 - 0.01 * number) for number in range(20)]
    found = assert_equal_to_pycocotools(people, [*strays, detection(5, score=0.8), *hits])
    assert found["ap"] == pytest.approx(21 / 101) and found["ar"] == 1


def test_an_oks_equal_to_the_threshold_passes_it():
    seen = np.where(np.arange(17) < 16, 2, 0)
    for exact in (8, 12):
        result = detection()
        result["keypoints"][3 * exact :] = [1e6] * (51 - 3 * exact)
        found = assert_equal_to_pycocotools([person(seen=seen)], [result])
        assert found["ar50"] == 1 and found["ar75"] == (exact == 12)


def test_a_crowd_is_matched_many_times_and_costs_nothing():
    crowd = person(crowd=1, size=300.0)
    crowded = [detection(size=300.0, score=0.9 - 0.1 * number) for number in range(5)]
    lone, hit = person(1, (500.0, 500.0)), detection(1, (500.0, 500.0), score=0.1)
    assert assert_equal_to_pycocotools([crowd, lone], [*crowded, hit])["ap"] == pytest.approx(1)
    # The same person, not a crowd, takes one of them, and the others are false alarms.
    assert assert_equal_to_pycocotools([crowd | {"iscrowd": 0}, lone], [*crowded, hit])["ap"] < 0.7


def test_people_without_joints_take_what_lies_in_the_box_around_them():
    hidden, lone = person(seen=np.zeros(17)), person(2)
    near, far = detection(1, (30.0, 180.0), score=0.9), detection(1, (900.0, 180.0), score=0.8)
    exact = detection(2, score=0.1)
    assert assert_equal_to_pycocotools([hidden, lone], [near, exact])["ap"] == pytest.approx(1)
    assert assert_equal_to_pycocotools([hidden, lone], [far, exact])["ap"] == pytest.approx(0.5)


def test_the_borders_of_the_area_ranges_belong_to_both():
    for side in (32.0, 96.0):
        for area in (np.nextafter(side**2, 0), side**2, np.nextafter(side**2, np.inf)):
            people = [person(1, area=float(area)), person(2, area=50.0**2), person(3, area=150.0**2)]
            stray = detection(4, score=0.6) | {"bbox": [0, 0, side, float(area) / side]}
            hits = [detection(picture, score=0.5) | {"bbox": [0, 0, 40, 40]} for picture in (1, 2, 3)]
            assert_equal_to_pycocotools(people, [stray, *hits])
    both = assert_equal_to_pycocotools([person(area=96.0**2)], [detection()])
    assert both["ap_medium"] == both["ap_large"] == pytest.approx(1)


def test_of_equal_people_the_last_is_taken():
    # The first detection fits both, the second only the first of them.
    first, last = person(), person(area=9999.0)
    second = detection(1, (108.0, 100.0), score=0.4)
    for people in ([first, first], [first, last], [last, first], [first, first, last]):
        assert_equal_to_pycocotools(people, [detection(score=0.9), second, second])


def test_of_equal_scores_the_earlier_detection_and_picture_come_first():
    people = [person(picture) for picture in (1, 2, 3)]
    good, bad = detection(2, score=0.5), detection(2, (800.0, 0.0), score=0.5)
    assert_equal_to_pycocotools(people, [good, bad])
    assert_equal_to_pycocotools(people, [bad, good])
    first, late = detection(1, score=0.5), detection(3, (800.0, 0.0), score=0.5)
    ahead = assert_equal_to_pycocotools(people, [late, first])["ap"]
    first, late = first | {"image_id": 3}, late | {"image_id": 1}
    assert assert_equal_to_pycocotools(people, [late, first])["ap"] < ahead


def test_only_the_twenty_best_detections_of_a_picture_count():
    strays = [detection(1, (900.0, 900.0), score=0.9) for _ in range(20)]
    assert assert_equal_to_pycocotools([person()], [*strays, detection(score=0.1)])["ar"] == 0
    assert assert_equal_to_pycocotools([person()], [*strays[1:], detection(score=0.1)])["ar"] == 1
    assert packed([], [*strays, detection(score=0.1)])[1].valid.sum() == 21
    assert pack_keypoints([], [*strays, detection(score=0.1)], [1])[1].score.tolist() == [[0.9] * 20]


def test_a_picture_may_have_more_people_than_a_byte_counts():
    corners = [(40.0 * (number % 12), 40.0 * (number // 12)) for number in range(140)]
    people = [person(1, corner) for corner in corners]
    results = [detection(1, np.add(corner, 3.0), score=0.5 + number / 999) for number, corner in enumerate(corners)]
    found = evaluate_keypoints(people, results, [1])
    expected = by_pycocotools(people, results, [1]).stats
    np.testing.assert_allclose(list(found.values()), expected, rtol=0, atol=1e-12)


def test_without_detections_all_is_zero_and_without_people_minus_one():
    assert evaluated([person(size=150.0)], []).tolist() == [0, 0, 0, -1, 0, 0, 0, 0, -1, 0]
    assert evaluated([], []).tolist() == [-1.0] * 10
    assert set(assert_equal_to_pycocotools([], [detection()]).values()) == {-1.0}
    assert set(assert_equal_to_pycocotools([person(crowd=1)], [detection()]).values()) == {-1.0}


def test_other_pictures_and_other_categories_are_left_out():
    people, results = scene(1)
    chair = {"category_id": 62}
    found = evaluated([*people, person(99), person() | chair], [*results, detection(score=1.0) | chair])
    assert found.tolist() == evaluated(people, results).tolist()


def test_the_oks_matrix_is_that_of_cocoeval():
    people, results = scene(2, distinct=True)
    evaluation = by_pycocotools(people, results)
    with jax.enable_x64(True):
        truth, found = packed(people, results)
        similarity = np.asarray(jax.jit(oks_matrix)(truth, found))
    for picture in range(1, PICTURES - 1):
        expected = np.asarray(evaluation.ious[picture, 1])
        here = similarity[picture - 1]
        np.testing.assert_allclose(here[: expected.shape[0], : expected.shape[1]], expected, rtol=1e-12, atol=1e-300)
        assert not here[expected.shape[0] :].any() and not here[:, expected.shape[1] :].any()


def test_the_oks_matrix_is_the_oks_of_one_pose_for_people_with_joints():
    with jax.enable_x64(True):
        truth, found = jax.tree.map(jnp.asarray, packed(*scene(3)))
        sigmas = jnp.array(COCO_17.sigmas)
        each = jax.vmap(oks, (None, 0, 0, 0, None))
        each = jax.vmap(jax.vmap(each, (0, None, None, None, None)), (0, 0, 0, 0, None))
        expected = jax.jit(each)(found.points, truth.points, truth.labelled, truth.area, sigmas)
        with_joints = truth.labelled.any(-1)[:, None] & found.valid[..., None]
        assert with_joints.sum() > 50
        similarity = jnp.where(with_joints, jax.jit(oks_matrix)(truth, found), 0)
        np.testing.assert_allclose(similarity, jnp.where(with_joints, expected, 0), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_pictures_and_detections_plays_no_part_where_scores_differ(seed):
    truth, found = packed(*scene(seed, distinct=True))
    rng = np.random.default_rng(seed)
    pictures, places = rng.permutation(PICTURES), rng.permutation(DETECTIONS)
    with jax.enable_x64(True):
        expected = numbers_of(truth, found)
        shuffled = jax.tree.map(lambda leaf: leaf[pictures], truth)
        np.testing.assert_allclose(
            numbers_of(shuffled, jax.tree.map(lambda leaf: leaf[pictures][:, places], found)), expected, atol=1e-12
        )


def test_what_is_not_valid_never_changes_the_numbers():
    truth, found = jax.tree.map(np.array, packed(*scene(4)))
    rng = np.random.default_rng(0)
    masks = {id(record): record.valid for record in (truth, found)}

    def filled(record):
        empty = ~masks[id(record)]
        fields = {field.name: getattr(record, field.name).copy() for field in dataclasses.fields(record)}
        for name, values in fields.items():
            if name != "valid":
                values[empty] = rng.uniform(0, 2, values[empty].shape).astype(values.dtype)
        return type(record)(**fields)

    with jax.enable_x64(True):
        assert numbers_of(filled(truth), filled(found)).tolist() == numbers_of(truth, found).tolist()


def matches_of(annotations, results) -> Matches:
    return matched(*packed(annotations, results))


@pytest.mark.parametrize("seed", range(3))
def test_integer_weights_are_copies_of_pictures(seed):
    annotations, results = scene(seed, distinct=True)
    weight = np.random.default_rng(seed).permutation([0, 1, 1, 2, 3, 0])

    def copies(records):
        return [r | {"image_id": 10 * r["image_id"] + n} for r in records for n in range(weight[r["image_id"] - 1])]

    pictures = [10 * (index + 1) + copy for index, count in enumerate(weight) for copy in range(count)]
    expected = by_pycocotools(copies(annotations), copies(results), pictures).stats
    with jax.enable_x64(True):
        found = counted(matches_of(annotations, results), weight=jnp.array(weight, float))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_bootstrap_maps_over_weights():
    weights = np.random.default_rng(0).multinomial(PICTURES, np.full(PICTURES, 1 / PICTURES), 8).astype(float)
    with jax.enable_x64(True):
        matches = matches_of(*scene(5))
        mapped = jax.jit(jax.vmap(lambda weight: coco_numbers(matches, weight=weight)))(weights)
        loop = [counted(matches, weight=jnp.array(weight)) for weight in weights]
        np.testing.assert_allclose(mapped, np.stack(loop), atol=1e-12)
        once = counted(matches, weight=jnp.ones(PICTURES))
        np.testing.assert_allclose(once, numbers_of(*packed(*scene(5))), atol=1e-12)
        # Only ratios of weights matter.
        np.testing.assert_allclose(counted(matches, weight=jnp.full(PICTURES, 0.25)), once, atol=1e-12)
        assert counted(matches, weight=jnp.zeros(PICTURES)).tolist() == [-1.0] * 10


def test_the_matches_may_be_cut_down_to_the_valid_detections():
    annotations, results = scene(0)
    kept = sum(min(20, sum(r["image_id"] == picture for r in results)) for picture in range(1, PICTURES + 1))
    with jax.enable_x64(True):
        matches = matches_of(annotations, results)
        flags = {name: getattr(matches, name) for name in ("hit", "alarm", "picture")}
        assert kept < len(matches.hit) and not flags["hit"][kept:].any() and not flags["alarm"][kept:].any()
        short = Matches(**{name: flag[:kept] for name, flag in flags.items()}, people=matches.people)
        assert counted(short, weight=jnp.ones(PICTURES)).tolist() == evaluated(annotations, results).tolist()


def test_data_sets_may_be_mapped_over():
    sets = [packed(*scene(seed)) for seed in range(3)]
    mapped = jax.jit(jax.vmap(oks_ap))(*jax.tree.map(lambda *leaves: np.stack(leaves), *sets))
    np.testing.assert_allclose(mapped, np.stack([numbers_of(*one) for one in sets]), atol=1e-6)


def test_other_thresholds_and_ranges_give_their_own_rows():
    with jax.enable_x64(True):
        truth, found = packed(*scene(1))
        every = matched(truth, found)
        some = partial(match_keypoints, thresholds=(0.5, 0.75), area_ranges=((0.0, 1e10),))
        few = jax.jit(some)(truth, found)
        rows = (slice(None), slice(1), np.array([0, 5]))
        assert few.hit.tolist() == every.hit[rows].tolist() and few.alarm.tolist() == every.alarm[rows].tolist()
        # Without jit, for once.
        precision, recall = average_precision(few)
        assert precision.shape == recall.shape == (1, 2)
        np.testing.assert_allclose([precision[0, 0], recall[0, 1]], counted(every)[np.array([1, 7])], atol=1e-12)


def test_nothing_is_nan_in_float32_even_for_numbers_that_are_not_finite():
    truth, found = jax.tree.map(np.array, packed(*scene(2, distinct=True)))
    expected = np.asarray(numbers_of(truth, found))
    assert expected.dtype == np.float32 and (np.abs(expected) <= 1).all()
    np.testing.assert_allclose(expected, evaluated(*scene(2, distinct=True)), atol=1e-4)
    for name, value in (("points", np.nan), ("points", np.inf), ("area", np.nan), ("score", np.nan)):
        broken = getattr(found, name).copy()
        broken[:, 0] = value
        result = np.asarray(numbers_of(truth, dataclasses.replace(found, **{name: broken})))
        assert np.isfinite(result).all() and (name == "area" or (result != expected).any())
    flat = dataclasses.replace(truth, area=np.zeros_like(truth.area), points=np.full_like(truth.points, np.nan))
    assert np.isfinite(numbers_of(flat, found)).all() and np.isfinite(oks_matrix(flat, found)).all()


def test_a_capacity_of_zero_is_refused():
    truth, found = packed([person()], [detection()])
    with pytest.raises(ValueError, match=r"expected at least one entry, got \(6, 24\) people, \(6, 0\) detections"):
        match_keypoints(truth, jax.tree.map(lambda leaf: leaf[:, :0], found))


def test_the_packer_puts_the_best_detections_first_and_takes_areas_as_loadres_does():
    results = [detection(2, score=0.1), detection(1, score=0.2), detection(2, size=50.0, score=0.3)]
    truth, found = pack_keypoints([person(2), person(2, size=50.0)], results, [2, 1, 2])
    assert truth.valid.tolist() == [[False, False], [True, True]] and truth.box[1, 0].tolist() == [100, 100, 200, 200]
    assert found.score[:, :2].tolist() == [[0.2, 0], [0.3, 0.1]] and found.valid.sum() == 3
    assert found.area[1, 0] == pytest.approx(50.0**2 * np.ptp(BASE, 0).prod())
    boxed = [result | {"bbox": [3, 4, 5.0, 6.0]} for result in results]
    assert pack_keypoints([], boxed, [1, 2])[1].area[1].tolist()[:3] == [30, 30, 0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"keypoints": [1.0] * 50}, "result number 2: keypoints: expected 51 finite numbers, got 50 of them"),
        ({"keypoints": [np.nan] * 51}, r"result number 2: keypoints: expected 51 finite numbers, got \[nan"),
        ({"keypoints": None}, "result number 2: keypoints: expected 51 finite numbers, got None"),
        ({"score": np.inf}, "result number 2: score: expected 1 finite number, got inf"),
        ({"score": "high"}, "result number 2: score: expected 1 finite number, got 'high'"),
        ({"image_id": 7}, "result number 2: image_id: not one of the pictures"),
    ],
)
def test_a_wrong_result_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        packed([person()], [detection(), detection() | change])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"keypoints": [1.0] * 54}, "annotation number 2: keypoints: expected 51 finite numbers, got 54 of them"),
        ({"bbox": [1, 2, 3]}, "annotation number 2: bbox: expected 4 finite numbers, got 3 of them"),
        ({"area": None}, "annotation number 2: area: expected 1 finite number, got None"),
        ({"num_keypoints": None}, "annotation number 2: num_keypoints: expected 1 finite number, got None"),
    ],
)
def test_a_wrong_annotation_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        packed([person(), person() | change], [detection()])


def test_too_many_people_and_no_pictures_are_refused():
    with pytest.raises(ValueError, match="expected at most 24 people in a picture, got 25"):
        packed([person()] * 25, [])
    with pytest.raises(ValueError, match="expected at least one picture"):
        pack_keypoints([], [], [])


def test_the_hits_of_recall_levels_are_those_of_cocoevals_search():
    levels = COCOeval(iouType="keypoints").params.recThrs
    for people in (*range(1, 301), 1000, 4096, 6352, 11004, 99_999):
        recall = np.arange(1, people + 1) / people
        # cocoeval searches the recalls after each detection; beyond the last there is none.
        expected = np.searchsorted(recall, levels, side="left") + 1
        found = hits_of_levels(people)
        assert found.shape == (101,)
        np.testing.assert_array_equal(found, expected, err_msg=str(people))
