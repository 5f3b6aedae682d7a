"""From a file of detections and a labelled data set to learned parameters of the pose NMS: what `rmpe fit-nms` does."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.data.coco import coco_annotations, read_coco_annotations
from rmpe_jax.data.files import DataError
from rmpe_jax.data.people import LabelledPicture
from rmpe_jax.data.sets import data_set, read_data
from rmpe_jax.evaluate import protocols
from rmpe_jax.evaluate.predictions import Prediction, Predictions, read_predictions
from rmpe_jax.evaluate.results import compare, make_result
from rmpe_jax.evaluate.run import PROTOCOLS
from rmpe_jax.metrics.oks_ap import pack_keypoints
from rmpe_jax.nms.objective import Objective, oks_objective, people_objective
from rmpe_jax.nms.pose import DEFAULT, PoseNMSParameters, pose_nms
from rmpe_jax.nms.search import NAMES, Fit, Progress, best_place, default_grid, fit_pose_nms, learnable
from rmpe_jax.pretrained import save_nms
from rmpe_jax.records import Poses
from rmpe_jax.skeleton import Skeleton

#: How far below the best a setting may be, for what is said about how flat the optimum is.
TOLERANCES = (0.001, 0.005, 0.01)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What parameters are learned from: labelled pictures and everything that was found in them."""

    pictures: list[LabelledPicture]
    skeleton: Skeleton
    predictions: Predictions
    multi_person: bool  # MPII's and WAF's AP; else COCO's
    labels: str = "these pictures"  # where the people are labelled, for errors


def read_labelled(
    detections: str | Path,
    *,
    annotations: str | Path | None = None,
    dataset: str | None = None,
    folder: str | Path = ".",
    split: str | None = None,
) -> Labelled:
    """Reads detections, and the labels of a COCO annotation file or of a data set.

    Args:
        detections: poses before any NMS, see ``evaluate.predictions``.
        annotations: a file of COCO or CrowdPose; the pictures need not be there.
        dataset: instead of it, a data set that has a protocol for several people: coco, crowdpose, mpii, waf.
        folder: of the data set.
        split: of the data set; by default the training split, since the test split is to be measured.

    Raises:
        DataError: naming the file and the record, or the option that is wrong.
    """
    if annotations is not None and dataset is None:
        pictures, skeleton = read_coco_annotations(annotations)
        protocol: str | None = "oks"
        labels = str(annotations)
    elif dataset is not None and annotations is None:
        known = PROTOCOLS[data_set(dataset).name][0]
        protocol = next((name for name in ("oks", "multi") if name in known), None)
        if protocol is None:
            raise DataError(f"{dataset}: measures people one by one: it says nothing about duplicates")
        skeleton = data_set(dataset).skeleton
        split = split or data_set(dataset).splits[0]
        pictures = read_data(dataset, folder, split)
        labels = f"{dataset}, {split}"
    else:
        raise DataError("expected either an annotation file or a data set")
    if protocol == "oks":
        # Of equal scores COCO's evaluation takes the picture of the lower number first.
        pictures = sorted(pictures, key=lambda record: record.image_id)
    predictions = read_predictions(detections, pictures, skeleton)
    return Labelled(pictures, skeleton, predictions, protocol == "multi", labels)


def as_poses(by_picture: Sequence[Sequence[Prediction]], order: Sequence[int]) -> tuple[Poses, np.ndarray]:
    """Predictions as padded host arrays, and their scores (i, p); a joint that is not predicted is NaN.

    Args:
        by_picture: the predictions of each picture.
        order: which joints, as indices.
    """
    capacity = max([1, *(len(found) for found in by_picture)])
    shape, order = (len(by_picture), capacity), list(order)
    points = np.full((*shape, len(order), 2), np.nan, np.float32)
    joint_score, boxes = np.zeros((*shape, len(order)), np.float32), np.zeros((*shape, 4), np.float32)
    score, valid = np.zeros(shape), np.zeros(shape, bool)
    for row, found in enumerate(by_picture):
        for place, pose in enumerate(found):
            points[row, place] = np.where(pose.present[order, None], pose.points[order], np.nan)
            joint_score[row, place] = np.where(pose.present[order], pose.score[order], 0)
            boxes[row, place] = _extent(pose) if pose.box is None else pose.box
            score[row, place], valid[row, place] = pose.pose_score, True
    arrays: Any = (points, joint_score, boxes, valid)
    return Poses(*arrays), score


