import copy
import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from checks import assert_identical
from made_data import (
    TWO_PLACES,
    coco_annotation,
    detections,
    encoded,
    figure,
    lsp_labels,
    picture,
    write_coco,
    write_lspet,
)
from PIL import Image

from rmpe_jax.cli import _parser, main
from rmpe_jax.data.images import read_image
from rmpe_jax.data.sets import DATA_SETS
from rmpe_jax.evaluate import fit_proposals as fit_proposals_module
from rmpe_jax.evaluate import fit_report
from rmpe_jax.models.proposal_scorer import apply_scorer, init_scorer
from rmpe_jax.nms.pose import PoseNMSParameters
from rmpe_jax.predict import detectors, media
from rmpe_jax.predict import estimator as estimator_module
from rmpe_jax.predict.detectors import detect_with_hog
from rmpe_jax.predict.person_detector import PersonDetector
from rmpe_jax.pretrained import (
    load_nms,
    load_proposals,
    load_weights,
    read_arrays,
    save_nms,
    save_proposals,
    save_weights,
)
from rmpe_jax.proposals.generators import Law
from rmpe_jax.proposals.mixtures import OffsetMixtures
from rmpe_jax.proposals.scored import ScoredProposals
from rmpe_jax.records import Boxes
from rmpe_jax.skeleton import COCO_17, LSP_14, joint_map
from rmpe_jax.train import loop, plan
from rmpe_jax.train.checkpoint import Best, Checkpoints, Saved
from rmpe_jax.train.parallel import ParallelStep, pmap_step
from rmpe_jax.train.state import TrainState

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
    """Commands share one compiled estimator, without flip test, and without NMS unless it is asked for."""

    def load(name, *, detector=None, flip_test=True, decoder=None, smallest_score=None, nms=None):
        assert decoder is None and (detector in (None, detect_with_hog) or isinstance(detector, PersonDetector))
        load_weights(name)
        shared = copy.copy(tiny_estimator)
        shared.smallest_score = smallest_score
        if nms is not None:
            shared._keep = jax.jit(partial(estimator_module.keep_distinct, nms=nms))
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


def test_a_file_is_a_detector_too(tmp_path, weights_file, quick, capsys):
    paths = write(tmp_path, one=("png", encoded(picture(), "PNG"))).values()
    boxes = boxes_for(tmp_path, ["one.png"])
    assert predict(weights_file, tmp_path / "a", paths, "--boxes", boxes) == 0
    assert predict(weights_file, tmp_path / "b", paths, "--detector", f"file:{boxes}") == 0
    assert results(tmp_path / "a") == results(tmp_path / "b") != []
    assert said(capsys)[1] == []


def test_as_many_people_as_the_detector_can_give_are_told(tmp_path, tiny_estimator):
    class Crowd:
        capacity = 3

        def __call__(self, image):
            return Boxes.from_arrays([[0, 0, 30, 60]] * 3 if image.shape[0] > 50 else [[0, 0, 30, 40]] * 2)

    paths = [
        *write(tmp_path, many=("png", encoded(picture(), "PNG")), few=("png", encoded(picture(40, 40), "PNG"))).values()
    ]
    estimator = copy.copy(tiny_estimator)
    estimator.detector = Crowd()
    told = []
    report = media.predict_pictures(estimator, paths, tmp_path / "out", tell=told.append)
    assert told == report.notes == [f"{paths[0]}: as many people as the detector gives, the 3 of highest score"]
    assert (report.poses, report.problems) == (5, [])


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


ALONE = PoseNMSParameters(eta=-1.0)  # everybody but the best goes


def test_the_nms_is_one_by_name_or_that_of_a_file(tmp_path, weights_file, quick, capsys):
    paths = write(tmp_path, one=("png", encoded(picture(96, 160), "PNG"))).values()
    boxes = tmp_path / "boxes.json"
    places = [[10, 5, 40, 60], [10, 5, 40, 60], [100, 20, 50, 70]]
    boxes.write_text(json.dumps([{"file_name": "one.png", "bbox": place} for place in places]))
    save_nms(tmp_path / "nms.json", ALONE)
    for nms, count in (("none", 3), ("default", 2), (tmp_path / "nms.json", 1)):
        assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes, "--nms", nms) == 0
        assert len(results(tmp_path / "out")) == count, nms
    assert said(capsys)[1] == []


def test_without_nms_duplicates_stay_and_else_they_go(tmp_path, weights_file):
    # The command itself: nothing here is shared with other tests.
    paths = write(tmp_path, one=("png", encoded(picture(), "PNG"))).values()
    boxes = boxes_for(tmp_path, ["one.png", "one.png"])
    for options, count in ((["--nms", "none"], 2), ([], 1)):
        assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes, "--no-flip", *options) == 0
        assert len(results(tmp_path / "out")) == count


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file, and not one of none, default, paper, released, alphapose"),
        ("{,", "malformed JSON at line 1"),
        ("{}", "not parameters of the pose NMS"),
        ('{"format": "rmpe_jax.pose_nms.1", "parameters": {"sigma1": -1}}', "sigma1 must be positive, got -1"),
    ],
)
@pytest.mark.parametrize("command", [["predict", "a.jpg"], ["evaluate", "coco"]])
def test_a_wrong_nms_is_one_line(tmp_path, weights_file, capsys, command, content, message):
    path = tmp_path / "nms.json"
    if content is not None:
        path.write_text(content)
    assert main([*command, "--weights", str(weights_file), "--nms", str(path)]) == 1
    (line,) = said(capsys)[1]
    assert line.startswith(f"rmpe: {path}: ") and message in line


# Usage


COMMANDS = [[], ["predict"], ["train"], ["evaluate"], ["compare"], ["fit-nms"], ["fit-proposals"], ["data"]]
COMMANDS += [["data", verb] for verb in ("list", "prepare", "show")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
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
        ["evaluate"],
        ["evaluate", "lspet", "--data", "x", "--limit", "0"],
        ["evaluate", "lspet", "--replicates", "-1"],
        ["evaluate", "lspet", "--replicates", "1.5"],
        ["compare", "a.json"],
        ["fit-nms"],
        ["fit-nms", "--detections", "a.json", "--grid", "1"],
        ["fit-nms", "--detections", "a.json", "--grid", "65"],
        ["fit-nms", "--detections", "a.json", "--folds", "-1"],
        ["fit-nms", "--detections", "a.json", "--folds", "some"],
        ["fit-nms", "--detections", "a.json", "--seed", "-1"],
        ["fit-nms", "--detections", "a.json", "--seed", str(2**32)],
        ["fit-proposals"],
        ["fit-proposals", "--data", "x", "--atoms", "0"],
        ["fit-proposals", "--data", "x", "--seed", "-1"],
        ["fit-proposals", "--data", "x", "--seed", str(2**32)],
        ["fit-proposals", "--data", "x", "--kind", "neither"],
        ["fit-proposals", "--data", "x", "--steps", "0"],
        ["fit-proposals", "--data", "x", "--steps", "few"],
        ["data"],
        ["data", "fly"],
        ["data", "prepare"],
        ["data", "show", "coco", "--count", "0"],
        ["data", "show", "coco", "--seed", "x"],
        ["train", "a.py", "--workers", "-1"],
        ["train", "a.py", "--workers", "two"],
        ["train", "a.py", "--memory", "-1"],
        ["train", "a.py", "--memory", "inf"],
        ["train", "a.py", "--memory", "nan"],
    ],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage: rmpe" in capsys.readouterr().err


