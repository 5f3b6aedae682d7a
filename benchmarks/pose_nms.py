"""How fast the pose NMS is, and learning it: rmpe_jax beside plain loops of the same rules, and AlphaPose if given.

.venv/bin/python benchmarks/pose_nms.py [--quick] [--json -|FILE] [--alphapose pPose_nms.py]

64 pictures with 5 to 200 proposals each, two to five near duplicates for each person, 17 joints. All run on one core of
one process, in turn; rmpe_jax as ``jax.jit(jax.vmap(...))`` over the pictures. Which poses stay is compared picture by
picture.

Learning: how many settings of the four parameters a second are judged on 500 pictures of 4 to 24 proposals, by COCO's
AP; beside it a loop over the pictures, or AlphaPose's function (its rule that counts joints switched off), and
pycocotools.

AlphaPose's licence forbids commercial use, so its file is not here: hand over the path of ``pPose_nms.py`` in
a clone of its branch master or pytorch, and install PyTorch. Measured: README.md in this folder.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import io
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import command
import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.metrics.oks_ap import TrueKeypoints, pack_keypoints
from rmpe_jax.nms.baselines import oks_nms
from rmpe_jax.nms.objective import oks_objective
from rmpe_jax.nms.pose import ALPHAPOSE, PoseNMSParameters, suppress_poses
from rmpe_jax.nms.search import NAMES, Grid, learnable, try_grid
from rmpe_jax.records import Poses
from rmpe_jax.skeleton import COCO_17

PICTURES, SIZE = 64, (640, 480)
COUNTS, QUICK_COUNTS = (5, 20, 50, 100, 200), (20, 200)
OKS_THRESHOLD = 0.9  # mmpose's
SIGMAS = np.array(COCO_17.sigmas)
# An upright person in a box of 1 x 1, in COCO's order.
UPRIGHT = (
    np.array(
        [[50, 10], [53, 8], [47, 8], [57, 9], [43, 9], [66, 21], [34, 21], [75, 36], [25, 36], [79, 50], [21, 50]]
        + [[60, 52], [40, 52], [61, 74], [39, 74], [62, 95], [38, 95]],
    )
    / 100
)


class Picture(NamedTuple):
    """The proposals of one picture."""

    points: np.ndarray  # (n, 17, 2)
    score: np.ndarray  # (n, 17)
    boxes: np.ndarray  # (n, 4)


class Contestant(NamedTuple):
    """One way to do it."""

    run: Callable[[], Any]  # gives what ``stays`` reads
    stays: Callable[[Any], list[list[int]]]  # which poses stay, of each picture
    calls: int  # in a row, for one reading of the clock
    pictures: int  # in a call


def made_scene(rng: np.random.Generator, count: int) -> tuple[Picture, np.ndarray, np.ndarray]:
    """Near duplicates of people of 40 to 400 pixels, some of whose joints are far off, in any order.

    Returns:
        The proposals, the people's joints (people, 17, 2), and their areas.
    """
    person = np.repeat(np.arange(count), rng.integers(2, 6, count))[:count]
    height = np.exp(rng.uniform(np.log(40), np.log(400), count))
    size = np.stack([height * rng.uniform(0.35, 0.6, count), height], -1)
    centre = rng.uniform(0, 1, (count, 2)) * SIZE
    people = centre[:, None] + (UPRIGHT - 0.5) * size[:, None]
    people += rng.normal(size=people.shape) * 0.06 * height[:, None, None]
    number = person.max() + 1
    truth = people[:number], 0.6 * size[:number].prod(1)
    sure = rng.uniform(0.35, 0.98, count)
    # From here on one row is a proposal.
    height, size, centre = height[person, None, None], size[person], centre[person]
    wrong = rng.random((count, 17)) < 0.04
    points = people[person] + rng.normal(size=(count, 17, 2)) * (0.006 * height + 0.3)
    points += wrong[..., None] * rng.normal(size=(count, 17, 2)) * 0.25 * height
    score = np.clip(rng.normal(sure[person, None], 0.12, (count, 17)) - 0.35 * wrong, 0.01, 0.99)
    # Sums of so few digits are exact in float32, so that everybody ranks the poses alike in whatever order they add.
    score = np.round(score * 2**18) / 2**18
    corners = np.concatenate([centre - size / 2, centre + size / 2], -1)
    boxes = corners + rng.normal(size=(count, 4)) * 0.05 * np.tile(size, 2)
    order = rng.permutation(count)
    return Picture(*(array[order].astype(np.float32) for array in (points, score, boxes))), *truth


def made_pictures(count: int) -> list[Picture]:
    """``PICTURES`` pictures with so many proposals."""
    rng = np.random.default_rng([0, count])
    return [made_scene(rng, count)[0] for _ in range(PICTURES)]


def plain_pose_nms(picture: Picture) -> list[int]:
    """AlphaPose's rules, one reference after the other, as arrays over the poses left and their joints."""
    points, score, boxes = picture
    rank, reach = score.mean(1), ALPHAPOSE.alpha * (boxes[:, 2:] - boxes[:, :2]).max(1)
    left, kept = np.arange(len(points)), []
    while len(left):
        best = left[rank[left].argmax()]
        distance, similarity = plain_similarity(picture, best, left, ALPHAPOSE)
        matches = (distance <= min(reach[best], ALPHAPOSE.match_limit)).sum(1)
        gone = (similarity > ALPHAPOSE.eta) | (matches >= ALPHAPOSE.match_joints) | (left == best)
        near = distance[gone] <= min(reach[best], ALPHAPOSE.merge_limit)
        _, merged_score = plain_merge(points[left[gone]], score[left[gone]] * near)
        if min(score[best].max(), merged_score.max()) >= ALPHAPOSE.min_best:
            kept.append(int(best))
        left = left[~gone]
    return sorted(kept)