def _extent(pose: Prediction) -> np.ndarray:
    shown = pose.points[pose.present] if pose.present.any() else np.zeros((1, 2))
    return np.concatenate([shown.min(0), shown.max(0)])


def make_objective(labelled: Labelled) -> Objective:
    """COCO's AP, or the multi-person AP of groups, with everything that was found.

    Raises:
        DataError: nobody is labelled, or nobody was found in the pictures of groups.
    """
    pictures, skeleton = labelled.pictures, labelled.skeleton
    if labelled.multi_person:
        joints, _ = protocols.multi_person_joints(skeleton)
        order = [skeleton.joints.index(joint) for joint in joints]
        groups = protocols.groups_of(pictures, labelled.predictions, skeleton)
        poses, _ = as_poses([group.poses for group in groups], order)
        if not poses.valid.any():
            raise DataError(f"{labelled.predictions.source}: has no poses for any picture with a group of people")
        belongs = np.zeros(poses.valid.shape, bool)
        for row, group in enumerate(groups):
            belongs[row, : len(group.poses)] = group.belongs
        truth, places = protocols.true_people(pictures, groups, order), np.array([group.place for group in groups])
        return people_objective(poses, truth, belongs=belongs, picture=places)
    poses, score = as_poses(by_picture(labelled), range(skeleton.size))
    numbers = [record.image_id for record in pictures]
    if not any((record.visibility[~record.crowd] > 0).any() for record in pictures):
        raise DataError(f"nobody to measure: no labelled people in {labelled.labels}")
    truth, _ = pack_keypoints(coco_annotations(pictures), [], numbers, joints=skeleton.size)
    # The labels are packed by rising number.
    place = np.argsort(np.argsort(numbers))
    truth = jax.tree.map(lambda field: field[place], truth)
    return oks_objective(poses, truth, score=score, sigmas=skeleton.sigmas)


def by_picture(labelled: Labelled) -> list[list[Prediction]]:
    """The predictions of each picture, in their order."""
    found: dict[int, list[Prediction]] = {record.image_id: [] for record in labelled.pictures}
    for pose in labelled.predictions.poses:
        found[pose.image_id].append(pose)
    return list(found.values())


def suppressed(labelled: Labelled, parameters: Sequence[PoseNMSParameters], chosen: np.ndarray) -> Predictions:
    """The predictions that the pose NMS keeps, as they are, with parameters of its own for every picture.

    Args:
        labelled: with all predictions.
        parameters: some.
        chosen: (i,) which of them each picture takes.
    """
    found = by_picture(labelled)
    order = range(labelled.skeleton.size)
    if labelled.multi_person:
        order = [labelled.skeleton.joints.index(joint) for joint in protocols.multi_person_joints(labelled.skeleton)[0]]
    poses, _ = as_poses(found, order)
    stays = np.zeros(poses.valid.shape, bool)
    for number, each in enumerate(parameters):
        # The rank that the search goes by: JAX may round the means of equal scores apart.
        kept = _suppress_pictures(jax.tree.map(jnp.asarray, poses), jnp.asarray(poses.pose_score), each)
        stays[chosen == number] = np.asarray(kept)[chosen == number]
    kept = [pose for row, group in enumerate(found) for place, pose in enumerate(group) if stays[row, place]]
    return dataclasses.replace(labelled.predictions, poses=kept)


def _suppress_pictures(poses: Poses, rank: jax.Array, parameters: PoseNMSParameters) -> jax.Array:
    return jax.jit(jax.vmap(lambda *one: pose_nms(one[0], rank=one[1], parameters=parameters)))(poses, rank)


