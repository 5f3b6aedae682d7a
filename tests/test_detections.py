"""Human detectors measured by labelled boxes, with made detectors that know where people are."""

import dataclasses
import json
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_identical
from made_data import coco_annotation, write_coco, write_crowdpose, write_lspet

from rmpe_jax import cli
from rmpe_jax.data.coco import read_coco
from rmpe_jax.data.files import DataError
from rmpe_jax.data.sets import read_data
from rmpe_jax.evaluate import detections
from rmpe_jax.evaluate.detections import Detections, detect_people, evaluate_detector, people_found
from rmpe_jax.evaluate.results import as_markdown, as_text, compare, numbers_of
from rmpe_jax.predict.detectors import THRESHOLD, read_boxes
from rmpe_jax.records import Boxes

PLACES = [(10.0, 5.0, 60.0, 90.0), (90.0, 15.0, 140.0, 85.0)]
NUMBERS = ["ap50", "ap", "ap75", "ap_small", "ap_medium", "ap_large"]
RECALLS = ["recall50", "recall50_short", "recall50_middle", "recall50_tall"]


def constant(boxes, score=None):
    """A detector that sees the same boxes in every picture."""
    return lambda image: Boxes.from_arrays(boxes, score)


@pytest.fixture
def no_hog(monkeypatch):
    """HOG stands beside nobody: it takes seconds."""
    monkeypatch.delattr(cv2, "HOGDescriptor")


@pytest.fixture
def blind_hog(monkeypatch):
    """OpenCV's detector finds nobody, at once."""
    monkeypatch.setattr(detections, "detect_with_hog", constant([]))


def measure(folder, detector, **options):
    said = options.pop("said", [])
    options = {"dataset": "coco", "replicates": 0, "report": said.append} | options
    return evaluate_detector(options.pop("dataset"), detector, folder, **options)


def test_the_labelled_boxes_get_1_and_hog_stands_beside_them(tmp_path, blind_hog):
    write_coco(tmp_path)
    result = measure(tmp_path, constant(PLACES), name="own")
    assert [result[name] for name in NUMBERS] == [pytest.approx(1)] * 3 + [None, pytest.approx(1), None]
    assert [result[name] for name in RECALLS] == [1, None, 1, None] == [result["at_threshold"][n] for n in RECALLS]
    assert result["hog"]["ap"] == result["hog"]["recall50"] == result["hog"]["at_threshold"]["recall50"] == 0
    about = {name: result[name] for name in ("dataset", "split", "protocol", "detector", "pictures", "people")}
    expected = {"dataset": "coco", "split": "val2017", "protocol": "detector", "detector": "own", "pictures": 3}
    assert about == expected | {"people": 6}
    assert (result["boxes_per_picture"], result["hog_boxes_per_picture"], result["threshold"]) == (2, 0, THRESHOLD)
    assert result["seconds_per_picture"] > 0 and result["hog_seconds_per_picture"] > 0
    assert result["difference_to_pycocotools"] < 1e-12
    json.dumps(result, allow_nan=False)


def test_one_of_two_people_is_half(tmp_path, no_hog):
    write_coco(tmp_path)
    result = measure(tmp_path, constant(PLACES[:1]))
    assert result["recall50"] == 0.5 and result["ap50"] == result["ap"] == pytest.approx(51 / 101)


def test_nobody_found_is_0(tmp_path, no_hog):
    write_coco(tmp_path)
    for detector in (constant([]), constant(np.add(PLACES, 300))):
        result = measure(tmp_path, detector)
        assert result["ap50"] == result["ap"] == result["recall50"] == result["at_threshold"]["recall50"] == 0
    assert "difference_to_pycocotools" not in measure(tmp_path, constant([]))


def test_boxes_below_the_default_score_count_for_ap_alone(tmp_path, no_hog):
    write_coco(tmp_path)
    result = measure(tmp_path, constant(PLACES, [THRESHOLD, THRESHOLD - 0.01]))
    assert (result["recall50"], result["at_threshold"]["recall50"], result["boxes_per_picture"]) == (1, 0.5, 1)
    assert result["ap"] == pytest.approx(1)


def test_people_without_joints_count_and_crowds_do_not(tmp_path, no_hog):
    hidden = {"keypoints": [0] * 51, "num_keypoints": 0}
    people = [coco_annotation(1, 1, PLACES[0], **hidden), coco_annotation(2, 1, PLACES[1], iscrowd=1)]
    write_coco(tmp_path, annotations=people)
    result = measure(tmp_path, constant(PLACES[:1]), limit=1)
    assert result["people"] == 1 and result["recall50"] == 1 and result["ap"] == pytest.approx(1)
    # The first call says nothing about the time of the others.
    assert result["pictures"] == 1 and result["seconds_per_picture"] is None