def test_settings_of_a_run_have_defaults():
    options = _parser().parse_args(["train", "a.py", "--memory", "0", "--processes"])
    assert (options.memory, options.processes, options.workers) == (0.0, True, 2)
    options = _parser().parse_args(["train", "a.py"])
    assert (options.memory, options.processes, options.out) == (8.0, False, None)
    options = _parser().parse_args(["evaluate", "coco"])
    assert (options.data, options.replicates, options.boxes, options.limit) == (".", 1000, None, None)
    assert options.nms is None
    options = _parser().parse_args(["fit-nms", "--detections", "a.json"])
    assert (options.out, options.sheet, options.preset) == ("nms.json", None, "default")
    assert (options.grid, options.folds, options.seed, options.data, options.split) == (16, 5, 0, ".", None)
    options = _parser().parse_args(["fit-proposals", "--data", "x"])
    assert (options.out, options.sheet, options.dataset, options.split) == ("proposals.npz", None, "coco", None)
    assert (options.atoms, options.seed, options.detections, options.poses) == (24, 0, None, None)
    assert (options.kind, options.steps) == ("both", 2000)
    options = _parser().parse_args(["data", "prepare", "coco", "--split", "a", "--split", "b"])
    assert options.splits == ["a", "b"]


def test_the_package_runs_as_its_command():
    done = subprocess.run(
        [sys.executable, "-m", "rmpe_jax", "--version"],
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


def train(experiment_file, out, *assignments, memory="1"):
    settings = [f"data.lspet={experiment_file.parent}", *assignments]
    options = [text for setting in settings for text in ("--set", setting)]
    return main(["train", str(experiment_file), "--out", str(out), "--workers", "1", "--memory", memory, *options])


@pytest.mark.slow
def test_a_run_that_was_stopped_twice_equals_one_that_was_not(tmp_path, experiment_file, monkeypatch, capsys):
    compiled, steps = {}, []

    def watched(step):
        # A step is a pure function of the experiment: the runs here share its compiled form.
        take = compiled.setdefault(step.keywords["experiment"], pmap_step(step))

        def take_watched(state, batch, key):
            steps.append(int(state.step))
            if steps[6:] == [0, 1, 2]:
                os.kill(os.getpid(), signal.SIGTERM)
            if steps[6:] == [0, 1, 2, 3, 4, 5]:
                raise KeyboardInterrupt
            return take(state, batch, key)

        return ParallelStep(lambda *arguments: arguments, take_watched)

    monkeypatch.setitem(plan.MAPPINGS, "pmap", watched)
    before = signal.getsignal(signal.SIGTERM)
    assert train(experiment_file, tmp_path / "whole") == 0
    assert said(capsys)[0][-1] == f"weights: {tmp_path / 'whole' / 'tiny.safetensors'}"

    assert train(experiment_file, tmp_path / "parts") == 1
    assert said(capsys)[1][-1] == "rmpe: asked to stop; saved after step 3, the same command goes on from there"
    # What is kept in memory changes nothing either.
    assert train(experiment_file, tmp_path / "parts", memory="0") == 130
    assert not (tmp_path / "parts" / "tiny.safetensors").exists()
    assert train(experiment_file, tmp_path / "parts") == 0
    assert steps == [0, 1, 2, 3, 4, 5] + [0, 1, 2] + [3, 4, 5] + [4, 5]
    assert len(compiled) == 1 and signal.getsignal(signal.SIGTERM) is before

    whole, parts = (load_weights(tmp_path / out / "tiny.safetensors") for out in ("whole", "parts"))
    assert_identical(parts.variables, whole.variables)
    assert parts.experiment == whole.experiment and whole.experiment.data.lspet == ""
    logs = [(tmp_path / out / "log.csv").read_text().splitlines() for out in ("whole", "parts")]
    rows, others = (list(csv.DictReader(lines)) for lines in logs)
    columns = ["step", "loss", "accuracy", "learning_rate", "gradient_norm", "images_per_second", "validation_pck"]
    columns += ["left_out", "validation_recall"]
    assert list(rows[0]) == columns and [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6, 6]
    assert [row["left_out"] for row in rows] == ["0"] * 6 + [""]
    columns.remove("images_per_second")
    assert [[row[name] for name in columns] for row in rows] == [[row[name] for name in columns] for row in others]
    assert all(np.isfinite(float(row["loss"])) for row in rows[:-1]) and 0 <= float(rows[-1]["validation_pck"]) <= 1

    # A finished run is not trained again, and other settings are not mixed into it.
    assert train(experiment_file, tmp_path / "whole") == 0
    capsys.readouterr()
    assert train(experiment_file, tmp_path / "whole", "optim.learning_rate=0.5") == 1
    assert "optim.learning_rate: 0.01 against 0.5" in said(capsys)[1][-1]
    assert len(steps) == 14


SCORES = [0.1, 0.4, 0.3, 0.4, 0.2, 0.0]


@pytest.fixture
def made_up_steps(monkeypatch):
    """Steps that add one to every weight, and scores of which the second is the highest; nothing is compiled."""
    metrics = dict.fromkeys(["loss", "accuracy", "learning_rate", "gradient_norm"], jax.numpy.array(0.5))

    def take(state, batch, key):
        return jax.tree.map(lambda leaf: leaf + 1, state), metrics

    made_up = {
        "__init__": lambda self, *_, **__: setattr(self, "people", "some"),
        "weights_of": lambda self, state: int(state.step),
        "score": lambda self, step: SCORES[step - 1],
        "sheet": lambda self, step: np.zeros((4, 4, 3), np.uint8),
    }
    for name, method in made_up.items():
        monkeypatch.setattr(loop.Validation, name, method)
    monkeypatch.setitem(plan.MAPPINGS, "pmap", lambda step: ParallelStep(lambda *arguments: arguments, take))


def first_kernel(path):
    variables = load_weights(path).variables
    return jax.tree.leaves(variables["params"])[0]


def test_the_best_weights_are_written_beside_the_last(tmp_path, experiment_file, made_up_steps):
    assert train(experiment_file, tmp_path / "out", "run.evaluate_every=1") == 0
    last, best = (first_kernel(tmp_path / "out" / name) for name in ("tiny.safetensors", "tiny-best.safetensors"))
    np.testing.assert_allclose(last - best, 6 - 2, rtol=1e-5)
    # A finished run writes them again.
    (tmp_path / "out" / "tiny-best.safetensors").unlink()
    assert train(experiment_file, tmp_path / "out", "run.evaluate_every=1") == 0
    np.testing.assert_array_equal(first_kernel(tmp_path / "out" / "tiny-best.safetensors"), best)


def test_a_run_without_room_for_its_checkpoints_ends_before_its_first_step(
    tmp_path, experiment_file, made_up_steps, monkeypatch, capsys
):
    def never(*_):
        raise AssertionError("a step was taken")

    monkeypatch.setitem(plan.MAPPINGS, "pmap", lambda step: ParallelStep(never, never))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert train(experiment_file, tmp_path / "out") == 1
    (line,) = [line for line in said(capsys)[1] if line.startswith("rmpe: ")]
    assert re.fullmatch(f"rmpe: {tmp_path}/out: no space left .* need [0-9,]+ bytes, of which 1,000 are free", line)


@pytest.mark.parametrize("name", ["checkpoints", "best"])
def test_a_run_whose_checkpoints_cannot_be_written_ends_before_its_first_step(tmp_path, experiment_file, name, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("a file")
    assert train(experiment_file, tmp_path / "out") == 1
    place = tmp_path / "out" / name
    assert said(capsys)[1][-1] == f"rmpe: {place}: checkpoints cannot be written there: is not a folder"


def test_other_people_than_those_of_the_checkpoints_are_refused(tmp_path, experiment_file, made_up_steps, capsys):
    assert train(experiment_file, tmp_path / "out") == 0
    fewer = tmp_path / "fewer"
    write_lspet(fewer, labels=lsp_labels(16))
    assert train(experiment_file, tmp_path / "out", f"data.lspet={fewer}") == 1
    assert re.search(r"a run on other data: \d+ people against \d+$", said(capsys)[1][-1])


@pytest.mark.parametrize(("held", "expected"), [([2], Best(0.5, 2)), ([], None)])
def test_a_best_score_without_its_checkpoint_is_forgotten(tmp_path, tiny_experiment, held, expected):
    def state_after(step):
        return TrainState(jax.numpy.array(step), {}, {}, ())

    with Checkpoints(tmp_path) as best:
        for step in [*held, 5]:
            best.save(state_after(step), tiny_experiment)
        best.wait()
        assert loop._best_again(best, Saved(state_after(4), Best(0.5, 2)), tiny_experiment) == expected
        assert [step for step in range(6) if best.holds(step)] == held
        # Of this very step it can be saved again.
        now = Best(0.6, 4)
        assert loop._best_again(best, Saved(state_after(4), now), tiny_experiment) == now and best.holds(4)


@pytest.mark.parametrize(
    ("raised", "processes", "line"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory", 1, "the device ran out of memory at batch 4; a smaller optim.batch, "),
        ("INTERNAL: the device is lost\nat line 5", 1, "rmpe: INTERNAL: the device is lost"),
        ("INTERNAL: the device is lost", 2, "rmpe: INTERNAL: the device is lost"),
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", 2, "the processes lost each other; the run "),
        ("UNAVAILABLE: The following tasks are unhealthy", 2, "the processes lost each other; the run goes on"),
    ],
)
@pytest.mark.parametrize(
    ("place", "options"), [("first_state", []), ("training_people", []), ("training_people", ["--dry-run"])]
)
def test_a_failure_of_a_device_is_explained_wherever_it_comes(
    tmp_path, experiment_file, monkeypatch, capsys, place, options, raised, processes, line
):
    def fail(*_):
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        raise jax.errors.JaxRuntimeError(raised)

    monkeypatch.setattr(plan.Plan if place == "first_state" else plan, place, fail)
    settings = ["--set", f"data.lspet={experiment_file.parent}", "--out", str(tmp_path / "out")]
    assert main(["train", str(experiment_file), *settings, *options]) == 1
    found = said(capsys)[1][-1]
    assert line in found and found.count("rmpe: ") == 1


@pytest.mark.parametrize("platform", ["rocm", "nonsense"])
def test_a_machine_without_the_device_that_is_asked_for_is_told_in_one_line(tmp_path, experiment_file, platform):
    command = [sys.executable, "-m", "rmpe_jax", "train", str(experiment_file), "--out", str(tmp_path / "out")]
    command += ["--set", f"data.lspet={experiment_file.parent}"]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": platform}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"rmpe: JAX finds no device of JAX_PLATFORMS={platform} here")
    assert "Traceback" not in done.stderr


def test_other_errors_of_the_program_are_not_called_a_missing_device(monkeypatch, experiment_file):
    monkeypatch.setattr("rmpe_jax.cli.train.read_experiment", lambda *_: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        main(["train", str(experiment_file)])


def test_somebody_without_a_home_keeps_no_programs(monkeypatch, capsys):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert main(["data", "list"]) == 0 and said(capsys)[0]
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.layers=2", "no setting 'layers'"),
        ("optim.batch=many", "'optim.batch=many': expected int"),
        ("optim.batch", "expected name=value"),
        ("optim.batch=6", "optim.batch: 6 people cannot be split evenly over 4 devices"),
        ("optim.batch=0", "batch must be at least 1, got 0"),
        ("optim.batch=400", "a batch of 400 people is larger than the 19 people"),
        ("data.lspet=", "no training data: set one of data."),
        ("data.lspet=nowhere", "nowhere: no such folder"),
        ("data.coco=nowhere", "nowhere: no such folder"),
        ("augment.proposals=detector", "proposals must be one of jitter, alphapose_global, "),
        ("augment.proposals=nowhere.npz", "nowhere.npz: no such file, and not one of alphapose_global, harsh, exact, "),
        ("augment.proposals=dpg-nobody", "dpg-nobody: no such file, and not one of alphapose_global, harsh, exact, "),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, experiment_file, capsys, assignment, message):
    assert train(experiment_file, tmp_path / "out", assignment) == 1
    err = said(capsys)[1]
    assert err[-1].startswith("rmpe: ") and message in err[-1]


def law_file(path):
    """A file of proposals: standing people's boxes miss the legs."""
    atoms = (figure(LSP_14.joints, (-0.5, -1.2, 0.5, 2)) * np.ones((2, 1, 1))).astype(np.float32)
    mean = np.tile(np.array([0, 0, 0, -0.5], np.float32), (3, 1, 1))
    factor = np.tile(np.eye(4, dtype=np.float32) / 100, (3, 1, 1, 1))
    arrays: Any = (atoms, np.ones((3, 1), np.float32), mean, factor)
    save_proposals(path, OffsetMixtures(*arrays, skeleton="lsp_14"))
    return path


def test_a_run_takes_the_generator_that_its_settings_name(tmp_path, tiny_experiment):
    path = law_file(tmp_path / "law.npz")

    def generator(name):
        augment = dataclasses.replace(tiny_experiment.augment, proposals=name)
        return plan.read_generator(dataclasses.replace(tiny_experiment, augment=augment))

    assert generator("jitter") is None and generator("uniform") == Law("uniform")
    law = generator(str(path))
    # In the skeleton of the run, which has joints that the file's lacks.
    assert isinstance(law, OffsetMixtures) and law.skeleton == "coco_lsp_19"
    assert np.isnan(law.atoms).all((0, 2)).sum() == 5
    order = tuple(range(14))
    save_proposals(path, ScoredProposals(init_scorer(jax.random.key(0)), apply_scorer, "lsp_14", order))
    scored = generator(str(path))
    # The joints of its pictures are the file's, found in the run's.
    assert isinstance(scored, ScoredProposals) and scored.skeleton == "lsp_14"
    assert scored.order == joint_map(tiny_experiment.joints, LSP_14)


@pytest.mark.slow
def test_a_run_learns_from_the_proposals_of_a_file(tmp_path, experiment_file, monkeypatch, capsys):
    seen = []

    def watched(step):
        seen.append(step.keywords["generator"])
        return pmap_step(step)

    monkeypatch.setitem(plan.MAPPINGS, "pmap", watched)
    path = law_file(tmp_path / "law.npz")
    assert train(experiment_file, tmp_path / "out", f"augment.proposals={path}", "optim.steps=1", "optim.warmup=0") == 0
    assert said(capsys)[0][-1] == f"weights: {tmp_path / 'out' / 'tiny.safetensors'}"
    assert [law.skeleton for law in seen] == ["coco_lsp_19"]
    assert load_weights(tmp_path / "out" / "tiny.safetensors").experiment.augment.proposals == "law.npz"


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


def evaluate(weights_file, name, folder, *more):
    command = ["evaluate", name, "--data", str(folder), "--weights", str(weights_file), "--replicates", "0"]
    return main([*command, *(str(option) for option in more)])


def last_json(capsys):
    return json.loads(said(capsys)[0][-1])


def test_evaluation_on_lspet_ends_with_one_json_object(tmp_path, weights_file, quick, capsys):
    write_lspet(tmp_path)
    assert evaluate(weights_file, "lspet", tmp_path, "--replicates", "4", "--json", "-") == 0
    out, _ = said(capsys)
    result = json.loads(out[-1])
    assert (result["dataset"], result["split"], result["protocol"], result["people"]) == ("lspet", "val", "pck", 2)
    assert all(0 <= result[name] <= 1 for name in ("pck", "mean_pose_pck", "random_pck"))
    assert list(result["pck_per_joint"]) == list(LSP_14.joints)
    assert result["intervals"]["pck"][0] <= result["pck"] <= result["intervals"]["pck"][1]
    # Before it the table for people: a header, the numbers, their intervals.
    place = out.index("PCK@0.2 of the torso")
    assert out[place + 1].split()[-1] == "Mean" and out[place + 2].startswith("tiny") and "95 %" in out[place + 3]


@pytest.mark.slow
def test_results_are_written_where_they_are_wanted(tmp_path, weights_file, quick, capsys):
    write_coco(tmp_path)
    wanted = {name: tmp_path / "new" / name for name in ("result.json", "table.md", "poses.json")}
    options = ["--json", wanted["result.json"], "--markdown", wanted["table.md"]]
    assert evaluate(weights_file, "coco", tmp_path, *options, "--save-predictions", wanted["poses.json"]) == 0
    assert said(capsys)[0][0] == "dataset: coco"
    result = json.loads(wanted["result.json"].read_text())
    assert (result["split"], result["boxes"], result["pictures"], result["poses"]) == ("val2017", "gt", 3, 6)
    assert all(0 <= result[name] <= 1 for name in ("ap", "ap50", "ar", "limb_pck"))
    assert "| tiny |" in wanted["table.md"].read_text() and "| AP | AP50 |" in wanted["table.md"].read_text()
    assert len(json.loads(wanted["poses.json"].read_text())) == 6

    command = ["evaluate", "coco", "--data", str(tmp_path), "--predictions", str(wanted["poses.json"])]
    assert main([*command, "--replicates", "0", "--limit", "1", "--json", "-"]) == 0
    limited = last_json(capsys)
    assert limited["pictures"] == 1 and limited["weights"] == "poses.json" and "intervals" not in limited


def test_an_unreadable_picture_is_status_1_and_the_result_is_there(tmp_path, weights_file, quick, capsys):
    write_coco(tmp_path)
    (tmp_path / "val2017" / "000000000002.jpg").write_bytes(b"dear diary")
    assert evaluate(weights_file, "coco", tmp_path, "--json", tmp_path / "result.json") == 1
    out, err = said(capsys)
    told = [line for line in err if line.startswith("rmpe: ")]
    assert len(told) == 1 and "000000000002.jpg" in told[0]
    assert "unreadable: 1" in out and json.loads((tmp_path / "result.json").read_text())["poses"] == 4


def test_evaluation_without_anybody_counts_nothing(tmp_path, weights_file, quick, capsys):
    write_coco(tmp_path, annotations=[coco_annotation(1, 3, (10.0, 5.0, 60.0, 90.0))])
    assert evaluate(weights_file, "coco", tmp_path, "--limit", "2", "--json", "-") == 0
    result = last_json(capsys)
    assert result["poses"] == 0 and result["ap"] is None and "limb_pck" not in result


@pytest.mark.parametrize("dataset", ["lspet", "coco", "mpii"])
def test_a_missing_data_set_is_one_line(tmp_path, weights_file, quick, capsys, dataset):
    assert evaluate(weights_file, dataset, tmp_path / "none") == 1
    (line,) = said(capsys)[1]
    assert line.startswith(f"rmpe: {tmp_path / 'none'}: no such folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mpi"], "unknown data set 'mpi'; known: coco, crowdpose, flic, lsp, lspet, mpii, synthetic, waf"),
        (["lspet"], "no pictures"),
        (["lspet", "--split", "test"], "LSPET has the splits train and val, not 'test'"),
        (["lspet", "--protocol", "oks"], "lspet has the protocols pck, not 'oks'"),
        (["lspet", "--boxes", "detector"], "--boxes detector has no use"),
        (["coco"], "person_keypoints_val2017.json: malformed JSON at line 1"),
        (["coco", "--split", "val2014"], "has no annotations/person_keypoints_val2014.json"),
        (["synthetic", "--boxes", "none.json"], "none.json: no such file"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, weights_file, quick, capsys, arguments, message):
    write_lspet(tmp_path, labels=lsp_labels(5))
    damaged = write_coco(tmp_path)
    damaged.write_text(damaged.read_text()[:500])
    assert evaluate(weights_file, arguments[0], tmp_path, *arguments[1:]) == 1
    (line,) = said(capsys)[1]
    assert line.startswith("rmpe: ") and message in line


@pytest.mark.slow
def test_what_the_nms_removes_is_not_measured(tmp_path, weights_file, quick, capsys):
    write_coco(tmp_path)
    boxes, poses = tmp_path / "boxes.json", []
    entry = {"bbox": [10.0, 5.0, 50.0, 85.0], "score": 0.9}
    boxes.write_text(json.dumps([entry | {"image_id": number} for number in (1, 1, 2)]))
    save_nms(tmp_path / "nms.json", ALONE)
    for nms in ("none", "default", tmp_path / "nms.json"):
        assert evaluate(weights_file, "coco", tmp_path, "--boxes", boxes, "--nms", nms, "--json", "-") == 0
        poses.append(last_json(capsys)["poses"])
    assert poses == [3, 2, 2]


def test_a_detector_that_had_no_use_is_told(tmp_path, weights_file, quick, capsys):
    write_coco(tmp_path)
    assert evaluate(weights_file, "coco", tmp_path, "--detector", "hog") == 0
    told = [line for line in said(capsys)[1] if line.startswith("rmpe: ")]
    assert told == ["rmpe: --detector had no use: say --boxes detector to measure with its boxes"]


def test_an_nms_that_had_no_use_is_told(tmp_path, weights_file, quick, capsys):
    write_coco(tmp_path)
    assert evaluate(weights_file, "coco", tmp_path, "--nms", "default") == 0
    told = [line for line in said(capsys)[1] if line.startswith("rmpe: ")]
    assert told == ["rmpe: --nms had no use: everybody was predicted in their own box, and nobody removed"]


@pytest.mark.parametrize(
    "option",
    [
        *(["--boxes", "gt"], ["--weights", "hourglass-lspet-coco"], ["--no-flip"], ["--nms", "none"]),
        *(["--decoder", "dark"], ["--scales", "1,2"], ["--detector", "hog"]),
    ],
)
def test_poses_of_a_file_are_measured_as_they_are(tmp_path, capsys, option):
    assert main(["evaluate", "coco", "--data", str(tmp_path), "--predictions", "poses.json", *option]) == 1
    (line,) = said(capsys)[1]
    assert line.startswith("rmpe: --predictions is measured as it is") and option[0] in line


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("[1,\n2", "malformed JSON at line 2"), ("[{}]", "pose number 1: no image_id")],
)
def test_a_file_of_predictions_that_cannot_be_read_is_one_line(tmp_path, capsys, content, message):
    write_coco(tmp_path)
    path = tmp_path / "poses.json"
    if content is not None:
        path.write_text(content)
    assert main(["evaluate", "coco", "--data", str(tmp_path), "--predictions", str(path)]) == 1
    (line,) = said(capsys)[1]
    assert line.startswith(f"rmpe: {path}: ") and message in line


