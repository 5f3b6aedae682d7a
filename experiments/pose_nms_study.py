"""What does learning the pose NMS give? Parameters fitted on training pictures, measured on pictures set aside.

Three kinds of detections, each before any NMS:

hog        every window of OpenCV's HOG detector, estimated by the shipped network: real boxes, real poses
around     four boxes around every labelled person, moved by the Gaussians of RMPE's code, estimated by the shipped
           network: simulated boxes, real poses
simulated  poses of COCO train2017 (poses_train2017.npz) without pictures: each person is found by none to five
           detections with the errors that pose estimators make (jitter, joints that are missed, joints taken from a
           neighbour, scores that mostly know it), and there are false alarms

The first two learn from COCO's train2017 and are measured on val2017, set aside; the third learns from some pictures
and is measured on as many others. Ways: no NMS; NMS by OKS, by boxes and by joint overlap, each at the threshold that
is best on the training pictures; the presets of the pose NMS, of which `released` and `alphapose` also merge; and what
is learned, two parameters at a time and exhaustively, the latter also with merging.

    .venv/bin/python experiments/pose_nms_study.py --coco DIR --out runs/pose_nms [--kind hog] [--pictures 2000]
    .venv/bin/python experiments/pose_nms_study.py --quick        # a few simulated pictures of drawn people, toy grid

DIR is a folder in COCO's layout, with poses_train2017.npz for the third kind. Results: experiments/README.md.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rmpe_jax.data.coco import coco_annotations
from rmpe_jax.data.files import PictureFile
from rmpe_jax.data.images import write_image
from rmpe_jax.data.people import LabelledPicture, label, usable_rows
from rmpe_jax.data.sets import read_data
from rmpe_jax.evaluate import protocols
from rmpe_jax.evaluate.calibrate import with_calibration
from rmpe_jax.evaluate.fit_nms import Labelled, as_poses, as_text, by_picture, fit_nms
from rmpe_jax.evaluate.fit_sheet import draw_fit
from rmpe_jax.evaluate.predictions import Prediction, Predictions, as_results, predict_detected
from rmpe_jax.evaluate.results import Result, compare, make_result
from rmpe_jax.files import write_json
from rmpe_jax.nms.baselines import box_pose_nms, joint_overlap_nms, oks_nms
from rmpe_jax.nms.pose import PRESETS, suppress_poses
from rmpe_jax.nms.search import learnable
from rmpe_jax.predict.detectors import BoxesFile, detect_with_hog
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.pretrained import load_weights
from rmpe_jax.proposals.offsets import propose
from rmpe_jax.records import Poses
from rmpe_jax.scores import UNCALIBRATED
from rmpe_jax.skeleton import COCO_17

KINDS = ("hog", "around", "simulated")
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: One picture's poses in, those that stay out (they may have moved); some take a threshold as well.
Way = Callable[..., Poses]


def estimator(**settings: Any) -> Estimator:
    """The shipped network without NMS; its scores are the maxima of heat maps, as the figures were measured with."""
    return Estimator(with_calibration(load_weights(), UNCALIBRATED), nms=None, **settings)


def estimated(pictures: list[LabelledPicture], *, around: int) -> Labelled:
    """Poses by the shipped network in every HOG window, or in ``around`` boxes around every labelled person."""
    if not around:
        found = predict_detected(estimator(detector=partial(detect_with_hog, grouping=0)), pictures, COCO_17, None)
    else:
        entries = {str(record.image_id): _boxes_around(record, around) for record in pictures}
        boxes = BoxesFile(Path("around"), {name: rows for name, rows in entries.items() if rows}, {}, [])
        found = predict_detected(estimator(), pictures, COCO_17, boxes)
    return Labelled(pictures, COCO_17, found, multi_person=False)


def _boxes_around(record: LabelledPicture, count: int) -> list[tuple[list[float], float]]:
    boxes = jnp.asarray(record.boxes[usable_rows(record)], jnp.float32)
    keys = jax.random.split(jax.random.key(record.image_id), (count, len(boxes)))
    law = partial(propose, law="alphapose_global")
    moved = np.asarray(jax.vmap(jax.vmap(law), (0, None))(keys, boxes)) if len(boxes) else np.zeros((0, 4))
    return [(box.tolist(), 1.0) for box in moved.reshape(-1, 4)]


@dataclasses.dataclass(frozen=True)
class People:
    """Labelled people without pictures, of whom detections are made up."""

    image_id: np.ndarray  # (n,)
    box: np.ndarray  # (n, 4) x y width height
    keypoints: np.ndarray  # (n, 17, 3)


def simulated(people: People, numbers: np.ndarray, seed: int) -> Labelled:
    """Pictures ``numbers`` with made-up detections of their people."""
    rng = np.random.default_rng(seed)
    rows = {number: np.flatnonzero(people.image_id == number).tolist() for number in numbers.tolist()}
    pictures, poses = [], []
    for number, here in rows.items():
        labels = [_labels_of(people, row) for row in here]
        pictures.append(label(PictureFile(Path(f"{number}.jpg")), number, labels, COCO_17.size))
        for place in range(len(here)):
            poses += _detections_of(rng, pictures[-1], place)
        strangers = rng.choice(len(people.image_id), rng.poisson(0.5))
        poses += [_false_alarm(rng, number, _labels_of(people, row)) for row in strangers.tolist()]
    found = Predictions([poses[n] for n in rng.permutation(len(poses))], "simulated", "simulated", [])
    return Labelled(pictures, COCO_17, found, multi_person=False)


def _labels_of(people: People, row: int) -> dict[str, Any]:
    x, y, width, height = people.box[row].astype(float).tolist()
    joints = people.keypoints[row].astype(float)
    where = {"points": joints[:, :2], "visibility": joints[:, 2].astype(np.uint8)}
    return where | {"boxes": [x, y, x + width, y + height], "area": 0.53 * width * height}


def _detections_of(rng: np.random.Generator, record: LabelledPicture, row: int) -> list[Prediction]:
    """None to five detections of one person; the worse the pose, mostly, the lower its score."""
    box, size = record.boxes[row], np.sqrt(max(record.area[row], 1.0))
    others = [other for other in range(len(record)) if other != row and _overlap(record.boxes[other], box)]
    labelled = (record.visibility[row] > 0)[:, None]
    guessed = box[:2] + rng.random((COCO_17.size, 2)) * (box[2:] - box[:2])
    hard, found = rng.random(), []
    for _ in range(rng.choice(6, p=(0.1, 0.2, 0.25, 0.2, 0.15, 0.1))):
        spread = size * np.array(COCO_17.sigmas)[:, None] * np.exp(rng.normal(-0.2 + 1.2 * hard, 0.5))
        points = np.where(labelled, record.points[row], guessed) + spread * rng.normal(size=guessed.shape)
        missed = rng.random(COCO_17.size) < 0.02 + 0.15 * hard
        points[missed] = box[:2] + rng.random((missed.sum(), 2)) * (box[2:] - box[:2])
        if others and rng.random() < 0.3:
            taken = (rng.random(COCO_17.size) < 0.3) & (record.visibility[other := rng.choice(others)] > 0)
            points[taken] = record.points[other][taken] + (spread * rng.normal(size=guessed.shape))[taken]
            missed |= taken
        quality = 0.9 - 0.4 * hard - 0.3 * missed - 0.15 * ~labelled[:, 0]
        score = np.clip(quality + rng.normal(0, 0.12, COCO_17.size) + rng.normal(0, 0.08), 0.01, 1)
        moved = box + rng.normal(size=4) * 0.1 * np.tile(box[2:] - box[:2], 2)
        found.append(_prediction(record.image_id, points, score, moved))
    return found


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((np.minimum(a[2:], b[2:]) > np.maximum(a[:2], b[:2])).all())


def _false_alarm(rng: np.random.Generator, number: int, person: dict[str, Any]) -> Prediction:
    shift, box = rng.normal(0, 80, 2), np.array(person["boxes"])
    inside = box[:2] + rng.random((COCO_17.size, 2)) * (box[2:] - box[:2])
    points = np.where(person["visibility"][:, None] > 0, person["points"], inside) + shift
    score = np.clip(0.3 + rng.normal(0, 0.12, COCO_17.size), 0.01, 1)
    return _prediction(number, points, score, box + np.tile(shift, 2))


def _prediction(number: int, points: np.ndarray, score: np.ndarray, box: np.ndarray) -> Prediction:
    box = np.concatenate([box[:2], np.maximum(box[2:], box[:2] + 2)])
    return Prediction(number, None, points, score, np.ones(len(score), bool), float(score.mean()), box)


@functools.lru_cache(maxsize=1)
def _each_picture(way: Way) -> Callable[..., Poses]:
    """Compiled once for all thresholds."""
    return jax.jit(lambda poses, *threshold: jax.vmap(lambda one: way(one, *threshold))(poses))


def kept(labelled: Labelled, way: Way, *threshold: float) -> Labelled:
    """What a way makes of all detections."""
    found = by_picture(labelled)
    poses, _ = as_poses(found, range(COCO_17.size))
    after = jax.tree.map(np.asarray, _each_picture(way)(jax.tree.map(jnp.asarray, poses), *threshold))
    stay = []
    for row, group in enumerate(found):
        for place in np.flatnonzero(after.valid[row]):
            points, score = after.points[row, place].astype(float), after.score[row, place].astype(float)
            moved = dataclasses.replace(group[place], points=np.where(np.isfinite(points), points, 0), score=score)
            stay.append(dataclasses.replace(moved, pose_score=float(score.mean())))
    return dataclasses.replace(labelled, predictions=dataclasses.replace(labelled.predictions, poses=stay))


def measured(labelled: Labelled, way: Way) -> Result:
    """COCO's numbers of what a way keeps, with intervals over pictures."""
    after = kept(labelled, way)
    names = [record.picture.name for record in after.pictures]
    result = protocols.oks(after.pictures, after.predictions, after.skeleton)
    return make_result({"poses": len(after.predictions.poses)}, result, names, replicates=1000, seed=0)