def fit_nms(
    labelled: Labelled,
    out: str | Path,
    *,
    parameters: PoseNMSParameters = DEFAULT,
    size: int = 16,
    folds: int = 5,
    seed: int = 0,
    replicates: int = 1000,
    progress: Progress | None = None,
) -> tuple[Fit, dict[str, Any]]:
    """Learns the pose NMS, and writes what `rmpe predict --nms` takes, with how it was learned.

    Args:
        labelled: see ``read_labelled``.
        out: the JSON file.
        parameters: the definitions, and where the paper's search starts. Learning judges poses as they were found; if
            these parameters merge, so do the written ones.
        size: values of each parameter.
        folds: of the pictures, see ``fit_pose_nms``; 0 for no value on pictures that were not searched on.
        seed: of folds, starts and bootstrap.
        replicates: of the bootstrap over pictures, for the interval of the gain; 0 for none.
        progress: see ``fit_pose_nms``.

    Returns:
        The fit, and what is said about it in the file.

    Raises:
        DataError: nobody is labelled, or there are fewer pictures than folds.
    """
    objective = make_objective(labelled)
    pictures = len(np.unique(objective.together))
    if folds > pictures:
        raise DataError(f"{folds} folds of {pictures} pictures: fewer --folds, or 0 for none")
    given = learnable(parameters, objective.joints)
    options: dict[str, Any] = {} if progress is None else {"progress": progress}
    grid = default_grid(given, size=size)
    fit = fit_pose_nms(objective, parameters=given, grid=grid, folds=folds, seed=seed, **options)
    about = describe(fit, objective, labelled) | {"seed": seed, "merge": parameters.merge}
    if folds:
        about["held_out_gain"] = _gain(labelled, given, fit, seed, replicates)
    save_nms(out, dataclasses.replace(fit.parameters, merge=parameters.merge), about={"fit": about})
    return fit, about


def _gain(
    labelled: Labelled, given: PoseNMSParameters, fit: Fit, seed: int, replicates: int
) -> dict[str, float | None]:
    """How much better the poses are that are kept by what was learned without their picture, with its interval.

    Both are evaluated as `rmpe evaluate` does, so COCO's numbers are pycocotools'.
    """
    fold = fit.fold
    if labelled.multi_person:
        groups = protocols.groups_of(labelled.pictures, labelled.predictions, labelled.skeleton)
        fold = np.zeros(len(labelled.pictures), int)
        fold[[group.place for group in groups]] = fit.fold
    results = []
    for parameters, chosen in (((given,), np.zeros_like(fold)), (fit.learned_without, fold)):
        kept = suppressed(labelled, parameters, chosen)
        if labelled.multi_person:
            measured = protocols.multi_person(labelled.pictures, kept, labelled.skeleton, denominator="strict")
        else:
            measured = protocols.oks(labelled.pictures, kept, labelled.skeleton)
        names = [record.picture.name for record in labelled.pictures]
        results.append(make_result({}, measured, names, replicates=replicates, seed=seed))
    name = "ap_columns/Total" if labelled.multi_person else "ap"
    difference = next(entry for entry in compare(*results) if entry.name == name)
    return {"given": difference.first, "learned": difference.second, "low": difference.low, "high": difference.high}


def describe(fit: Fit, objective: Objective, labelled: Labelled) -> dict[str, Any]:
    """What the file of learned parameters says about them; average precisions are shares in [0, 1]."""
    best = float(fit.values.max())
    ends = np.array(fit.ends)
    return {
        "metric": objective.name,
        "detections": labelled.predictions.source,
        "skeleton": labelled.skeleton.name,
        "pictures": len(labelled.pictures),
        "pictures_without_poses": sum(not found for found in by_picture(labelled)),
        "poses": len(labelled.predictions.poses),
        "settings": int(fit.values.size),
        "value": {"learned": fit.value, "given": fit.given, "without_nms": fit.nobody, "held_out": fit.held_out},
        "alternating": {
            "path": [
                {name: axis[i] for name, axis, i in _named(fit, step.index)} | {"value": step.value}
                for step in fit.path
            ],
            "below_exhaustive": best - fit.path[-1].value,
            "random_starts": len(ends),
            "starts_that_reach_it": float((ends >= best - 1e-6).mean()) if len(ends) else None,
            "worst_start_below": best - float(ends.min()) if len(ends) else None,
        },
        "best_settings": [
            {name: axis[i] for name, axis, i in _named(fit, index)} | {"value": float(fit.values[index])}
            for index in best_places(fit.values)
        ],
        "flatness": [flatness(fit, tolerance) for tolerance in TOLERANCES],
        "learned_without": [{name: getattr(each, name) for name in NAMES} for each in fit.learned_without],
        "grid": {name: list(axis) for name, axis in zip(NAMES, fit.grid.axes, strict=True)},
    }