# compare


def write_result(path, value, **about):
    """A result of one number, as ``rmpe evaluate`` writes it; every replicate is that number."""
    drawn = {"seed": 0, "replicates": 3, "pictures_sha256": "0" * 64, "values": {"pck": [value] * 3}}
    table = {"title": "PCK", "columns": ["Mean"], "rows": {"tiny": ["pck"]}}
    content = {"format": "rmpe_jax.result.1", "dataset": "lspet", "split": "val", "protocol": "pck", "pictures": 2}
    content |= {"pck": value, "intervals": {"pck": [value, value]}, "bootstrap": drawn, "tables": [table]}
    path.write_text(json.dumps(content | about))
    return str(path)


def test_two_results_are_compared_and_the_comparison_is_written(tmp_path, capsys):
    first, second = write_result(tmp_path / "a.json", 0.5), write_result(tmp_path / "b.json", 0.75)
    options = ["--json", str(tmp_path / "c.json"), "--markdown", str(tmp_path / "c.md")]
    assert main(["compare", first, second, *options]) == 0
    out, err = said(capsys)
    assert out[0] == f"{first} against {second}: lspet, val, pck" and err == []
    assert out[2].split() == ["pck", "50.0", "75.0", "+25.0", "+25.0..+25.0", "*"]
    expected = [{"name": "pck", "first": 0.5, "second": 0.75, "low": 0.25, "high": 0.25}]
    assert json.loads((tmp_path / "c.json").read_text()) == expected
    assert (tmp_path / "c.md").read_text().splitlines()[2] == "| pck | 50.0 | 75.0 | +25.0 | +25.0..+25.0 | * |"
    assert main(["compare", first, second, "--json", "-"]) == 0
    assert last_json(capsys) == expected