def test_heights_are_told_apart(tmp_path, no_hog):
    places = [(0.0, 0.0, 40.0, 40.0), (50.0, 0.0, 90.0, 60.0), (100.0, 0.0, 140.0, 120.0)]
    write_coco(tmp_path, annotations=[coco_annotation(n, 1, place) for n, place in enumerate(places, 1)])
    for number, found in enumerate(np.eye(3).tolist()):
        result = measure(tmp_path, constant(places[number : number + 1]))
        assert [result[name] for name in RECALLS] == [pytest.approx(1 / 3), *found]


def test_broken_boxes_and_scores_are_left_out(tmp_path):
    write_coco(tmp_path, pictures=1)
    pictures = read_coco(tmp_path, "val2017")
    broken = [[np.nan, 0, 9, 9], [0, 0, np.inf, 9], [-np.inf, 0, 9, 9], [30, 30, 10, 40], [5, 5, 5, 9]]
    unsure = [np.nan, np.inf, -np.inf]

    def some(image):
        boxes = Boxes.from_arrays([*PLACES, (0.0, 0.0, 9.0, 9.0)], [0.5, 0.4, 0.99])
        return jax.tree.map(jnp.asarray, dataclasses.replace(boxes, valid=np.array([True, True, False])))

    detectors = {
        "alone": constant(PLACES, [0.5, 0.4]),
        "among others": constant([*broken, *PLACES[:1] * 3, *PLACES], [*[0.9] * 5, *unsure, 0.5, 0.4]),
        "valid": some,
    }
    found = detect_people(detectors, pictures)
    for (boxes,) in found.boxes.values():
        assert_identical(boxes, found.boxes["alone"][0])
    assert found.boxes["alone"][0].xyxy.tolist() == [list(place) for place in PLACES] and not found.problems


def test_the_detector_is_given_the_picture_and_its_time_is_the_median_but_for_the_first(tmp_path, monkeypatch):
    write_coco(tmp_path)
    seen, clock = [], iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])
    monkeypatch.setattr(detections, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))

    def look(image):
        seen.append(image)
        return Boxes.from_arrays(PLACES)

    pictures = read_coco(tmp_path, "val2017")
    found = detect_people({"own": look}, pictures)
    assert [(image.shape, image.dtype) for image in seen] == [((96, 160, 3), np.uint8)] * 3
    assert found.seconds == {"own": [5, 1, 3]}
    assert people_found(pictures, found).about["seconds_per_picture"] == 2


def test_unreadable_pictures_are_named_and_nobody_is_found_in_them(tmp_path, no_hog):
    write_coco(tmp_path)
    broken = tmp_path / "val2017" / "000000000002.jpg"
    broken.write_bytes(b"not a picture")
    said = []
    result = measure(tmp_path, constant(PLACES), said=said)
    assert len(said) == 2 and "no HOG detector" in said[0] and str(broken) in said[1]
    assert (result["unreadable"], result["pictures"], result["boxes_per_picture"]) == (1, 3, 2)
    assert result["recall50"] == pytest.approx(2 / 3)
    for path in broken.parent.iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="none of 3 pictures can be read; the first: "):
        measure(tmp_path, constant(PLACES))


def test_hog_itself_has_nothing_beside_it(tmp_path, blind_hog):
    write_coco(tmp_path)
    result = measure(tmp_path, detections.detect_with_hog, name="whatever")
    assert result["detector"] == "hog" and "hog" not in result and "hog_seconds_per_picture" not in result
    assert {label for table in result["tables"] for label in table["rows"]} == {"hog"}


def test_without_hog_in_opencv_a_line_says_so(tmp_path, no_hog):
    write_coco(tmp_path)
    said = []
    result = measure(tmp_path, constant(PLACES), name="own", said=said)
    assert result["hog"] is None
    assert said == [f"OpenCV {cv2.__version__} has no HOG detector: nothing stands beside own"]
    assert {label for table in result["tables"] for label in table["rows"]} == {"own"}
    assert not any(path.startswith("hog") for path in numbers_of(result))