def quick_ap(labelled: Labelled) -> float:
    """AP alone, by pycocotools."""
    results, numbers = as_results(labelled.predictions.poses), [record.image_id for record in labelled.pictures]
    return protocols.coco_summary(coco_annotations(labelled.pictures), results, numbers)["ap"] if results else 0.0


BASELINES: dict[str, Callable[[Poses, Any], jax.Array]] = {
    "NMS by OKS": lambda poses, threshold: oks_nms(poses, threshold=threshold, sigmas=COCO_17.sigmas),
    "NMS by boxes": lambda poses, threshold: box_pose_nms(poses, threshold=threshold),
    "NMS by joint overlap": lambda poses, threshold: joint_overlap_nms(poses, share=threshold),
}


def baseline(keep: Callable[[Poses, Any], jax.Array], poses: Poses, threshold: Any) -> Poses:
    """The poses of which a mask says that they stay."""
    return dataclasses.replace(poses, valid=keep(poses, threshold))


def ways_of(training: Labelled, out: Path, size: int, folds: int) -> dict[str, Way]:
    """All ways by name, those that have something to learn fitted on training pictures."""
    ways: dict[str, Way] = {"no NMS": lambda poses: poses}
    for name, keep in BASELINES.items():
        way = partial(baseline, keep)
        values = [quick_ap(kept(training, way, threshold)) for threshold in THRESHOLDS]
        best = THRESHOLDS[int(np.argmax(values))]
        ways[f"{name} above {best:g}"] = partial(way, threshold=best)
    for name, preset in PRESETS.items():
        ways[f"pose NMS, {name}"] = lambda poses, preset=preset: suppress_poses(poses, parameters=preset).poses

    def progress(steps: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        return tqdm(steps, what, total=total, mininterval=5)

    fit, about = fit_nms(training, out / "nms.json", size=size, folds=folds, progress=progress)
    write_image(out / "nms.png", draw_fit(fit))
    (out / "fit.txt").write_text(as_text(fit, about) + "\n", encoding="utf-8")
    given = learnable(PRESETS["default"], COCO_17.size)
    by_pairs = fit.grid.at(fit.path[-1].index, given)
    merged = dataclasses.replace(fit.parameters, merge="weighted")
    all_learned = {"two at a time": by_pairs, "exhaustively": fit.parameters, "exhaustively, and merged": merged}
    for name, learned in all_learned.items():
        ways[f"pose NMS, learned {name}"] = lambda poses, each=learned: suppress_poses(poses, parameters=each).poses
    return ways


def table(title: str, results: dict[str, Result]) -> str:
    """A row for each way, with its gain over the default preset."""
    reference = results["pose NMS, default"]
    lines = [f"| {title} | poses | AP | AP50 | AP75 | gain in AP over default |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        numbers = " | ".join(f"{100 * result[key]:.1f}" for key in ("ap50", "ap75"))
        low, high = result["intervals"]["ap"]
        change = next(entry for entry in compare(reference, result) if entry.name == "ap")
        value, ends = 100 * (change.second - change.first), (100 * (change.low or 0), 100 * (change.high or 0))
        gain = "" if result is reference else f"{value:+.1f} ({ends[0]:+.1f} to {ends[1]:+.1f})"
        ap = f"{100 * result['ap']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        lines.append(f"| {name} | {result['poses']} | {ap} | {numbers} | {gain} |")
    return "\n".join(lines)


def drawn_people(rng: np.random.Generator, count: int) -> People:
    """Upright people of several sizes, two to a picture: for --quick."""
    parts = np.array([[0.5, 0.1]] * 5 + [[0.6, 0.25], [0.4, 0.25], [0.7, 0.4], [0.3, 0.4], [0.7, 0.5], [0.3, 0.5]])
    legs = np.array([[0.58, 0.52], [0.42, 0.52], [0.58, 0.75], [0.42, 0.75], [0.58, 0.97], [0.42, 0.97]])
    size = np.exp(rng.normal(5, 0.4, (count, 1, 1))) * np.array([0.4, 1.0])
    corner = rng.uniform(0, 300, (count, 1, 2))
    points = corner + size * (np.concatenate([parts, legs]) + rng.normal(0, 0.03, (count, 17, 2)))
    keypoints = np.concatenate([points, np.full((count, 17, 1), 2.0)], -1)
    return People(np.arange(count) // 2 + 1, np.concatenate([corner, size], -1)[:, 0], keypoints)


def split_of(kind: str, options: argparse.Namespace) -> tuple[Labelled, Labelled]:
    """Training and test detections of a kind."""
    if kind != "simulated":
        around = 4 if kind == "around" else 0
        train, test = (
            estimated(read_data("coco", options.coco, split), around=around) for split in ("train2017", "val2017")
        )
        return train, test
    rng, count = np.random.default_rng(0), options.pictures
    if options.quick:
        people = drawn_people(rng, 4 * count)
    else:
        with np.load(Path(options.coco) / "poses_train2017.npz") as file:
            people = People(file["image_id"], file["bbox"], file["keypoints"])
    numbers = rng.permutation(np.unique(people.image_id))[: 2 * count]
    return simulated(people, numbers[:count], 1), simulated(people, numbers[count:], 2)


def main() -> None:
    """Fits, measures, and prints a table for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", metavar="DIR", help="a folder in COCO's layout")
    parser.add_argument("--kind", action="append", choices=KINDS, help="may be repeated; by default all three")
    parser.add_argument(
        "--pictures", type=int, default=2000, metavar="N", help="simulated ones, to learn from and to test"
    )
    parser.add_argument("--grid", type=int, default=16, metavar="N", help="values of each parameter")
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="of the training pictures")
    parser.add_argument("--out", default="runs/pose_nms", metavar="DIR", help="parameters, maps and results by kind")
    parser.add_argument("--quick", action="store_true", help="toy size; needs no files")
    options = parser.parse_args()
    if options.quick:
        options.kind, options.pictures, options.grid, options.folds = ["simulated"], 30, 3, 2
    elif options.coco is None:
        parser.error("--coco is needed, but for --quick")
    for kind in options.kind or KINDS:
        out = Path(options.out) / kind
        training, test = split_of(kind, options)
        ways = ways_of(training, out, options.grid, options.folds)
        results = {name: measured(test, way) for name, way in ways.items()}
        write_json(out / "results.json", {name: {"ap": r["ap"], "poses": r["poses"]} for name, r in results.items()})
        facts = {"pictures": len(test.pictures), "detections": len(test.predictions.poses)}
        print((out / "fit.txt").read_text(encoding="utf-8"))
        print(f"{kind}, test: {json.dumps(facts)}\n{table(kind, results)}\n", flush=True)


if __name__ == "__main__":
    main()