def test_results_that_cannot_be_compared_are_one_line(tmp_path, capsys):
    first, other = write_result(tmp_path / "a.json", 0.5), write_result(tmp_path / "b.json", 0.5, split="train")
    (tmp_path / "c.json").write_text("{}")
    for second, message in (
        (other, "not comparable: split is 'val' in one and 'train' in the other"),
        (tmp_path / "c.json", "c.json: not a result of `rmpe evaluate --json FILE`"),
        (tmp_path / "d.json", "d.json: no such file"),
    ):
        assert main(["compare", first, str(second)]) == 1
        (line,) = said(capsys)[1]
        assert line.startswith("rmpe: ") and message in line


# fit-nms


def detected(folder, numbers=(1, 2, 3)):
    """A file of detections of the pictures of ``write_coco``."""
    path = folder / "found.json"
    path.write_text(json.dumps(detections(COCO_17, [f"{number:012}.jpg" for number in numbers])))
    return path


def fit_nms(folder, *more):
    options = ["--detections", folder / "found.json", "--out", folder / "new" / "nms.json", "--grid", 2]
    return main(["fit-nms", *(str(option) for option in (*options, *more))])


@pytest.mark.slow
def test_the_nms_is_learned_written_and_drawn(tmp_path, weights_file, quick, capsys):
    annotations, _ = write_coco(tmp_path), detected(tmp_path)
    assert fit_nms(tmp_path, "--annotations", annotations, "--folds", 2) == 0
    out, err = said(capsys)
    place = tmp_path / "new"
    assert out[0] == "OKS AP, in per cent, of 18 poses in 3 pictures:" and "2 folds" in out[2]
    assert out[-1] == f"parameters: {place / 'nms.json'}, maps: {place / 'nms.png'}"
    boxless = sum("box" not in pose for pose in json.loads((tmp_path / "found.json").read_text()))
    (line,) = (line for line in err if line.startswith("rmpe"))
    assert f"found.json: {boxless} of 18 poses have no box: their joints' extent was taken" in line and boxless
    assert sorted(path.name for path in place.iterdir()) == ["nms.json", "nms.png"]
    learned = load_nms(place / "nms.json")
    assert learned is not None and learned.eta_scale == "fraction"
    assert json.loads((place / "nms.json").read_text())["fit"]["detections"] == "found.json"
    assert read_image(place / "nms.png").shape[1] > 1000
    # What was learned is what the other command takes.
    paths = write(tmp_path, one=("png", encoded(picture(), "PNG"))).values()
    boxes = boxes_for(tmp_path, ["one.png", "one.png"])
    assert predict(weights_file, tmp_path / "out", paths, "--boxes", boxes, "--nms", place / "nms.json") == 0
    assert len(results(tmp_path / "out")) == 1