def plain_similarity(
    picture: Picture, best: Any, left: np.ndarray, parameters: PoseNMSParameters
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of the joints of one pose from those of others, pixels, and its similarity with them."""
    points, score, _ = picture
    distance = np.sqrt(((points[left] - points[best]) ** 2).sum(-1))
    both = np.tanh(score[best] / parameters.sigma1) * np.tanh(score[left] / parameters.sigma1)
    similarity = np.where(distance <= 1, both, 0).sum(1)
    return distance, similarity + parameters.lambda_ * np.exp(-distance / parameters.sigma2).sum(1)


def plain_merge(points: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints and their scores as the means of a cluster, weighted by score."""
    share = weight / weight.sum(0)
    return (points * share[..., None]).sum(0), (weight * share).sum(0)


def plain_oks_nms(picture: Picture) -> list[int]:
    """OKS NMS as in mmpose: one reference after the other, and one of the poses left after the other."""
    points, score, boxes = picture
    flat = np.concatenate([points, score[..., None]], -1).reshape(len(points), -1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    left, kept = np.argsort(-score.mean(1), kind="stable"), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        left = left[plain_oks(flat[best], flat[left], areas[best], areas[left]) <= OKS_THRESHOLD]
    return sorted(kept)


def plain_oks(pose: np.ndarray, others: np.ndarray, area: float, areas: np.ndarray) -> np.ndarray:
    """OKS of one pose with others, each of 17 triplets x, y, score."""
    variance, x, y = (2 * SIGMAS) ** 2, pose[0::3], pose[1::3]
    found = np.zeros(len(others))
    for index in range(len(others)):
        dx, dy = others[index, 0::3] - x, others[index, 1::3] - y
        error = (dx**2 + dy**2) / variance / ((area + areas[index]) / 2 + np.spacing(1)) / 2
        found[index] = np.sum(np.exp(-error)) / len(error)
    return found


def load_alphapose(path: Path) -> tuple[ModuleType, Callable[[Picture], list[int]]]:
    """AlphaPose's file at ``path``, and its function as one from a picture to the poses that stay."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    # The older file reads the command line by a module of this name, for a function that is not needed here.
    sys.modules.setdefault("opt", stand_in := ModuleType("opt"))
    stand_in.__dict__["opt"] = None
    spec = importlib.util.spec_from_file_location("alphapose_nms", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, partial(run_alphapose, torch, module.pose_nms)


def run_alphapose(torch: Any, function: Callable[..., Any], picture: Picture) -> list[int]:
    """Which poses stay by AlphaPose. It changes what it is given, so it gets copies.

    It carries the boxes' scores along and reads none of them, so they tell which pose a result is.
    """
    points, score, boxes = (torch.from_numpy(array).clone() for array in picture)
    number = torch.arange(float(len(points)))
    if "bbox_ids" in inspect.signature(function).parameters:
        found = function(boxes, number[:, None], number[:, None].clone(), points, score[..., None])
        return sorted(round(float(each)) for each in found[1])
    found = function(boxes, number, points, score[..., None])
    # The older one adds two of the joints' scores to that of the box.
    rest = [each["proposal_score"] - each["kp_score"].mean() - 1.25 * each["kp_score"].max() for each in found]
    return sorted(round(float(each)) for each in rest)


def contestants(pictures: list[Picture], alphapose: Callable[[Picture], list[int]] | None) -> dict[str, Contestant]:
    """Who is timed, by name."""
    points, score, boxes = (jnp.asarray(np.stack(arrays)) for arrays in zip(*pictures, strict=True))
    poses, count = Poses(points, score, boxes, jnp.ones(score.shape[:2], bool)), len(pictures[0].points)
    ours = jax.jit(jax.vmap(partial(suppress_poses, parameters=ALPHAPOSE)))
    oks = jax.jit(jax.vmap(partial(oks_nms, threshold=OKS_THRESHOLD, sigmas=COCO_17.sigmas)))
    # The loop over pairs takes so long that fewer pictures must do.
    some = pictures[: 8 if count >= 100 else PICTURES]
    calls = max(1, 2000 // count)
    found = {
        "rmpe_jax": Contestant(partial(finished, ours, poses), lambda r: kept(r.poses.valid), calls, PICTURES),
        "rmpe_jax_oks": Contestant(partial(finished, oks, poses), kept, calls, PICTURES),
        "plain": Contestant(lambda: [plain_pose_nms(picture) for picture in pictures], list, 1, PICTURES),
        "oks_plain": Contestant(lambda: [plain_oks_nms(picture) for picture in some], list, 1, len(some)),
    }
    if alphapose is not None:
        found["alphapose"] = Contestant(lambda: [alphapose(picture) for picture in pictures], list, 1, PICTURES)
    return found


def finished(function: Callable[[Poses], Any], poses: Poses) -> Any:
    """The result, once it is there."""
    return jax.block_until_ready(function(poses))


def kept(mask: Any) -> list[list[int]]:
    """The numbers of the poses that stay, of each picture."""
    return [np.flatnonzero(row).tolist() for row in np.asarray(mask)]


def seconds_of(contestant: Contestant) -> tuple[list[list[int]], float, float]:
    """Which poses stay; and for one picture CPU seconds, and seconds by the clock."""
    start, begun, result = time.process_time(), time.perf_counter(), None
    for _ in range(contestant.calls):
        result = contestant.run()
    done = contestant.calls * contestant.pictures
    cpu, wall = (time.process_time() - start) / done, (time.perf_counter() - begun) / done
    return contestant.stays(result), cpu, wall


def measured(count: int, rounds: int, alphapose: Callable[[Picture], list[int]] | None) -> dict[str, Any]:
    """Seconds of everybody for a picture with so many proposals, the best of all rounds, and who agrees."""
    runs = contestants(made_pictures(count), alphapose)
    for name in ("rmpe_jax", "rmpe_jax_oks"):
        runs[name].run()  # compiles
    taken = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            taken[name].append(seconds_of(runs[name]))
    stays = {name: rows[-1][0] for name, rows in taken.items()}
    pairs = (("plain", "rmpe_jax"), ("alphapose", "rmpe_jax"), ("oks_plain", "rmpe_jax_oks"))
    agree = {peer: stays[ours][: len(stays[peer])] == stays[peer] if peer in stays else None for peer, ours in pairs}
    figures: dict[str, Any] = {"agree": agree}
    for place, kind in ((1, "cpu"), (2, "wall")):
        figures[kind] = {name: min(row[place] for row in rows) for name, rows in taken.items()}
    return figures


def find_alphapose(path: Path | None) -> tuple[ModuleType | None, Callable[[Picture], list[int]] | None, str | None]:
    """AlphaPose's file and function, or why they are missing."""
    if path is None:
        return None, None, "no --alphapose"
    try:
        module, alphapose = load_alphapose(path)
        alphapose(made_pictures(5)[0])
    except (ImportError, OSError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        return None, None, f"{type(error).__name__}: {error}"
    return module, alphapose, None


def nms_figures(quick: bool, alphapose: Callable[[Picture], list[int]] | None) -> dict[str, Any]:
    """All figures of the NMS: ratios of CPU seconds, agreement, pictures a second."""
    counts, rounds = (QUICK_COUNTS, 2) if quick else (COUNTS, 5)
    found = {count: measured(count, rounds, alphapose) for count in counts}
    figures: dict[str, Any] = {"backend": jax.default_backend(), "jax": jax.__version__, "rounds": rounds}
    for peer, ours in (("alphapose", "rmpe_jax"), ("plain", "rmpe_jax"), ("oks_plain", "rmpe_jax_oks")):
        for count, row in found.items():
            seconds = row["cpu"].get(peer)
            figures[f"ratio_{peer}_n{count}"] = seconds and round(seconds / row["cpu"][ours], 1)
    for name, peer in (("", "alphapose"), ("plain_", "plain"), ("oks_", "oks_plain")):
        agree = [row["agree"][peer] for row in found.values()]
        figures[f"{name}kept_sets_equal"] = None if None in agree else all(agree)
    for count, row in found.items():
        figures[f"pictures_per_second_n{count}"] = round(1 / row["cpu"]["rmpe_jax"])
        figures[f"pictures_per_second_wall_n{count}"] = round(1 / row["wall"]["rmpe_jax"])
    milliseconds = {
        kind: {f"n{count}": {name: round(1000 * s, 5) for name, s in row[kind].items()} for count, row in found.items()}
        for kind in ("cpu", "wall")
    }
    return figures | {"milliseconds": milliseconds}


class LearningScene(NamedTuple):
    """Pictures with proposals and labels, as this package and as pycocotools take them."""

    pictures: list[Picture]
    poses: Poses  # padded
    truth: TrueKeypoints
    annotations: list[dict[str, Any]]


def made_learning_scene(count: int) -> LearningScene:
    """``count`` pictures of 4 to 24 proposals."""
    rng = np.random.default_rng(7)
    scenes = [made_scene(rng, int(rng.integers(4, 25))) for _ in range(count)]
    pictures, annotations = [scene[0] for scene in scenes], []
    for number, (_, people, areas) in enumerate(scenes, 1):
        for points, area in zip(people, areas, strict=True):
            joints = np.concatenate([points, np.full((17, 1), 2.0)], 1).ravel().tolist()
            low, size = points.min(0), np.ptp(points, 0)
            person = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            person |= {"keypoints": joints, "num_keypoints": 17, "area": float(area), "bbox": [*low, *size]}
            annotations.append(person)
    capacity = max(len(picture.points) for picture in pictures)
    padded = [[np.pad(a, [(0, capacity - len(a)), *[(0, 0)] * (a.ndim - 1)]) for a in picture] for picture in pictures]
    arrays: Any = [np.stack(field) for field in zip(*padded, strict=True)]
    valid: Any = np.arange(capacity) < np.array([len(picture.points) for picture in pictures])[:, None]
    truth, _ = pack_keypoints(annotations, [], range(1, count + 1))
    return LearningScene(pictures, Poses(*arrays, valid=valid), truth, annotations)


def plain_distance_nms(picture: Picture, parameters: PoseNMSParameters) -> list[int]:
    """AlphaPose's elimination by similarity alone, one reference after the other."""
    points, score, _ = picture
    rank, eta = score.mean(1), parameters.threshold(points.shape[1])
    left, kept = np.arange(len(points)), []
    while len(left):
        best = left[rank[left].argmax()]
        _, similarity = plain_similarity(picture, best, left, parameters)
        kept.append(int(best))
        left = left[(similarity <= eta) & (left != best)]
    return sorted(kept)


def run_peer(
    scene: LearningScene, keep: Callable[[Picture], list[int]], api: tuple[Any, Any]
) -> tuple[float, float, float]:
    """AP by pycocotools of what a loop over the pictures keeps; CPU seconds of the loop and of pycocotools."""
    begun = time.process_time()
    stays = [keep(picture) for picture in scene.pictures]
    half = time.process_time()
    results = [
        {
            "image_id": number,
            "category_id": 1,
            "keypoints": np.concatenate([picture.points[pose], picture.score[pose, :, None]], 1).ravel().tolist(),
            "score": float(picture.score[pose].mean()),
        }
        for number, (picture, kept) in enumerate(zip(scene.pictures, stays, strict=True), 1)
        for pose in kept
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        labels = api[0]()
        images = [{"id": number} for number in range(1, len(scene.pictures) + 1)]
        labels.dataset = {"info": {}, "images": images, "annotations": scene.annotations, "categories": [{"id": 1}]}
        labels.createIndex()
        evaluation = api[1](labels, labels.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), half - begun, time.process_time() - half


def search_figures(
    quick: bool, module: ModuleType | None, alphapose: Callable[[Picture], list[int]] | None
) -> dict[str, Any]:
    """Settings of the four parameters a second, by us and by loops, and how far the APs are apart."""
    coco, evaluator = (importlib.import_module(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    scene = made_learning_scene(500)
    parameters = learnable(dataclasses.replace(ALPHAPOSE, match_joints=0, min_best=0.0), 17)
    objective = oks_objective(scene.poses, scene.truth)
    axes = (np.geomspace(0.05, 3, 16), np.geomspace(0.5, 20, 16), np.geomspace(0.2, 8, 16), np.linspace(0.05, 0.9, 16))
    grid = Grid(**{name: tuple(axis.tolist()) for name, axis in zip(NAMES, axes, strict=True)})
    part = dataclasses.replace(grid, sigma1=grid.sigma1[:2]) if quick else grid
    try_grid(objective, part, parameters)  # compiles
    begun, start = time.process_time(), time.perf_counter()
    values = try_grid(objective, part, parameters)[0]
    cpu, wall = time.process_time() - begun, time.perf_counter() - start
    rng, rows, apart = np.random.default_rng(1), {}, 0.0
    for number in range(2 if quick else 5):
        place = tuple(int(rng.integers(size)) for size in part.shape)
        each = part.at(place, parameters)
        keeps: dict[str, Callable[[Picture], list[int]]] = {"plain": partial(plain_distance_nms, parameters=each)}
        if module is not None and alphapose is not None and not (quick and number):
            numbers = {"delta1": each.sigma1, "delta2": each.sigma2, "mu": each.lambda_, "gamma": each.threshold(17)}
            vars(module).update(numbers, matchThreds=99, scoreThreds=0.0)
            keeps["alphapose"] = alphapose
        for name, keep in keeps.items():
            ap, eliminating, judging = run_peer(scene, keep, (coco.COCO, evaluator.COCOeval))
            rows.setdefault(name, []).append(eliminating + judging)
            apart = max(apart, abs(ap - float(values[place])))
    rate = values.size / cpu
    figures: dict[str, Any] = {"settings": values.size, "settings_per_second": round(rate)}
    figures["settings_per_second_wall"] = round(values.size / wall)
    figures["grid16_seconds_estimate"] = round(16**4 * wall / values.size, 1)
    figures["ap_abs_diff"] = apart
    for name in ("plain", "alphapose"):
        seconds = float(np.median(rows[name])) if name in rows else None
        figures[f"{name}_seconds_per_setting"] = seconds and round(seconds, 3)
        figures[f"ratio_{name}_settings"] = seconds and round(seconds * rate)
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    cpu, wall = (figures["milliseconds"][kind] for kind in ("cpu", "wall"))
    lines = [f"{PICTURES} pictures on {figures['backend']}; CPU milliseconds a picture (by the clock), best of rounds"]
    lines[0] += f" ({figures['rounds']})"
    lines.append(f"{'proposals':<14}" + "".join(f"{count[1:]:>18}" for count in cpu))
    for name in next(iter(cpu.values())):
        cells = [f"{row[name]:.4f} ({wall[count][name]:.4f})" for count, row in cpu.items()]
        lines.append(f"{name:<14}" + "".join(f"{cell:>18}" for cell in cells))
    shown = ("ratio", "kept", "sett", "grid", "ap_abs")
    lines += [f"{name}: {value}" for name, value in figures.items() if any(part in name for part in shown)]
    return "\n".join(lines + ([f"AlphaPose: {figures['alphapose_missing']}"] if figures["alphapose_missing"] else []))


def use_one_core() -> None:
    """On one core everybody's CPU seconds mean the same; threads that wait for each other would count as work."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> None:
    """Reads the command line, measures and reports."""
    parser = command.parser(
        "Times the pose NMS beside loops and AlphaPose.", quick="two rounds of two sizes instead of five of five"
    )
    parser.add_argument("--alphapose", type=Path, metavar="FILE", help="AlphaPose's pPose_nms.py; needs PyTorch")
    options = parser.parse_args()
    use_one_core()
    module, alphapose, missing = find_alphapose(options.alphapose)
    figures = nms_figures(options.quick, alphapose) | {"alphapose_missing": missing}
    figures |= search_figures(options.quick, module, alphapose)
    command.report(figures, options.json, table(figures))


if __name__ == "__main__":
    main()
