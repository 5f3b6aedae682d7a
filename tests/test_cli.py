import copy
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_identical
from made_data import coco_annotation, encoded, figure, lsp_labels, picture, write_coco, write_lspet
from PIL import Image

from rmpe_jax.cli import main
from rmpe_jax.data.images import read_image
from rmpe_jax.evaluate import evaluate_coco, evaluate_lspet
from rmpe_jax.predict import estimator as estimator_module
from rmpe_jax.predict import media
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.pretrained import load_weights, save_weights
from rmpe_jax.records import Boxes, Poses
from rmpe_jax.skeleton import COCO_17, LSP_14
from rmpe_jax.train import loop
from rmpe_jax.train.parallel import pmap_step

EXPERIMENT = """
from rmpe_jax.config import DataConfig, Experiment, HourglassConfig, OptimConfig, RunConfig

experiment = Experiment(
    name="tiny",
    model=HourglassConfig(stacks=1, features=8, depth=1, input_size=(32, 32)),
    data=DataConfig(canvas=48, min_joints=1),
    optim=OptimConfig(steps=6, batch=4, warmup=2, learning_rate=1e-2),
    run=RunConfig(log_every=1, evaluate_every=100, save_every=2),
)
"""


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory, tiny_weights):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, tiny_weights)
    return path


@pytest.fixture
def quick(monkeypatch, tiny_estimator):
    """Commands share one compiled estimator, without flip test and NMS."""

    def load(name, *, flip_test=True, smallest_score=0.0):
        load_weights(name)
        shared = copy.copy(tiny_estimator)
        shared.smallest_score = smallest_score
        return shared

    monkeypatch.setattr(estimator_module, "load", load)


def write(folder, **pictures):
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, (suffix, content) in pictures.items():
        paths[name] = folder / f"{name}.{suffix}"
        paths[name].write_bytes(content)
    return paths


def boxes_for(folder, names, box=(10, 5, 40, 60)):
    path = folder / "boxes.json"
    path.write_text(json.dumps([{"file_name": name, "category_id": 1, "bbox": list(box)} for name in names]))
    return path


def predict(weights_file, out, pictures, *more):
    options = ["--weights", str(weights_file), "--out", str(out), "--min-score", "0"]
    return main(["predict", *(str(path) for path in pictures), *options, *(str(option) for option in more)])


def results(out):
    return json.loads((out / "poses.json").read_text())


def said(capsys):
    """Lines on standard output and on standard error; no traceback among them."""
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out.splitlines(), err.splitlines()


# predict