def test_the_nms_is_learned_from_a_data_set_and_another_preset(tmp_path, capsys):
    write_coco(tmp_path, split="train2017")
    detected(tmp_path)
    sheet = tmp_path / "maps.jpg"
    options = ["--dataset", "coco", "--data", tmp_path, "--preset", "alphapose", "--folds", 0, "--sheet", sheet]
    assert fit_nms(tmp_path, *options) == 0
    out = said(capsys)[0]
    assert out[-1].endswith(f"maps: {sheet}") and not any("not searched on" in line for line in out)
    learned = load_nms(tmp_path / "new" / "nms.json")
    assert learned is not None and (learned.match_joints, learned.unit, learned.merge) == (5, "pixel", "weighted")
    assert sheet.is_file() and not (tmp_path / "new" / "nms.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either an annotation file or a data set"),
        (["--annotations", "{labels}", "--dataset", "coco"], "expected either an annotation file or a data set"),
        (["--annotations", "{folder}/none.json"], "{folder}/none.json: no such file"),
        (["--annotations", "{folder}/found.json"], "found.json: expected an object with a list of images"),
        (["--annotations", "{labels}", "--detections", "{folder}/none.json"], "{folder}/none.json: no such file"),
        (["--annotations", "{labels}", "--detections", "{labels}"], "val2017.json: expected a list of poses"),
        (["--annotations", "{labels}"], "3 pictures: fewer --folds, or 0 for none"),
        (["--annotations", "{labels}", "--folds", "1"], "--folds 1: expected 0 for none, or 2 and more"),
        (["--annotations", "{labels}", "--preset", "none"], "--preset none: expected one of default, paper, "),
        (["--annotations", "{labels}", "--out", "nms.png"], "--out nms.png: the maps would replace the parameters"),
        (["--annotations", "{labels}", "--sheet", "maps.txt"], "--sheet maps.txt: expected a .png or .jpg"),
        (["--annotations", "{labels}", "--out", "{folder}"], "{folder}: cannot be written: is a folder"),
        (["--annotations", "{labels}", "--out", "{labels}/a.json"], "val2017.json/a.json: cannot be written: Not a"),
        (["--annotations", "{labels}", "--sheet", "{labels}/a.png"], "val2017.json/a.png: cannot be written: Not a"),
        (["--dataset", "lspet", "--data", "{folder}"], "lspet: measures people one by one"),
        (["--dataset", "octopus"], "unknown data set 'octopus'; known: coco, "),
        (["--dataset", "coco", "--data", "{folder}"], "has no annotations/person_keypoints_train2017.json"),
    ],
)
def test_what_cannot_be_learned_from_is_one_line(tmp_path, capsys, arguments, message):
    given = {"folder": tmp_path, "labels": write_coco(tmp_path)}
    detected(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert fit_nms(tmp_path, *(argument.format(**given) for argument in arguments)) == 1
    (line,) = said(capsys)[1]
    assert line.startswith("rmpe: ") and message.format(**given) in line
    assert sorted(tmp_path.rglob("*")) == before


# fit-proposals


def labelled_people(folder):
    """28 people of many widths in 14 pictures, and a file of four detections of each."""
    rng, annotations, entries = np.random.default_rng(0), [], []
    for number, (x0, y0, x1, y1) in enumerate(TWO_PLACES * 14):
        box = (x0, y0, x1 - rng.uniform(0, 25), y1 - rng.uniform(0, 10))
        image = number // 2 + 1
        annotations.append(coco_annotation(number + 1, image, box))
        sides = [box[2] - box[0], box[3] - box[1]]
        for offset in rng.normal(scale=0.05, size=(4, 4)):
            a, b = box[:2] + offset[:2] * sides, box[2:] + offset[2:] * sides
            entries.append({"image_id": image, "category_id": 1, "bbox": [*a, *(b - a)], "score": 0.5})
    write_coco(folder, split="train2017", annotations=annotations, pictures=14)
    (folder / "boxes.json").write_text(json.dumps(entries))
    (folder / "broken.json").write_text(json.dumps([*entries, {"image_id": 1, "bbox": []}]))
    (folder / "few.json").write_text(json.dumps(entries[:9]))
    (folder / "one.json").write_text(json.dumps(entries[:4]))


def fit_proposals(folder, *more):
    options = ["--data", folder, "--detections", folder / "boxes.json", "--out", folder / "new" / "law.npz"]
    return main(["fit-proposals", *(str(option) for option in (*options, "--atoms", 2, "--steps", 2, *more))])


HEADER = "how far boxes are from those of people set aside (Kolmogorov-Smirnov; x0, y0, x1, y1, width / height):"
OTHERS = ("alphapose_global", "uniform", "random boxes", "detections of others")


def assert_told(out, places, sheet):
    """The lines tell where everything is, five distances of every law, and what the pose gains PGPG."""
    assert out[: len(places) + 2] == [
        *(f"{kind}: {path}" for kind, path in places.items()),
        f"poses, boxes and offsets: {sheet}",
        HEADER,
    ]
    rows = out[len(places) + 2 :]
    if "pgpg" in places:
        number = r"-?\d+\.\d{3}"
        gain = rf"knowing the pose gains pgpg {number} nats a detection \({number} to {number}\)"
        assert re.fullmatch(gain, rows.pop())
    for row, name in zip(rows, (*places, *OTHERS), strict=True):
        assert re.fullmatch(rf"  ((0\.\d{{3}}|1\.000)  ){{5}}{name}", row)


@pytest.mark.slow
def test_both_kinds_of_proposals_are_learned_written_and_drawn(tmp_path, capsys):
    labelled_people(tmp_path)
    assert fit_proposals(tmp_path, "--seed", 3) == 0
    out, err = said(capsys)
    place = tmp_path / "new"
    assert_told(out, {"pgpg": place / "law.npz", "dpg": place / "law-dpg.npz"}, place / "law.png")
    assert not [line for line in err if line.startswith("rmpe")]
    assert sorted(path.name for path in place.iterdir()) == ["law-dpg.npz", "law.npz", "law.png"]
    law, scored = load_proposals(place / "law.npz"), load_proposals(place / "law-dpg.npz")
    assert isinstance(law, OffsetMixtures) and law.skeleton == "coco_17" and law.atoms.shape == (2, 17, 2)
    assert isinstance(scored, ScoredProposals) and scored.skeleton == "coco_17"
    both = {name: json.loads(str(read_arrays(place / f"{name}.npz")["about"])) for name in ("law", "law-dpg")}
    for row, about in zip(out[4:], both.values(), strict=False):
        assert (about["dataset"], about["detector"], about["seed"]) == ("coco", "file", 3)
        # Six of 28 people are set aside.
        assert (about["people"], about["detections"], about["held_out"]) == (22, 88, 24)
        assert len(about["distances"]) == 5
        assert row.split()[:5] == [f"{value:.3f}" for value in about["distances"]]
        # Nothing in the file tells where the data lay.
        assert str(tmp_path) not in json.dumps(about)
    assert sum(both["law"]["detections_of_atom"]) == 88 and both["law-dpg"]["steps"] == 2
    assert len(both["law"]["pose_gain"]) == 3 and len(both["law"]["own_mixture"]) == 2
    # Three tiles of poses, eight of what the network sees, six of offsets.
    assert read_image(place / "law.png").shape == (258 + 370 + 2 * 202, 4 * 368, 3)


@pytest.mark.slow
def test_dpg_alone_goes_where_it_is_wanted_and_needs_no_scikit_learn(tmp_path, monkeypatch, capsys):
    labelled_people(tmp_path)
    for module in ("sklearn.cluster", "sklearn.mixture"):
        monkeypatch.setitem(sys.modules, module, None)
    assert fit_proposals(tmp_path, "--kind", "dpg") == 0
    out, place = said(capsys)[0], tmp_path / "new"
    assert_told(out, {"dpg": place / "law.npz"}, place / "law.png")
    assert sorted(path.name for path in place.iterdir()) == ["law.npz", "law.png"]
    assert isinstance(load_proposals(place / "law.npz"), ScoredProposals)
    assert read_image(place / "law.png").shape == (370 + 2 * 202, 4 * 368, 3)


@pytest.mark.slow
def test_pgpg_alone_takes_other_poses_and_another_place_for_the_sheet(tmp_path, monkeypatch, capsys):
    labelled_people(tmp_path)
    rng, place = np.random.default_rng(0), tmp_path / "new"
    points = figure(COCO_17.joints, (0, 0, 30, 90)) + rng.normal(scale=3, size=(30, 17, 2))
    np.savez(tmp_path / "poses.npz", keypoints=np.concatenate([points, np.ones((30, 17, 1))], 2))
    monkeypatch.setattr(fit_report, "fit_scored", None)
    more = ["--kind", "pgpg", "--poses", tmp_path / "poses.npz", "--sheet", tmp_path / "sheet.jpg"]
    assert fit_proposals(tmp_path, *more) == 0
    assert_told(said(capsys)[0], {"pgpg": place / "law.npz"}, tmp_path / "sheet.jpg")
    assert [path.name for path in place.iterdir()] == ["law.npz"]
    about = json.loads(str(read_arrays(place / "law.npz")["about"]))
    assert (about["clustered"], about["people"]) == (30, 22)
    assert isinstance(load_proposals(place / "law.npz"), OffsetMixtures)
    assert read_image(tmp_path / "sheet.jpg").shape == (258 + 2 * 202, 4 * 368, 3)


@pytest.mark.slow
def test_unreadable_pictures_are_told_after_the_proposals_of_the_others_are_written(tmp_path, monkeypatch, capsys):
    labelled_people(tmp_path)
    broken = sorted(tmp_path.rglob("*.jpg"))[2]
    broken.write_bytes(b"no picture")
    # Boxes about half way between the narrowest and the widest people.
    boxes = np.array(TWO_PLACES) - [0, 0, 12, 5]
    monkeypatch.setattr(detectors, "every_window_of_hog", lambda image: Boxes.from_arrays(boxes))
    place = tmp_path / "law.npz"
    options = ["--data", tmp_path, "--out", place, "--kind", "pgpg", "--atoms", 2, "--detector", "hog"]
    assert main(["fit-proposals", *(str(option) for option in options)]) == 1
    out, err = said(capsys)
    assert_told(out, {"pgpg": place}, tmp_path / "law.png")
    (line,) = (line for line in err if line.startswith("rmpe: "))
    assert line == err[-1] and str(broken) in line
    about = json.loads(str(read_arrays(place)["about"]))
    # Of the 26 others five are set aside.
    assert (about["people"], about["held_out"], about["detector"]) == (21, 5, "hog")
    assert isinstance(load_proposals(place), OffsetMixtures) and read_image(tmp_path / "law.png").size


def test_poses_for_dpg_are_refused_before_the_work(tmp_path, monkeypatch, capsys):
    labelled_people(tmp_path)
    np.savez(tmp_path / "poses.npz", keypoints=np.ones((3, 17, 3)))
    monkeypatch.setattr(fit_proposals_module, "find_people", None)
    assert fit_proposals(tmp_path, "--kind", "dpg", "--poses", tmp_path / "poses.npz") == 1
    assert said(capsys) == ([], ["rmpe: --poses are clustered for pgpg, but --kind is dpg"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "law.txt"], "expected --out with .npz and --sheet with .png or .jpg, got law.txt and law.png"),
        (["--sheet", "law.npz"], "expected --out with .npz and --sheet with .png or .jpg"),
        (["--out", "{folder}/boxes.json/law.npz"], "boxes.json/law.npz: cannot be written: Not a directory"),
        (["--dataset", "octopus"], "unknown data set 'octopus'; known: coco, "),
        (["--data", "{folder}/nowhere"], "nowhere: no such folder"),
        (["--split", "val2017"], "has no annotations/person_keypoints_val2017.json"),
        (["--detections", "{folder}/none.json"], "none.json: no such file"),
        (["--detections", "{folder}/broken.json"], "broken.json: detection 113: bbox: expected four numbers"),
        (["--detections", "{folder}/few.json"], "2 labelled people have detections: at least 20 are needed"),
        (["--detections", "{folder}/one.json"], "1 people have detections: too few to set 20% of them aside"),
        (["--detections", "{folder}/one.json", "--kind", "dpg"], "1 people have detections: too few to set 20%"),
        (["--poses", "{folder}/none.npz"], "none.npz: no such file"),
        (["--poses", "{folder}/boxes.json"], "boxes.json: damaged, or not an .npz file"),
        (["--atoms", "23"], "23 atomic poses of 22 people with a torso and 6 joints: too many"),
    ],
)
def test_what_proposals_cannot_be_learned_from_is_one_line(tmp_path, capsys, arguments, message):
    labelled_people(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert fit_proposals(tmp_path, *(argument.format(folder=tmp_path) for argument in arguments)) == 1
    (line,) = (line for line in said(capsys)[1] if not re.match(r"\r|pictures|atomic poses", line) and line)
    assert line.startswith("rmpe: ") and message in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("taken", "arguments"),
    [
        ("law.npz", []),
        ("law-dpg.npz", []),
        ("law.png", []),
        ("law.npz", ["--kind", "dpg"]),
        ("there.jpg", ["--kind", "pgpg", "--sheet", "{folder}/new/there.jpg"]),
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, capsys, taken, arguments):
    labelled_people(tmp_path)
    (tmp_path / "new" / taken).mkdir(parents=True)
    monkeypatch.setattr(fit_proposals_module, "find_people", None)
    assert fit_proposals(tmp_path, *(argument.format(folder=tmp_path) for argument in arguments)) == 1
    assert said(capsys)[1] == [f"rmpe: {tmp_path / 'new' / taken}: cannot be written: is a folder"]


def test_the_built_in_detector_looks_where_nothing_else_is_said(tmp_path, monkeypatch, capsys):
    labelled_people(tmp_path)
    seen = []

    def none(self, image):
        seen.append(image.shape)
        return Boxes.from_arrays([])

    monkeypatch.setattr(PersonDetector, "__call__", none)
    options = ["--data", tmp_path, "--out", tmp_path / "law.npz", "--atoms", 2]
    assert main(["fit-proposals", *(str(option) for option in options)]) == 1
    assert said(capsys)[1][-1].startswith("rmpe: no detection overlaps a labelled person by more than half")
    assert len(seen) == 14


# data


def test_the_list_names_every_data_set_and_its_files(capsys):
    assert main(["data", "list"]) == 0
    out, err = said(capsys)
    names = [line.split(":")[0] for line in out if not line.startswith(" ")]
    assert names == list(DATA_SETS) and err == []
    for found in DATA_SETS.values():
        assert any(found.hint in line for line in out) and any(found.home in line for line in out)


@pytest.mark.parametrize("name", ["synthetic", "coco"])
def test_a_sheet_of_labels_is_drawn(tmp_path, capsys, name):
    write_coco(tmp_path)
    sheet = tmp_path / "new" / "sheet.png"
    options = ["--split", "val"] if name == "synthetic" else []
    command = ["data", "show", name, "--data", str(tmp_path), "--count", "2", "--out", str(sheet)]
    assert main([*command, *options]) == 0
    (line,) = said(capsys)[0]
    split, count = ("val", 100) if name == "synthetic" else ("val2017", 3)
    assert line.startswith(f"2 of {count} pictures (") and line.endswith(f"of {name}, split {split}: {sheet}")
    assert read_image(sheet).std() > 10


@pytest.mark.slow
def test_a_prepared_set_is_measured_and_drawn_like_its_official_files(tmp_path, weights_file, quick, capsys):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    write_coco(tmp_path / "official")
    write_lspet(tmp_path / "official")
    for name, split in (("coco", "val2017"), ("lspet", "val")):
        command = ["data", "prepare", name, "--from", str(tmp_path / "official"), "--to", str(tmp_path / "prepared")]
        assert main([*command, "--split", split, "--workers", "1"]) == 0
        out = said(capsys)[0]
        assert out[-1].startswith(f"prepared: {tmp_path / 'prepared'}") and out[-2].startswith(f"{split}: ")
        results = []
        for place in ("official", "prepared"):
            replicates = 2 if name == "lspet" else 0
            assert evaluate(weights_file, name, tmp_path / place, "--replicates", replicates, "--json", "-") == 0
            results.append(last_json(capsys))
        official, prepared = results
        number = "ap" if name == "coco" else "pck"
        assert official[number] == prepared[number] and official["pictures"] == prepared["pictures"]
    # Without a training split there is no mean pose; the pictures have their names.
    assert "mean_pose_pck" in official and "mean_pose_pck" not in prepared
    assert official["bootstrap"]["pictures_sha256"] == prepared["bootstrap"]["pictures_sha256"]
    sheet = tmp_path / "sheet.png"
    assert main(["data", "show", "coco", "--data", str(tmp_path / "prepared"), "--out", str(sheet)]) == 0
    assert sheet.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "octopus"], "unknown data set 'octopus'; known: coco, "),
        (["show", "synthetic", "--split", "test"], "not 'test'"),
        (["show", "lspet", "--data", "{folder}/none"], "{folder}/none: no such folder"),
        (["show", "lspet", "--data", "{folder}", "--split", "test"], "LSPET has the splits train and val, not 'test'"),
        (["show", "lsp", "--data", "{folder}"], "lsp_dataset.zip"),
        (["show", "coco", "--data", "{folder}"], "{folder}: has no annotations/person_keypoints_train2017.json"),
        (["show", "coco", "--data", "{folder}", "--split", "val2017"], "malformed JSON at line 1"),
        (["show", "mpii", "--data", "{folder}"], "mpii_human_pose_v1_u12_1.mat: damaged"),
    ],
)
def test_a_set_that_cannot_be_shown_is_one_line(tmp_path, capsys, arguments, message):
    write_lspet(tmp_path)
    damaged = write_coco(tmp_path)
    damaged.write_text(damaged.read_text()[:500])
    (tmp_path / "mpii_human_pose_v1_u12_1.mat").write_bytes(b"dear diary" * 99)
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    assert main(["data", *arguments, "--out", str(tmp_path / "sheet.png")]) == 1
    (line,) = said(capsys)[1]
    assert line.startswith("rmpe: ") and message.format(folder=tmp_path) in line
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["octopus"], "unknown data set 'octopus'; known: coco, "),
        (["lspet"], "say where its official files are"),
        (["lspet", "--from", "{folder}/none"], "{folder}/none: no such folder"),
        (["lspet", "--from", "{folder}", "--split", "test"], "LSPET has the splits train and val, not 'test'"),
        (["waf", "--from", "{folder}"], "has no data/waf_sticks_all.txt"),
    ],
)
def test_a_set_that_cannot_be_prepared_is_one_line(tmp_path, capsys, arguments, message):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    write_lspet(tmp_path)
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    assert main(["data", "prepare", *arguments, "--to", str(tmp_path / "prepared")]) == 1
    (line,) = said(capsys)[1]
    assert line.startswith("rmpe: ") and message.format(folder=tmp_path) in line
