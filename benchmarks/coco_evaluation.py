"""How fast COCO's ten keypoint numbers are computed: pycocotools, faster-coco-eval and rmpe_jax, on the same poses.

.venv/bin/python benchmarks/coco_evaluation.py [--quick] [--json -|FILE] [--poses FILE.npz]

The data set has the size of COCO val2017: 5,000 pictures, 2,693 of them with people, 6,352 people with labelled joints,
people without, crowds, and twenty simulated detections on each picture with people. The people are poses of COCO
train2017 where ``poses_train2017.npz`` is at hand (``--poses``, or in the folder ``coco`` of RMPE_DATA, or of
``../shared/data``), else drawn ones. All three evaluate the same dictionaries in memory, in turn, in one process.
Measured: README.md in this folder.
"""

import contextlib
import importlib
import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import jax
import numpy as np

from rmpe_jax.metrics.oks_ap import (
    OKS_AP_NAMES,
    coco_numbers,
    match_keypoints,
    oks_ap,
    pack_keypoints,
)

PICTURES, BUSY, LABELLED, UNLABELLED, CROWDS, PER_PICTURE = 5000, 2693, 6352, 4425, 227, 20
# An upright person in a box of 100 x 200, in COCO's order.
STANDING = np.array(
    [[50, 20], [54, 16], [46, 16], [60, 20], [40, 20], [70, 45], [30, 45], [80, 75], [20, 75], [82, 105], [18, 105]]
    + [[62, 105], [38, 105], [62, 145], [38, 145], [62, 190], [38, 190]],
    float,
)
Records = list[dict[str, Any]]