def test_broken_pictures_cost_one_line_each_and_the_others_are_done(tmp_path, weights_file, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(picture())
    cmyk = tmp_path / "cmyk.jpg"
    Image.fromarray(picture()).convert("CMYK").save(cmyk)
    good = write(
        tmp_path,
        colour=("png", encoded(picture(), "PNG")),
        dot=("png", encoded(picture(1, 1), "PNG")),
        grey=("png", encoded(picture()[..., 0], "PNG")),
        deep=("png", encoded(picture()[..., 0].astype(np.uint16) * 257, "PNG")),
        turned=("jpg", encoded(picture(96, 60), exif=exif)),
    )
    good["cmyk"] = cmyk
    bad = write(tmp_path, text=("jpg", b"dear diary"), cut=("jpg", whole[: len(whole) // 2]))
    bad["gone"] = tmp_path / "gone.jpg"
    mixed = [bad["gone"], *list(good.values())[:3], bad["text"], bad["cut"], *list(good.values())[3:]]
    boxes = boxes_for(tmp_path, [path.name for path in mixed], (0, 0, 1, 1))

    assert predict(weights_file, tmp_path / "out", mixed, "--boxes", boxes) == 1
    out, err = said(capsys)
    assert len(err) == 3 and all(line.startswith("rmpe: ") for line in err)
    for path in bad.values():
        assert sum(str(path) in line for line in err) == 1
    assert out == [f"6 poses in 6 of 9 pictures: {tmp_path / 'out' / 'poses.json'}"]
    assert sorted(r["file_name"] for r in results(tmp_path / "out")) == sorted(path.name for path in good.values())
    drawn = {path.name: read_image(path) for path in (tmp_path / "out").glob("*.jpg")}
    assert sorted(drawn) == sorted(f"{name}_poses.jpg" for name in good)
    assert drawn["dot_poses.jpg"].shape == (1, 1, 3)
    assert drawn["turned_poses.jpg"].shape == (60, 96, 3)
    assert len(list((tmp_path / "out").iterdir())) == 7


def test_good_pictures_give_status_0_and_results_in_pixels(tmp_path, weights_file, quick, capsys):
    paths = write(tmp_path, one=("png", encoded(picture(), "PNG")), two=("png", encoded(picture(seed=2), "PNG")))
    boxes = boxes_for(tmp_path, ["one.png", "two.png", "two.png"])
    assert predict(weights_file, tmp_path / "out", paths.values(), "--boxes", boxes) == 0
    assert said(capsys)[1] == []
    found = results(tmp_path / "out")
    assert [r["file_name"] for r in found] == ["one.png", "two.png", "two.png"]
    assert [r["image_id"] for r in found] == [1, 2, 2]
    for result in found:
        assert result["box"] == [10, 5, 40, 60]
        assert len(result["keypoints"]) == 51 and set(result["extra_keypoints"]) == {"neck", "head_top"}
        x, y = np.array(result["keypoints"]).reshape(17, 3)[:, :2].T
        assert (np.abs(x - 30) <= 39).all() and (np.abs(y - 35) <= 39).all()


def test_numbers_that_the_names_spell_are_the_image_ids(tmp_path, weights_file, quick):
    paths = [*write(tmp_path, **{n: ("png", encoded(picture(), "PNG")) for n in ("000042", "7")}).values()]
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps([{"image_id": number, "bbox": [10, 5, 40, 60]} for number in (42, 7)]))
    assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes) == 0
    assert [r["image_id"] for r in results(tmp_path / "out")] == [42, 7]


def test_weak_poses_are_left_out(tmp_path, weights_file, quick):
    paths = write(tmp_path, one=("png", encoded(picture(), "PNG"))).values()
    boxes = boxes_for(tmp_path, ["one.png"])
    assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes, "--min-score", "0.99") == 0
    assert results(tmp_path / "out") == [] and (tmp_path / "out" / "one_poses.jpg").is_file()


def test_pictures_without_people_give_an_empty_result_and_status_0(tmp_path, weights_file, quick, capsys):
    blank = encoded(np.full((90, 80, 3), 99, np.uint8), "PNG")
    paths = write(tmp_path, blank=("png", blank), dot=("png", encoded(picture(1, 1), "PNG"))).values()
    assert predict(weights_file, tmp_path / "out", paths) == 0
    assert results(tmp_path / "out") == []
    assert all(line.endswith("no people found; --boxes takes your own") for line in said(capsys)[1])
    assert read_image(tmp_path / "out" / "blank_poses.jpg").shape == (90, 80, 3)


def test_broken_and_outside_boxes_are_named_and_the_others_are_used(tmp_path, weights_file, quick, capsys):
    paths = write(tmp_path, one=("png", encoded(picture(), "PNG"))).values()
    boxes = tmp_path / "boxes.json"
    entry = {"file_name": "one.png", "bbox": [10, 5, 40, 60]}
    broken = [entry | {"bbox": [float("nan"), 5, 40, 60]}, entry | {"bbox": [10, 5, -40, 60]}]
    boxes.write_text(json.dumps([entry, *broken, entry | {"bbox": [1000, 1000, 40, 60]}]))
    assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes) == 1
    assert len(results(tmp_path / "out")) == 1
    err = said(capsys)[1]
    assert len(err) == 3 and "detection 2" in err[0] and "detection 3" in err[1]
    assert "one.png: 1 of its boxes lie outside the picture" in err[2]


def test_where_the_boxes_file_and_the_pictures_differ_is_said(tmp_path, weights_file, quick, capsys):
    paths = write(tmp_path, one=("png", encoded(picture(), "PNG")), two=("png", encoded(picture(), "PNG"))).values()
    assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes_for(tmp_path, ["one.png", "9.png"])) == 0
    assert [r["file_name"] for r in results(tmp_path / "out")] == ["one.png"]
    err = said(capsys)[1]
    assert len(err) == 2 and "boxes for 1 pictures that were not given, such as 9.png" in err[0]
    assert err[1].endswith("two.png: no people found")