def test_a_file_of_boxes_is_measured_like_a_detector_that_takes_no_time(tmp_path, no_hog):
    write_coco(tmp_path)
    path = tmp_path / "boxes.json"
    sides = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in PLACES]
    entries = [{"image_id": number, "bbox": box, "score": 0.9} for number in (1, 2) for box in sides]
    path.write_text(json.dumps(entries))
    result = measure(tmp_path, read_boxes(path), name="file:boxes.json")
    assert result["recall50"] == pytest.approx(2 / 3) and result["boxes_per_picture"] == pytest.approx(4 / 3)
    assert result["seconds_per_picture"] is None and result["detector"] == "file:boxes.json"
    path.write_text(json.dumps([entries[0] | {"image_id": 9}]))
    with pytest.raises(DataError, match="has no boxes for any of the pictures"):
        measure(tmp_path, read_boxes(path))
    path.write_text(json.dumps([entries[0] | {"bbox": [1, 2]}]))
    with pytest.raises(DataError, match="detection 1: bbox"):
        measure(tmp_path, read_boxes(path))


@pytest.mark.slow
def test_intervals_tables_and_comparisons(tmp_path, blind_hog):
    write_coco(tmp_path)
    first = measure(tmp_path, constant(PLACES[:1]), name="half", replicates=5)
    second = measure(tmp_path, constant(PLACES), name="own", replicates=5)
    paths = [*NUMBERS, *RECALLS, *(f"at_threshold/{name}" for name in RECALLS)]
    paths += [f"hog/{path}" for path in paths]
    assert set(second["intervals"]) == set(numbers_of(second)) == set(paths)
    assert second["intervals"]["ap"] == [pytest.approx(1)] * 2 and second["intervals"]["hog/ap"] == [0, 0]
    differences = {entry.name: entry for entry in compare(first, second)}
    assert differences["recall50"].second - differences["recall50"].first == 0.5
    assert differences["recall50"].low == differences["recall50"].high == 0.5
    text, markdown = as_text(second).splitlines(), as_markdown(second)
    assert text[0] == "dataset: coco" and "boxes_per_picture: 2.0" in text
    rows = [line.split() for line in text if line.startswith(("own", "hog "))]
    assert rows[0] == ["own", "100.0", "100.0", "100.0", "-", "100.0", "-"] and rows[1][:2] == ["hog", "0.0"]
    assert len(rows) == 6 and "detector own, pictures 3" in markdown and "| hog | 0.0 |" in markdown


def test_a_weight_is_that_of_its_picture_whatever_the_pictures_numbers(tmp_path):
    write_coco(tmp_path, pictures=2, annotations=[coco_annotation(n, n, PLACES[n - 1]) for n in (1, 2)])
    pictures = read_coco(tmp_path, "val2017")
    boxes = [Boxes.from_arrays(PLACES[:1]), Boxes.from_arrays([])]
    with jax.enable_x64(True):
        for order in ([0, 1], [1, 0]):
            here = Detections({"own": [boxes[place] for place in order]}, {"own": []}, [])
            measured = people_found([pictures[place] for place in order], here)
            counted = jax.jit(measured.statistic)
            shares = [float(counted(measured.data, weight)["recall50"]) for weight in np.eye(2)]
            assert shares == [[1, 0][place] for place in order]


@pytest.mark.slow
def test_drawn_people_and_crowdpose_have_complete_boxes(tmp_path, no_hog):
    pictures = {record.image_id: record for record in read_data("synthetic", tmp_path, "val")[:2]}
    by_pixels = {record.picture.read().tobytes(): record.boxes for record in pictures.values()}
    result = measure(
        tmp_path, lambda image: Boxes.from_arrays(by_pixels[image.tobytes()]), dataset="synthetic", limit=2
    )
    assert result["recall50"] == 1 and result["ap75"] == pytest.approx(1) and result["split"] == "val"
    write_crowdpose(tmp_path, split="test")
    records = read_data("crowdpose", tmp_path, "test")
    found = detect_people({"none": constant([])}, records)
    assert [len(boxes.xyxy) for boxes in found.boxes["none"]] == [0] * len(records)
    assert measure(tmp_path, constant([]), dataset="crowdpose")["recall50"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "mpi"}, "unknown data set 'mpi'; known: coco, "),
        ({"dataset": "lspet"}, "lspet has no boxes around whole people, .*; coco, crowdpose, synthetic have"),
        ({"dataset": "mpii"}, "mpii has no boxes around whole people"),
        ({"split": "val2014"}, "annotations/person_keypoints_val2014.json"),
        ({"split": "train2017"}, "the split train2017 of coco has no pictures"),
        ({"limit": 2}, "nobody to find: no labelled people in these pictures"),
    ],
)
def test_what_cannot_be_measured_is_named(tmp_path, no_hog, options, message):
    write_lspet(tmp_path)
    write_coco(tmp_path, annotations=[coco_annotation(1, 1, PLACES[0], iscrowd=1), coco_annotation(2, 3, PLACES[0])])
    write_coco(tmp_path, split="train2017", pictures=0)
    with pytest.raises(DataError, match=message):
        measure(tmp_path, constant(PLACES), **options)


