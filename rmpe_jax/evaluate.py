"""Weights and a data set in, the figures of its protocol out."""

import contextlib
import io
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from rmpe_jax.data.coco import annotation_file, read_coco
from rmpe_jax.data.lsp import read_lspet
from rmpe_jax.data.people import DataError, Person, Picture, in_skeleton
from rmpe_jax.data.pipeline import usable_people
from rmpe_jax.metrics.pck import correct_joints, pck, torso_length
from rmpe_jax.predict.detectors import read_boxes
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.predict.formats import coco_results
from rmpe_jax.records import Boxes, Poses
from rmpe_jax.skeleton import COCO_17, LIMB_JOINTS, LSP_14, Skeleton

Result = dict[str, Any]
_COCO_NAMES = ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large")


def evaluate_lspet(estimator: Estimator, folder: str | Path, *, seed: int = 0, limit: int | None = None) -> Result:
    """PCK@0.2 of the torso on LSPET's validation people, beside two references that never see the picture.

    Args:
        estimator: any whose skeleton has LSP's joints.
        folder: holds ``lspet_dataset.zip``.
        seed: of the random reference.
        limit: only the first people, for a quick look.

    Returns:
        ``pck``, ``pck_per_joint``; ``mean_pose_pck`` (the mean training pose placed in the box); ``random_pck``
        (joints drawn uniformly in the box); ``people``, and how many of them have no labelled torso and do not count.
    """
    people = usable_people(read_lspet(folder, "val"), 1)[:limit]
    training = usable_people(read_lspet(folder, "train"), 1)
    if not people or not training:
        raise DataError(f"{folder}: no labelled people in the validation or the training split")
    predicted = predict_people(estimator, people, LSP_14)
    truth, labelled = _labels(people)
    boxes = np.stack([person.box for person in people])
    corner, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    chance = np.random.default_rng(seed).random(truth.shape)
    lengths = jax.vmap(partial(torso_length, skeleton=LSP_14))(truth, labelled)
    counted = labelled & (lengths > 0)[:, None]

    def score(points):
        return pck(jax.vmap(correct_joints)(jnp.asarray(points, jnp.float32), truth, counted, lengths), counted)

    total, per_joint = score(predicted)
    return {
        "dataset": "lspet",
        "weights": estimator.weights.experiment.name,
        "split": "val",
        "people": len(people),
        "people_without_torso": int((lengths == 0).sum()),
        "pck": _number(total),
        "mean_pose_pck": _number(score(corner + _mean_pose(training) * size)[0]),
        "random_pck": _number(score(corner + chance * size)[0]),
        "pck_per_joint": _by_name(LSP_14.joints, per_joint),
    }


def evaluate_coco(
    estimator: Estimator, folder: str | Path, split: str, *, boxes: str = "gt", limit: int | None = None
) -> Result:
    """OKS AP and AR by pycocotools.

    Args:
        estimator: any whose skeleton shares joints with COCO's.
        folder: in COCO's layout.
        split: such as "val2017".
        boxes: "gt" for the labelled people's own boxes (no NMS), "detector" for the estimator's, or a detection file.
        limit: only the first pictures, for a quick look.

    Returns:
        COCO's ten numbers, and for "gt" boxes ``limb_pck``: PCK@0.2 of the torso over the twelve joints of arms and
        legs, of the people whose torso is labelled.
    """
    people = read_coco(folder, split)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_file(folder, split)))
    pictures = {number: Picture(Path(folder) / split / image["file_name"]) for number, image in truth.imgs.items()}
    chosen = sorted(pictures)[:limit]
    file = read_boxes(boxes) if boxes not in ("gt", "detector") else None
    if file is not None:
        if file.problems:
            raise DataError("; ".join(file.problems[:3]))
        if not any(file.of_picture(pictures[number].path) for number in chosen):
            raise DataError(f"{file.path}: has no boxes for any of the pictures")
    by_picture: dict[int, list[int]] = {}
    for position, person in enumerate(people):
        by_picture.setdefault(person.image_id, []).append(position)
    results, points = [], {}
    for number in tqdm(chosen, "pictures", mininterval=1.0):
        path, image = pictures[number].path, pictures[number].read()
        if boxes == "gt":
            here = by_picture.get(number, [])
            found = _poses_in_boxes(estimator, image, [people[position].box for position in here])
            points |= dict(zip(here, found.points, strict=True))
        else:
            given = estimator.detector(image) if file is None else file.of_picture(path)
            found = estimator(image, given or Boxes.from_arrays([]))
        results += coco_results(found, estimator.skeleton, image_id=number, file_name=path.name)
    result: Result = {"dataset": "coco", "weights": estimator.weights.experiment.name, "split": split, "boxes": boxes}
    result |= {"pictures": len(chosen), "poses": len(results)}
    result |= coco_summary(truth, results, chosen)
    if boxes == "gt":
        result["limb_pck"] = _limb_pck(estimator.skeleton, people, points)
    return result