def test_a_picture_too_long_for_a_jpeg_is_named_and_the_others_are_done(tmp_path, weights_file, quick, capsys):
    long = encoded(np.zeros((2, 66_000, 3), np.uint8), "PNG")
    paths = write(tmp_path, a=("png", long), b=("png", encoded(picture(), "PNG"))).values()
    boxes = boxes_for(tmp_path, ["b.png"])
    assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes) == 1
    assert [r["file_name"] for r in results(tmp_path / "out")] == ["b.png"]
    assert any("a_poses.jpg: a JPEG cannot hold 66000 x 2 pixels" in line for line in said(capsys)[1])


def test_a_drawing_that_cannot_be_written_costs_only_itself(tmp_path, weights_file, quick, capsys):
    paths = write(tmp_path, a=("png", encoded(picture(), "PNG")), b=("png", encoded(picture(), "PNG"))).values()
    (tmp_path / "out" / "a_poses.jpg").mkdir(parents=True)
    boxes = boxes_for(tmp_path, ["a.png", "b.png"])
    assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes) == 1
    assert [r["file_name"] for r in results(tmp_path / "out")] == ["a.png", "b.png"]
    assert (tmp_path / "out" / "b_poses.jpg").is_file()


def test_a_drawing_never_replaces_a_picture_of_the_call(tmp_path, weights_file, quick):
    paths = write(tmp_path, a=("jpg", encoded(picture(), "JPEG")), a_poses=("jpg", encoded(picture(), "JPEG")))
    before = paths["a_poses"].read_bytes()
    boxes = boxes_for(tmp_path, ["a.jpg", "a_poses.jpg"])
    assert predict(weights_file, tmp_path, paths.values(), "--boxes", boxes) == 0
    assert paths["a_poses"].read_bytes() == before and (tmp_path / "a_2_poses.jpg").is_file()


def test_a_boxes_file_for_other_pictures_is_a_problem(tmp_path, weights_file, quick, capsys):
    paths = write(tmp_path, one=("png", encoded(picture(), "PNG"))).values()
    assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes_for(tmp_path, ["other.png"])) == 1
    assert "boxes.json: has no boxes for any of the pictures" in said(capsys)[1][0]
    assert results(tmp_path / "out") == []


def test_pictures_of_one_stem_are_drawn_to_files_of_their_own(tmp_path, weights_file, quick):
    places = [("x", "a"), ("y", "a"), ("x", "a_2"), ("z", "a"), ("y", "a_2")]
    paths = [
        write(tmp_path / folder, **{name: ("png", encoded(picture(40 + n, 50), "PNG"))})[name]
        for n, (folder, name) in enumerate(places)
    ]
    boxes = boxes_for(tmp_path, ["none.png", "a.png"])
    assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes) == 0
    drawn = [read_image(path).shape[0] for path in (tmp_path / "out").glob("*.jpg")]
    assert sorted(drawn) == [40, 41, 42, 43, 44]


def test_what_was_done_before_an_interruption_is_written(tmp_path, weights_file, quick, monkeypatch, capsys):
    names = ("one", "two", "three")
    paths = write(tmp_path, **{name: ("png", encoded(picture(), "PNG")) for name in names})

    def read(path):
        if path == paths["two"]:
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(media, "read_image", read)
    boxes = boxes_for(tmp_path, [path.name for path in paths.values()])
    assert predict(weights_file, tmp_path / "out", paths.values(), "--boxes", boxes) == 130
    assert [r["file_name"] for r in results(tmp_path / "out")] == ["one.png"]
    assert said(capsys)[1] == ["rmpe: interrupted"]


@pytest.mark.parametrize(
    ("boxes", "message"), [(None, "no such file"), ("[1,\n2", "malformed JSON at line 2"), ("{}", "expected a list")]
)
def test_a_boxes_file_that_cannot_be_read_is_one_line(tmp_path, weights_file, capsys, boxes, message):
    path = tmp_path / "boxes.json"
    if boxes is not None:
        path.write_text(boxes)
    assert predict(weights_file, tmp_path / "out", [tmp_path / "a.jpg"], "--boxes", path) == 1
    (line,) = said(capsys)[1]
    assert line.startswith(f"rmpe: {path}: ") and message in line