def drawn_poses(rng: np.random.Generator, count: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stand-ins for real poses: picture numbers, boxes x y w h and keypoints of scaled, shaken upright people."""
    picture = np.sort(rng.integers(0, int(count / 2.66), count))
    scale = np.exp(rng.normal(-0.3, 0.7, (count, 1, 1)))
    points = STANDING[None] + rng.normal(scale=8, size=(count, 17, 2))
    points = np.round(scale * points + rng.uniform(0, 400, (count, 1, 2)))
    corner = points.min(1) - 5 * scale[:, 0]
    seen = 2.0 * (rng.random((count, 17, 1)) < 0.7)
    seen[:, 0] = 2
    box = np.concatenate([corner, points.max(1) + 5 * scale[:, 0] - corner], 1)
    return picture, box, np.concatenate([points, seen], 2) * (seen > 0)


def read_poses(path: Path | None, rng: np.random.Generator) -> tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Where the poses come from, and their picture numbers, boxes and keypoints."""
    data = Path(os.environ.get("RMPE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    file = path or data / "coco" / "poses_train2017.npz"
    if path is None and not file.exists():
        return "drawn", drawn_poses(rng)
    with np.load(file) as content:
        arrays = content["image_id"], content["bbox"].astype(float), content["keypoints"].astype(float)
    return "COCO train2017" if file.name == "poses_train2017.npz" else file.name, arrays


def make_truth(rng: np.random.Generator, poses: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Records:
    """Annotations of pictures 1 to ``BUSY``: whole pictures of the poses, then people without joints and crowds."""
    picture, boxes, keypoints = poses
    people = []
    groups = np.split(np.arange(len(picture)), np.flatnonzero(np.diff(picture)) + 1)
    number = 0
    for group in (groups[place] for place in rng.permutation(len(groups))):
        number += 1
        for person in group[: LABELLED - len(people)]:
            people.append(_annotation(number, boxes[person], keypoints[person], 0))
        if len(people) == LABELLED:
            break
    # Pictures without a labelled person get one without joints first.
    rest = np.concatenate([np.arange(number + 1, BUSY + 1), rng.integers(1, BUSY + 1, UNLABELLED)])[:UNLABELLED]
    for place in rest:
        box = np.concatenate([rng.uniform(0, 500, 2), np.exp(rng.normal(3.2, 0.7, 2))])
        people.append(_annotation(int(place), box, np.zeros((17, 3)), 0))
    for place in rng.choice(BUSY, CROWDS, replace=False) + 1:
        box = np.concatenate([rng.uniform(0, 200, 2), rng.uniform(60, 300, 2)])
        people.append(_annotation(int(place), box, np.zeros((17, 3)), 1))
    return [person | {"id": index + 1} for index, person in enumerate(people)]


def _annotation(picture: int, box: np.ndarray, keypoints: np.ndarray, crowd: int) -> dict[str, Any]:
    # The median share of the outline in the box, of COCO's people.
    common = {"image_id": picture, "category_id": 1, "iscrowd": crowd, "area": float(0.53 * box[2] * box[3])}
    joints = {"keypoints": keypoints.astype(int).ravel().tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum())}
    return common | joints | {"bbox": np.round(box, 2).tolist()}


def make_results(rng: np.random.Generator, truth: Records) -> Records:
    """``PER_PICTURE`` detections for every picture with people: labelled poses with noise, and false alarms."""
    labelled = [person for person in truth if person["num_keypoints"]]
    by_picture: dict[int, Records] = {}
    for person in truth:
        by_picture.setdefault(person["image_id"], []).append(person)
    results = []
    for picture, people in sorted(by_picture.items()):
        people = [person for person in people if person["num_keypoints"]]
        for place in range(PER_PICTURE):
            false = not people or rng.random() < 0.25
            # Each person once, then near duplicates.
            source = labelled[rng.integers(len(labelled))] if false else people[place % len(people)]
            keypoints = np.array(source["keypoints"], float).reshape(17, 3)
            x, y, width, height = source["bbox"]
            somewhere = np.array([x, y]) + rng.random((17, 2)) * np.array([width, height])
            points = np.where(keypoints[:, 2:] > 0, keypoints[:, :2], somewhere)
            size = 0.15 * rng.random() ** 2 * np.sqrt(source["area"])
            points = points + rng.normal(scale=size, size=(17, 2)) + (rng.uniform(-200, 200, 2) if false else 0)
            quality = (0.3 if false else 0.9) * np.exp(-2 * size / np.sqrt(source["area"])) - 0.02 * place
            score = round(float(np.clip(quality + rng.normal(scale=0.15), 0, 1)), 4)
            triplets = np.concatenate([points, rng.random((17, 1))], 1)
            common = {"image_id": picture, "category_id": 1, "score": score}
            results.append(common | {"keypoints": np.round(triplets, 2).ravel().tolist()})
    return results


class Seconds:
    """Wall and CPU seconds (of all threads) of a ``with`` block."""

    def __enter__(self) -> "Seconds":
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu


def run_peer(coco: Any, evaluator: Any, truth: Records, results: Records) -> tuple[Seconds, Seconds, np.ndarray]:
    """Reading results from memory, evaluating them, and the ten numbers, by pycocotools or what follows it."""
    with contextlib.redirect_stdout(io.StringIO()):
        # They add to the dictionaries that they are given.
        labels, people, given = coco(), [dict(person) for person in truth], [dict(result) for result in results]
        images = [{"id": number} for number in range(1, PICTURES + 1)]
        categories = [{"id": 1, "name": "person"}]
        labels.dataset = {"info": {}, "images": images, "annotations": people, "categories": categories}
        labels.createIndex()
        with Seconds() as reading:
            detections = labels.loadRes(given)
        evaluation = evaluator(labels, detections, "keypoints")
        with Seconds() as evaluating:
            evaluation.evaluate()
            evaluation.accumulate()
        evaluation.summarize()
    return reading, evaluating, np.array(evaluation.stats[:10])


def run_ours(evaluate: Any, truth: Records, results: Records) -> tuple[Seconds, Seconds, np.ndarray]:
    """Packing dictionaries into arrays, evaluating them, and the ten numbers."""
    with Seconds() as reading:
        packed = pack_keypoints(truth, results, range(1, PICTURES + 1))
    with Seconds() as evaluating:
        numbers = np.asarray(evaluate(*packed))
    return reading, evaluating, numbers


def replicate_seconds(truth: Records, results: Records, count: int = 16) -> float:
    """Wall seconds of one bootstrap replicate: the matches are made once, and the counting is mapped over weights."""
    matches = jax.jit(match_keypoints)(*pack_keypoints(truth, results, range(1, PICTURES + 1)))
    repeat = jax.jit(jax.vmap(lambda matches, weight: coco_numbers(matches, weight=weight), (None, 0)))
    weights = np.random.default_rng(0).multinomial(PICTURES, np.full(PICTURES, 1 / PICTURES), count).astype(float)
    repeat(matches, weights).block_until_ready()
    with Seconds() as seconds:
        repeat(matches, weights).block_until_ready()
    return seconds.wall / count


def contestants(truth: Records, results: Records) -> dict[str, Callable[[], tuple[Seconds, Seconds, np.ndarray]]]:
    """Who is timed, by name; faster-coco-eval only where it is installed."""
    evaluate = jax.jit(oks_ap)
    runs = {"rmpe_jax": lambda: run_ours(evaluate, truth, results)}
    homes = {
        "pycocotools": (("pycocotools.coco", "COCO"), ("pycocotools.cocoeval", "COCOeval")),
        "faster_coco_eval": (("faster_coco_eval", "COCO"), ("faster_coco_eval", "COCOeval_faster")),
    }
    for name, home in homes.items():
        with contextlib.suppress(ImportError):
            coco, evaluator = (getattr(importlib.import_module(module), what) for module, what in home)
            runs[name] = lambda pair=(coco, evaluator): run_peer(*pair, truth, results)
    return runs


def measure(rounds: dict[str, int], poses: Path | None) -> dict[str, Any]:
    """Every figure of the benchmark: medians over so many rounds, which go through the contestants forth and back."""
    rng = np.random.default_rng(0)
    source, arrays = read_poses(poses, rng)
    truth = make_truth(rng, arrays)
    results = make_results(rng, truth)
    runs = contestants(truth, results)
    with Seconds() as compiling:
        runs["rmpe_jax"]()
    taken = {name: [] for name in runs}
    for number in range(max(rounds.values())):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            if number < rounds[name]:
                taken[name].append(runs[name]())
    figures: dict[str, Any] = {"poses": source, "pictures": PICTURES, "people": LABELLED, "annotations": len(truth)}
    figures |= {"detections": len(results), "rounds": rounds["rmpe_jax"], "jax": jax.__version__}
    seconds = {
        name: {
            "read_wall": statistics.median(reading.wall for reading, _, _ in rows),
            "evaluate_wall": statistics.median(evaluating.wall for _, evaluating, _ in rows),
            "evaluate_cpu": statistics.median(evaluating.cpu for _, evaluating, _ in rows),
        }
        for name, rows in taken.items()
    }
    ours = seconds["rmpe_jax"]
    for name in ("pycocotools", "faster_coco_eval"):
        peer = seconds.get(name)
        for suffix, kind in (("", "evaluate_cpu"), ("_wall", "evaluate_wall")):
            figures[f"ratio_{name}{suffix}"] = peer and round(peer[kind] / ours[kind], 2)
    numbers = {name: rows[-1][2] for name, rows in taken.items()}
    figures["max_abs_diff"] = float(np.abs(numbers["rmpe_jax"] - numbers["pycocotools"]).max())
    figures["numbers"] = dict(zip(OKS_AP_NAMES, numbers["rmpe_jax"].round(6).tolist(), strict=True))
    figures["seconds"] = {name: {kind: round(s, 4) for kind, s in row.items()} for name, row in seconds.items()}
    figures["first_call_wall"] = round(compiling.wall, 2)
    return figures | {"replicate_wall": round(replicate_seconds(truth, results), 4)}


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = ["{pictures} pictures, {people} labelled people, {detections} detections, poses: {poses}".format(**figures)]
    lines.append(f"{'seconds, median of ' + str(figures['rounds']):<24}{'read':>8}{'evaluate':>10}{'CPU':>8}")
    for name, row in figures["seconds"].items():
        lines.append(f"{name:<24}{row['read_wall']:8.3f}{row['evaluate_wall']:10.3f}{row['evaluate_cpu']:8.3f}")
    for name in ("pycocotools", "faster_coco_eval"):
        if figures[f"ratio_{name}"]:
            cpu, wall = figures[f"ratio_{name}"], figures[f"ratio_{name}_wall"]
            lines.append(f"rmpe_jax against {name}: {cpu:.1f} times as fast in CPU seconds, {wall:.1f} by the clock")
    lines.append(f"largest difference to pycocotools in the ten numbers: {figures['max_abs_diff']:.1e}")
    lines.append(f"first call, with compilation: {figures['first_call_wall']:.1f} s")
    lines.append(f"one more bootstrap replicate: {1000 * figures['replicate_wall']:.1f} ms")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, measures and reports."""
    parser = command.parser(
        "Times COCO's keypoint evaluation by three packages.", quick="three rounds instead of seven, of pycocotools one"
    )
    parser.add_argument("--poses", type=Path, metavar="FILE.npz", help="people: image_id, bbox and keypoints")
    options = parser.parse_args()
    # cocoeval counts in float64.
    jax.config.update("jax_enable_x64", True)
    rounds: dict[str, int] = dict.fromkeys(("rmpe_jax", "faster_coco_eval", "pycocotools"), 3 if options.quick else 7)
    if options.quick:
        rounds["pycocotools"] = 1
    figures = measure(rounds, options.poses)
    command.report(figures, options.json, table(figures))


if __name__ == "__main__":
    main()