def test_a_difference_to_pycocotools_does_not_go_unseen(tmp_path, no_hog, monkeypatch):
    write_coco(tmp_path)
    summary = detections.coco_summary
    monkeypatch.setattr(detections, "coco_summary", lambda *a, **b: summary(*a, **b) | {"ap50": 0.5})
    with pytest.raises(DataError, match="differ by 0.5"):
        measure(tmp_path, constant(PLACES))


# The command


@pytest.fixture
def said(capsys):
    """What a command prints: the lines of its output, and those of its own on standard error."""

    def lines():
        out, err = capsys.readouterr()
        return out.splitlines(), [line for line in err.replace("\r", "\n").splitlines() if line.startswith("rmpe: ")]

    return lines


def command(folder, *more):
    return cli.main(["evaluate", "detector", "--data", str(folder), "--replicates", "0", *map(str, more)])


@pytest.mark.parametrize(
    ("asked", "name"),
    [(None, "builtin"), ("onnx:somewhere/net.onnx", "onnx:net.onnx"), ("hf:them/net", "hf:them/net")],
)
def test_the_command_measures_the_detector_that_is_asked_for(tmp_path, monkeypatch, blind_hog, said, asked, name):
    write_coco(tmp_path)

    def detector(options):
        assert options.detector_score == 0  # AP is of all boxes
        return constant(PLACES)

    monkeypatch.setattr("rmpe_jax.cli.evaluate.detector_of", detector)
    wanted = [] if asked is None else ["--detector", asked]
    table = tmp_path / "table.md"
    assert command(tmp_path, *wanted, "--split", "val2017", "--limit", 3, "--markdown", table, "--json", "-") == 0
    out, err = said()
    result = json.loads(out[-1])
    assert (result["detector"], result["pictures"], result["recall50"], result["hog"]["recall50"]) == (name, 3, 1, 0)
    assert not err and f"detector: {name}" in out and f"| {name} |" in table.read_text()


def test_the_command_tells_of_unreadable_pictures(tmp_path, monkeypatch, no_hog, said):
    monkeypatch.setattr("rmpe_jax.cli.evaluate.detector_of", lambda options: constant(PLACES))
    write_coco(tmp_path)
    (tmp_path / "val2017" / "000000000002.jpg").write_bytes(b"dear diary")
    assert command(tmp_path) == 1
    assert [("000000000002.jpg" in line, "OpenCV" in line) for line in said()[1]] == [(False, True), (True, False)]


def test_the_command_takes_another_data_set_with_its_own_split(tmp_path, monkeypatch, said):
    monkeypatch.setattr("rmpe_jax.cli.evaluate.detector_of", lambda options: constant([]))
    assert command(tmp_path, "--dataset", "crowdpose") == 1
    (line,) = said()[1]
    assert "crowdpose_test.json" in line


@pytest.mark.parametrize(
    ("options", "told"),
    [
        *((["--boxes", "gt"], "--boxes has"), (["--predictions", "p.json"], "--predictions has")),
        *((["--protocol", "oks"], "--protocol has"), (["--weights", "tiny"], "--weights has"), (["--nms", "none"], "")),
        *(
            (["--no-flip"], "--no-flip has"),
            (["--decoder", "dark"], "--decoder has"),
            (["--scales", "1,2"], "--scales"),
        ),
        *((["--toolkit-parity"], "--toolkit-parity has"), (["--save-predictions", "p.json"], "--save-predictions has")),
        (["--nms", "none", "--boxes", "gt"], "--boxes, --nms have no use"),
    ],
)
def test_options_of_poses_are_refused(tmp_path, said, options, told):
    assert command(tmp_path, *options) == 1
    (line,) = said()[1]
    assert line.startswith("rmpe: a detector is measured by its boxes, not by poses: ") and told in line
    assert line.endswith("no use")


def test_dataset_is_refused_where_the_name_says_it(tmp_path, said):
    assert cli.main(["evaluate", "lspet", "--data", str(tmp_path), "--dataset", "coco"]) == 1
    assert said()[1] == ["rmpe: --dataset is of `rmpe evaluate detector`: with lspet it has no use"]


def test_a_set_without_complete_boxes_is_one_line(tmp_path, monkeypatch, said):
    monkeypatch.setattr("rmpe_jax.cli.evaluate.detector_of", lambda options: constant([]))
    assert command(tmp_path, "--dataset", "waf") == 1
    (line,) = said()[1]
    assert line.startswith("rmpe: waf has no boxes around whole people")