def test_wrong_weights_are_one_line(tmp_path, capsys):
    damaged = tmp_path / "w.safetensors"
    damaged.write_bytes(b"nothing")
    for name, message in ((damaged, "damaged"), ("hourglass-9000", "no such file"), (tmp_path, "no such file")):
        assert predict(name, tmp_path / "out", [tmp_path / "a.jpg"]) == 1
        (line,) = said(capsys)[1]
        assert line.startswith(f"rmpe: {name}: ") and message in line
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_no_folder_is_one_line(tmp_path, weights_file, quick, capsys):
    (tmp_path / "out").write_text("a file")
    paths = write(tmp_path, one=("png", encoded(picture(), "PNG"))).values()
    assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes_for(tmp_path, ["one.png"])) == 1
    assert str(tmp_path / "out") in said(capsys)[1][0]


# Usage


@pytest.mark.parametrize("command", [[], ["predict"], ["train"], ["evaluate"]])
def test_help_is_printed_with_status_0(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0 and capsys.readouterr().out.startswith("usage: rmpe")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["predict"],
        ["predict", "a.jpg", "--min-score", "2"],
        ["predict", "a.jpg", "--min-score", "nan"],
        ["predict", "a.jpg", "--min-score", "high"],
        ["evaluate", "mpii", "--data", "x"],
        ["evaluate", "lspet"],
        ["evaluate", "lspet", "--data", "x", "--limit", "0"],
        ["train", "a.py", "--workers", "-1"],
        ["train", "a.py", "--workers", "two"],
    ],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage: rmpe" in capsys.readouterr().err


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "rmpe_jax.cli", "--version"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("rmpe_jax ")


# train


@pytest.fixture(scope="module")
def experiment_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    path.write_text(EXPERIMENT)
    write_lspet(path.parent, labels=lsp_labels(20))
    return path


def train(experiment_file, out, *assignments):
    settings = [f"data.lspet={experiment_file.parent}", *assignments]
    options = [text for setting in settings for text in ("--set", setting)]
    return main(["train", str(experiment_file), "--out", str(out), "--workers", "1", *options])