def _named(fit: Fit, index: tuple[int, ...]) -> list[tuple[str, tuple[float, ...], int]]:
    return list(zip(NAMES, fit.grid.axes, index, strict=True))


def best_places(values: np.ndarray, count: int = 10) -> list[tuple[int, ...]]:
    """The places of the ``count`` best values of a grid, each value once, in the middle of the places that tie."""
    rounded = np.round(values, 6)
    return [best_place((rounded == level).astype(float)) for level in np.unique(rounded)[::-1][:count]]


def flatness(fit: Fit, tolerance: float) -> dict[str, Any]:
    """How much of the grid is within ``tolerance`` of its best, and from where to where each parameter may go there."""
    close = fit.values >= fit.values.max() - tolerance
    reached = {
        name: np.array(values)[close.any(tuple(other for other in range(4) if other != axis))]
        for axis, (name, values) in enumerate(zip(NAMES, fit.grid.axes, strict=True))
    }
    ranges = {name: [float(values.min()), float(values.max())] for name, values in reached.items()}
    return {"below": tolerance, "share": float(close.mean()), **ranges}


def as_text(fit: Fit, about: dict[str, Any]) -> str:
    """What was learned, for the terminal."""
    value, empty = about["value"], about["pictures_without_poses"]
    without = f", {empty} of them without any" if empty else ""
    lines = [
        f"{about['metric']}, in per cent, of {about['poses']} poses in {about['pictures']} pictures{without}:",
        f"  no NMS {_per_cent(value['without_nms'])}   given {_per_cent(value['given'])}   "
        f"learned {_per_cent(value['learned'])}",
    ]
    if fit.held_out is not None:
        gain = about["held_out_gain"]
        ends = "" if gain["low"] is None else f" ({_signed(gain['low'])} to {_signed(gain['high'])})"
        lines.append(
            f"  on pictures that were not searched on, {len(fit.learned_without)} folds: {_per_cent(gain['learned'])}, "
            f"{_signed(gain['learned'] - gain['given'])}{ends} over given"
        )
    there = about["alternating"]
    lines += [
        f"two parameters at a time: {len(fit.path) - 1} steps to {_per_cent(fit.path[-1].value)}, "
        f"{100 * there['below_exhaustive']:.2f} below the best of {about['settings']:,} settings",
    ]
    if there["random_starts"]:
        lines.append(
            f"  from {there['random_starts']} random starts {_per_cent(there['starts_that_reach_it'])} % get there, "
            f"the worst ends {100 * there['worst_start_below']:.2f} below"
        )
    lines += ["", "best settings", f"{'sigma1':>10}{'sigma2':>10}{'lambda':>10}{'eta':>10}{'AP':>8}"]
    for setting in about["best_settings"]:
        numbers = "".join(f"{setting[name]:10.4g}" for name in NAMES)
        lines.append(f"{numbers}{100 * setting['value']:8.2f}")
    lines += ["", "how flat the optimum is"]
    for level in about["flatness"]:
        ranges = ", ".join(f"{name.rstrip('_')} {level[name][0]:.3g} to {level[name][1]:.3g}" for name in NAMES)
        lines.append(f"  within {100 * level['below']:g}: {100 * level['share']:.1f} % of the settings; {ranges}")
    chosen = ", ".join(f"{name.rstrip('_')} {getattr(fit.parameters, name):.4g}" for name in NAMES)
    lines += ["", f"learned: {chosen}"]
    if about.get("merge", "none") != "none":
        lines.append("the file merges poses as the preset does; all figures here are without merging")
    return "\n".join(lines)


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"