def coco_summary(truth: COCO, results: list[dict[str, Any]], image_ids: list[int]) -> dict[str, float]:
    """COCO's ten keypoint numbers for results on some pictures; all zero where there are no results."""
    if not results:
        return dict.fromkeys(_COCO_NAMES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes adds to the dictionaries that it is given; its type says str, but a list is documented.
        detections = truth.loadRes([dict(result) for result in results])  # pyright: ignore[reportArgumentType]
        evaluation = COCOeval(truth, detections, "keypoints")
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(_COCO_NAMES, evaluation.stats, strict=True)}


def predict_people(estimator: Estimator, people: list[Person], skeleton: Skeleton) -> np.ndarray:
    """The points of each labelled person, predicted in the person's own box: (n, k, 2) in ``skeleton``, pixels."""
    order = [estimator.skeleton.joints.index(joint) for joint in skeleton.joints]
    predicted = []
    for person in tqdm(people, "people", mininterval=1.0):
        found = _poses_in_boxes(estimator, person.picture.read(), [person.box])
        predicted.append(found.points[0, order])
    return np.stack(predicted)


def _poses_in_boxes(estimator: Estimator, image: np.ndarray, boxes: list[np.ndarray]) -> Poses:
    given = np.array(boxes, np.float32).reshape(-1, 4)
    return jax.tree.map(lambda array: np.asarray(array)[: len(given)], estimator.poses_in_boxes(image, given))


def _limb_pck(skeleton: Skeleton, people: list[Person], points: dict[int, np.ndarray]) -> float | None:
    """PCK@0.2 of the torso over ``LIMB_JOINTS``; None where nobody counts."""
    if not points:
        return None
    chosen = in_skeleton([people[position] for position in points], COCO_17, skeleton)
    truth, labelled = _labels(chosen)
    lengths = jax.vmap(partial(torso_length, skeleton=skeleton))(truth, labelled)
    limbs = np.isin(skeleton.joints, LIMB_JOINTS)
    counted = labelled & jnp.asarray(limbs)[None] & (lengths > 0)[:, None]
    correct = jax.vmap(correct_joints)(jnp.stack(list(points.values())), truth, counted, lengths)
    return _number(pck(correct, counted)[0])


def _labels(people: list[Person]) -> tuple[Array, Array]:
    points, labelled = np.stack([p.points for p in people]), np.stack([p.labelled for p in people])
    return jnp.asarray(points), jnp.asarray(labelled)


def _mean_pose(people: list[Person]) -> np.ndarray:
    """Mean joint positions as fractions of the box, (k, 2)."""
    labelled = np.stack([person.labelled for person in people])[..., None]
    boxes = np.stack([person.box for person in people])[:, None]
    relative = (np.stack([person.points for person in people]) - boxes[..., :2]) / (boxes[..., 2:] - boxes[..., :2])
    return np.where(labelled, relative, 0).sum(0) / np.maximum(labelled.sum(0), 1)


def _by_name(names: tuple[str, ...], values: Any) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(names, values, strict=True)}


def _number(value: Any) -> float | None:
    """None for NaN, the share of nothing, which JSON cannot hold."""
    return None if np.isnan(value) else float(value)


def table(result: Result) -> str:
    """A result as an aligned text table, one figure a line."""
    rows = []
    for name, value in result.items():
        items = value.items() if isinstance(value, dict) else [(name, value)]
        rows += [(("  " if isinstance(value, dict) else "") + key, item) for key, item in items]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {value:.4f}" if isinstance(value, float) else f"{name:<{width}}  {value}"
        for name, value in rows
    )