@pytest.mark.slow
def test_a_run_that_was_stopped_twice_equals_one_that_was_not(tmp_path, experiment_file, monkeypatch, capsys):
    compiled = {}
    # A step is a pure function of the experiment: the runs here share its compiled form.
    monkeypatch.setattr(
        loop, "pmap_step", lambda step: compiled.setdefault(step.keywords["experiment"], pmap_step(step))
    )
    before = signal.getsignal(signal.SIGTERM)
    assert train(experiment_file, tmp_path / "whole") == 0
    assert said(capsys)[0][-1] == f"weights: {tmp_path / 'whole' / 'tiny.safetensors'}"

    positions, steps = loop.training_positions, []

    def watched(*arguments, seed, step):
        steps.append(step)
        if step == 2 and len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == 5 and len(steps) == 6:
            raise KeyboardInterrupt
        return positions(*arguments, seed=seed, step=step)

    monkeypatch.setattr(loop, "training_positions", watched)
    assert train(experiment_file, tmp_path / "parts") == 1
    assert said(capsys)[1][-1] == "rmpe: asked to stop; saved after step 3, the same command goes on from there"
    assert train(experiment_file, tmp_path / "parts") == 130
    assert not (tmp_path / "parts" / "tiny.safetensors").exists()
    assert train(experiment_file, tmp_path / "parts") == 0
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5]
    assert len(compiled) == 1 and signal.getsignal(signal.SIGTERM) is before

    whole, parts = (load_weights(tmp_path / out / "tiny.safetensors") for out in ("whole", "parts"))
    assert_identical(parts.variables, whole.variables)
    assert parts.experiment == whole.experiment and whole.experiment.data.lspet == ""
    rows = list(csv.DictReader((tmp_path / "whole" / "log.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6, 6]
    assert all(np.isfinite(float(row["loss"])) for row in rows[:-1]) and 0 <= float(rows[-1]["validation_pck"]) <= 1

    # A finished run is not trained again, and other settings are not mixed into it.
    assert train(experiment_file, tmp_path / "whole") == 0
    capsys.readouterr()
    assert train(experiment_file, tmp_path / "whole", "optim.learning_rate=0.5") == 1
    assert "optim.learning_rate: 0.01 against 0.5" in said(capsys)[1][-1]
    assert len(steps) == 8


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.layers=2", "no setting 'layers'"),
        ("optim.batch=many", "'optim.batch=many': expected int"),
        ("optim.batch", "expected name=value"),
        ("optim.batch=6", "optim.batch: 6 people cannot be split evenly over 4 devices"),
        ("optim.batch=0", "batch must be at least 1, got 0"),
        ("optim.batch=400", "a batch of 400 people is larger than the 19 people"),
        ("data.lspet=", "data.lspet or data.coco"),
        ("data.lspet=nowhere", "nowhere/lspet_dataset.zip: no such file"),
        ("data.coco=nowhere", "nowhere/annotations/person_keypoints_train2017.json: no such file"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, experiment_file, capsys, assignment, message):
    assert train(experiment_file, tmp_path / "out", assignment) == 1
    err = said(capsys)[1]
    assert err[-1].startswith("rmpe: ") and message in err[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such experiment file"), ("experiment = 3", "defines no `experiment`"), ("", "defines no `experiment`")],
)
def test_a_file_without_an_experiment_is_named(tmp_path, capsys, content, message):
    path = tmp_path / "e.py"
    if content is not None:
        path.write_text(content)
    assert main(["train", str(path), "--out", str(tmp_path / "out")]) == 1
    (line,) = said(capsys)[1]
    assert line.startswith(f"rmpe: {path}: ") and message in line
    assert not (tmp_path / "out").exists()


# evaluate


class Perfect(Estimator):
    """Knows the figure that fills every box of the made data, in ``joints``."""

    def __init__(self, weights, skeleton, *, grown=0.0):
        super().__init__(weights, nms=None, detector=lambda image: Boxes.from_arrays(ALL_BOXES))
        self._skeleton, self._grown = skeleton, grown

    @property
    def skeleton(self):
        return self._skeleton

    def poses_in_boxes(self, image, boxes):
        corner, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        margin = size * self._grown / (1 + self._grown) / 2
        inner = np.concatenate([corner + margin, corner + size - margin], 1)
        points = np.array([figure(self.skeleton.joints, box) for box in inner]).reshape(-1, self.skeleton.size, 2)
        score = jnp.ones(points.shape[:2])
        return Poses(jnp.asarray(points, jnp.float32), score, jnp.asarray(boxes), jnp.ones(len(boxes), bool))


ALL_BOXES = [(10.0, 5.0, 60.0, 90.0), (90.0, 15.0, 140.0, 85.0)]


def last_json(capsys):
    return json.loads(said(capsys)[0][-1])


def test_evaluation_on_lspet_ends_with_one_json_object(tmp_path, weights_file, quick, capsys):
    write_lspet(tmp_path)
    assert main(["evaluate", "lspet", "--data", str(tmp_path), "--weights", str(weights_file), "--json", "-"]) == 0
    result = last_json(capsys)
    assert (result["dataset"], result["split"], result["people"]) == ("lspet", "val", 2)
    assert all(0 <= result[name] <= 1 for name in ("pck", "mean_pose_pck", "random_pck"))
    assert list(result["pck_per_joint"]) == list(LSP_14.joints)


def test_evaluation_on_coco_ends_with_one_json_object(tmp_path, weights_file, quick, capsys):
    write_coco(tmp_path)
    command = ["evaluate", "coco", "--data", str(tmp_path), "--weights", str(weights_file)]
    assert main([*command, "--json", "-"]) == 0
    result = last_json(capsys)
    assert (result["split"], result["boxes"], result["pictures"], result["poses"]) == ("val2017", "gt", 3, 6)
    assert all(0 <= result[name] <= 1 for name in ("ap", "ap50", "ar", "limb_pck"))
    assert main([*command, "--limit", "1", "--json", str(tmp_path / "new" / "result.json")]) == 0
    assert json.loads((tmp_path / "new" / "result.json").read_text())["pictures"] == 1


def test_evaluation_without_anybody_counts_nothing(tmp_path, weights_file, quick, capsys):
    write_coco(tmp_path, annotations=[coco_annotation(1, 3, ALL_BOXES[0])])
    command = ["evaluate", "coco", "--data", str(tmp_path), "--weights", str(weights_file), "--limit", "2"]
    assert main([*command, "--json", "-"]) == 0
    result = last_json(capsys)
    assert result["poses"] == 0 and result["ap"] == 0 and result["limb_pck"] is None


@pytest.mark.parametrize("dataset", ["lspet", "coco"])
def test_a_missing_data_set_is_one_line(tmp_path, weights_file, quick, capsys, dataset):
    command = ["evaluate", dataset, "--data", str(tmp_path / "none"), "--weights", str(weights_file)]
    assert main(command) == 1
    (line,) = said(capsys)[1]
    assert str(tmp_path / "none") in line and "no such file" in line


def test_lspet_without_validation_people_is_an_error(tmp_path, weights_file, quick, capsys):
    write_lspet(tmp_path, labels=lsp_labels(5))
    assert main(["evaluate", "lspet", "--data", str(tmp_path), "--weights", str(weights_file)]) == 1
    assert "no labelled people in the validation" in said(capsys)[1][-1]


def test_broken_boxes_stop_an_evaluation(tmp_path, weights_file, quick, capsys):
    write_coco(tmp_path)
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps([{"image_id": 1, "bbox": [1, 2, 3]}]))
    command = ["evaluate", "coco", "--data", str(tmp_path), "--weights", str(weights_file), "--boxes", str(boxes)]
    assert main(command) == 1
    assert "detection 1" in said(capsys)[1][-1]


@pytest.mark.parametrize("boxes", ["gt", "detector", "file"])
def test_the_truth_itself_has_an_ap_of_1(tmp_path, tiny_weights, boxes):
    write_coco(tmp_path)
    given = boxes
    if boxes == "file":
        entries = [
            {"image_id": n, "bbox": [x, y, u - x, v - y], "score": 0.9} for n in (1, 2, 3) for x, y, u, v in ALL_BOXES
        ]
        given = str(tmp_path / "boxes.json")
        Path(given).write_text(json.dumps(entries))
    result = evaluate_coco(Perfect(tiny_weights, COCO_17), tmp_path, "val2017", boxes=given)
    assert result["ap"] == result["ap50"] == result["ar"] == 1
    assert result.get("limb_pck", 1) == 1 and ("limb_pck" in result) == (boxes == "gt")


def test_misplaced_poses_have_an_ap_of_0(tmp_path, tiny_weights):
    write_coco(tmp_path)
    estimator = Perfect(tiny_weights, COCO_17)
    estimator.detector = lambda image: Boxes.from_arrays(np.array(ALL_BOXES) + 300)
    assert evaluate_coco(estimator, tmp_path, "val2017", boxes="detector")["ap"] == 0


def test_the_truth_itself_has_a_pck_of_1(tmp_path, tiny_weights):
    labels = lsp_labels()
    labels[..., 2] = 1
    write_lspet(tmp_path, labels=labels)
    result = evaluate_lspet(Perfect(tiny_weights, LSP_14, grown=0.1), tmp_path)
    # All made figures have one pose: the mean pose is as good.
    assert result["pck"] == result["mean_pose_pck"] == 1 and set(result["pck_per_joint"].values()) == {1.0}
    assert result["random_pck"] < 0.5 and result["people_without_torso"] == 0


def test_people_without_a_torso_do_not_count(tmp_path, tiny_weights):
    labels = lsp_labels()
    for joint in ("right_hip", "left_hip"):
        labels[19, LSP_14.joints.index(joint), 2] = 0
    labels[39, :, 2] = 1
    write_lspet(tmp_path, labels=labels)
    result = evaluate_lspet(Perfect(tiny_weights, LSP_14, grown=0.1), tmp_path)
    assert result["people_without_torso"] == 1 and result["pck"] == 1
