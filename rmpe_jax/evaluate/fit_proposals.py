"""Fitting PGPG and DPG to labelled people and a detector's boxes.

A detection belongs to the person whose box it overlaps most, if by an IoU above 0.5. DPG's network learns to tell these
boxes from random ones (``train.proposal_scorer``). For PGPG, a Gaussian mixture of offsets for every atomic pose:
poses are brought to one torso length and clustered by k-means; the centres are the atomic poses. A detection's offsets
go to its person's atomic pose, and to each goes the Gaussian mixture with the lowest BIC. Atomic poses with too few
people, or no law of their own, take the mixture of everybody.

Reference: RMPE (ICCV) section 3.3 and arXiv version 1. Neither clustering nor fit was ever released; the number of
atomic poses and of components is not stated.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from rmpe_jax.data.files import DataError
from rmpe_jax.data.images import PictureError
from rmpe_jax.data.people import LabelledPicture, usable_rows
from rmpe_jax.errors import MissingExtraError
from rmpe_jax.evaluate.predictions import boxes_of_record
from rmpe_jax.geometry.boxes import box_iou
from rmpe_jax.models.proposal_scorer import apply_scorer
from rmpe_jax.predict.detectors import BoxesFile, Detector
from rmpe_jax.pretrained import read_arrays
from rmpe_jax.proposals.atoms import FEWEST_JOINTS, nearest_atom, normalized_pose
from rmpe_jax.proposals.mixtures import OffsetMixtures, offsets_of
from rmpe_jax.proposals.scored import ScoredProposals
from rmpe_jax.records import Boxes
from rmpe_jax.skeleton import Skeleton
from rmpe_jax.train.proposal_scorer import fit_scorer

# A detection is of the person whom it overlaps by more than this (facts of RMPE's baselines; VOC's threshold).
_SMALLEST_IOU = 0.5
# Added to the variances of offsets: a hundredth of a side, below which a mixture would only learn rounding.
_LEAST_VARIANCE = 1e-4
# Missing joints are filled in by the centres, and the centres found again, so often (k-POD, Chi et al. 2016).
_ROUNDS = 8
# Of the people of an atomic pose, to see whether it has a law of its own.
_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class FoundPeople:
    """Labelled people, and the detections that belong to them."""

    boxes: Float[np.ndarray, "n 4"]
    points: Float[np.ndarray, "n k 2"]
    labelled: Bool[np.ndarray, "n k"]
    offsets: Float[np.ndarray, "m 4"]  # of the detections from their person's box, over its sides
    person: Int[np.ndarray, "m"]  # whose each detection is


def find_people(
    pictures: Sequence[LabelledPicture],
    detections: Detector | BoxesFile,
    *,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    report: Callable[[str], None] | None = None,
) -> FoundPeople:
    """Labelled people with the boxes that a detector gives them.

    Args:
        pictures: with people and their boxes.
        detections: a detector, which looks at every picture, or the boxes of a file.
        progress: wraps the loop over the pictures, such as ``tqdm``.
        report: is told of each picture that cannot be read and is passed over; without it, it is an error.

    Raises:
        DataError: the file of boxes has broken entries, there are no people, or no detection belongs to any of them.
        PictureError: a picture cannot be read, and nobody asked to be told.
    """
    if isinstance(detections, BoxesFile) and detections.problems:
        raise DataError("; ".join(detections.problems[:3]))
    own_boxes, points, labelled, found, person = [], [], [], [], []
    for record in progress(pictures):
        rows = usable_rows(record)
        if not len(rows):
            continue
        if isinstance(detections, BoxesFile):
            given = boxes_of_record(detections, record) or Boxes.from_arrays([])
        else:
            try:
                given = detections(record.picture.read())
            except PictureError as error:
                if report is None:
                    raise
                report(str(error))
                continue
        boxes, own = np.asarray(given.xyxy)[np.asarray(given.valid)], record.boxes[rows].astype(np.float32)
        whose = match_people(own, boxes)
        matched = whose >= 0
        person.append(whose[matched] + sum(map(len, points)))
        found.append(boxes[matched])
        own_boxes.append(own)
        points.append(record.points[rows])
        labelled.append(record.visibility[rows] > 0)
    if not points:
        raise DataError("nobody to learn from: no labelled people in these pictures")
    if not sum(map(len, found)):
        raise DataError("no detection overlaps a labelled person by more than half: nothing to learn proposals from")
    parts = (own_boxes, points, labelled, found, person)
    own, joints, known, boxes, whose = (np.concatenate(part) for part in parts)
    offsets = np.asarray(offsets_of(jnp.asarray(boxes), jnp.asarray(own[whose])))
    return FoundPeople(own, joints, known, offsets, whose)


def people_of(people: FoundPeople, chosen: Bool[np.ndarray, "n"]) -> FoundPeople:
    """Some of the people, with their detections."""
    theirs = chosen[people.person]
    number = np.cumsum(chosen) - 1
    own = (people.boxes[chosen], people.points[chosen], people.labelled[chosen])
    return FoundPeople(*own, people.offsets[theirs], number[people.person[theirs]])


def held_out(people: FoundPeople, share: float, *, seed: int = 0) -> tuple[FoundPeople, FoundPeople]:
    """Those to learn from and, set aside, a random share of the people who have detections.

    Raises:
        DataError: the share leaves nobody with detections on either side.
    """
    with_boxes = np.random.default_rng(seed).permutation(np.unique(people.person))
    aside = np.isin(np.arange(len(people.points)), with_boxes[: round(share * len(with_boxes))])
    parts = people_of(people, ~aside), people_of(people, aside)
    if not all(len(part.offsets) for part in parts):
        raise DataError(f"{len(with_boxes)} people have detections: too few to set {share:.0%} of them aside")
    return parts


def match_people(own: Float[np.ndarray, "n 4"], found: Float[np.ndarray, "m 4"]) -> Int[np.ndarray, "m"]:
    """Whose each detected box is: the person's whom it overlaps most, -1 if by an IoU of 0.5 or less."""
    if not len(own) or not len(found):
        return np.full(len(found), -1)
    # Few sizes: each is compiled anew. The boxes at the end are empty and overlap nothing.
    rows, columns = (np.pad(boxes, ((0, -len(boxes) % 16), (0, 0))) for boxes in (found, own))
    overlap = np.asarray(box_iou(jnp.asarray(rows)[:, None], jnp.asarray(columns)[None]))[: len(found), : len(own)]
    return np.where(overlap.max(1) > _SMALLEST_IOU, overlap.argmax(1), -1)


def cluster_poses(
    points: Float[np.ndarray, "n k 2"],
    labelled: Bool[np.ndarray, "n k"],
    skeleton: Skeleton,
    count: int,
    *,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "a k 2"], int]:
    """The atomic poses: centres of k-means over poses in torso lengths from the middle of their torso.

    A pose's missing joints are taken from its centre, and the centres found again, eight times (k-POD).

    Args:
        points: joints, any frame.
        labelled: which joints carry a label; poses without a torso, or with fewer than six joints, are left out.
        skeleton: of the poses.
        count: number of atomic poses.
        seed: of k-means.

    Returns:
        The atomic poses, NaN for a joint that nobody has; and how many poses were clustered.

    Raises:
        DataError: fewer poses than atomic poses, nobody with a torso and six joints, or no atomic pose asked for.
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise MissingExtraError("scikit-learn", "fit", "clustering poses") from None
    normal = jax.jit(jax.vmap(lambda p, known: normalized_pose(p, known, skeleton=skeleton)))
    poses, known = (np.asarray(part) for part in normal(jnp.asarray(points, jnp.float32), jnp.asarray(labelled)))
    usable = known.sum(1) >= FEWEST_JOINTS
    poses, known = poses[usable], known[usable]
    if count < 1:
        raise DataError(f"expected at least one atomic pose, got {count}")
    if not len(poses):
        raise DataError(f"nobody of {len(usable)} people has a torso and {FEWEST_JOINTS} labelled joints")
    if len(poses) < count:
        raise DataError(
            f"{count} atomic poses of {len(poses)} people with a torso and {FEWEST_JOINTS} joints: too many"
        )
    mean = np.where(known[..., None], poses, 0).sum(0) / np.maximum(known.sum(0), 1)[:, None]
    filled = np.where(known[..., None], poses, mean)
    distinct = len(np.unique(filled, axis=0))
    if distinct < count:
        raise DataError(f"{count} atomic poses of people in {distinct} poses: too many")
    cluster: Any = KMeans
    means = cluster(count, n_init=4, random_state=seed).fit(filled.reshape(len(filled), -1))
    for _ in range(_ROUNDS):
        filled = np.where(known[..., None], poses, means.cluster_centers_[means.labels_].reshape(filled.shape))
        means = cluster(count, init=means.cluster_centers_, n_init=1).fit(filled.reshape(len(filled), -1))
    atoms = means.cluster_centers_.reshape(count, *poses.shape[1:])
    # A joint that nobody in a cluster has stays at everybody's mean: one small cluster must not cost all that joint.
    return np.where(np.reshape(known.any(0), (1, -1, 1)), atoms, np.nan).astype(np.float32), len(poses)


def atom_of_detections(people: FoundPeople, atoms: Float[Any, "a k 2"], skeleton: Skeleton) -> Int[np.ndarray, "m"]:
    """The atomic pose of each detection's person, ``a`` for none; ``skeleton`` is that of people and atomic poses."""
    row_of = jax.jit(jax.vmap(lambda points, known: nearest_atom(points, known, jnp.asarray(atoms), skeleton=skeleton)))
    return np.asarray(row_of(jnp.asarray(people.points, jnp.float32), jnp.asarray(people.labelled)))[people.person]


def fit_mixtures(
    people: FoundPeople,
    atoms: Float[np.ndarray, "a k 2"],
    skeleton: Skeleton,
    *,
    components: int = 4,
    fewest: int = 20,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[OffsetMixtures, Int[np.ndarray, "m"], Bool[np.ndarray, "a"]]:
    """A Gaussian mixture of the offsets of every atomic pose's detections, and one of all.

    Detections of one person are alike, and a mixture is easily fitted to a few people. So an atomic pose has one of its
    own only where that tells the detections of people left out, fold by fold, better than the mixture of all does.

    Args:
        people: with their detections.
        atoms: the atomic poses.
        skeleton: of people and atomic poses.
        components: at most; the number with the lowest BIC is taken.
        fewest: atomic poses of fewer people with detections take the mixture of all; at least five.
        seed: of the mixtures' starts.
        progress: wraps the loop over the atomic poses.

    Returns:
        The law; the atomic pose of each detection, ``a`` for none; and which atomic poses have a mixture of their own.

    Raises:
        DataError: fewer people with detections than ``fewest``, or no component.
        MissingExtraError: scikit-learn is not installed.
    """
    if components < 1:
        raise DataError(f"expected at least one component, got {components}")
    fewest = max(fewest, _FOLDS)
    known = len(np.unique(people.person))
    if known < fewest:
        raise DataError(f"{known} labelled people have detections: at least {fewest} are needed")
    row = atom_of_detections(people, atoms, skeleton)
    of_all = _best_mixture(people.offsets, components, seed)
    chosen, own = [], []
    for number in progress(range(len(atoms))):
        offsets, person = people.offsets[row == number], people.person[row == number]
        enough = len(np.unique(person)) >= fewest
        own.append(enough and _gain_left_out(offsets, person, of_all, components, seed) > 0)
        chosen.append(_best_mixture(offsets, components, seed) if own[-1] else of_all)
    rows = [_filled_up(mixture, components) for mixture in (*chosen, of_all)]
    arrays: Any = [np.stack(part).astype(np.float32) for part in zip(*rows, strict=True)]
    poses: Any = atoms
    return OffsetMixtures(poses, *arrays, skeleton=skeleton.name), row, np.array(own)


def _best_mixture(offsets: Float[np.ndarray, "n 4"], components: int, seed: int) -> Any:
    """The mixture with the lowest BIC."""
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise MissingExtraError("scikit-learn", "fit", "fitting mixtures") from None
    tried = [
        GaussianMixture(number, reg_covar=_LEAST_VARIANCE, n_init=2, random_state=seed).fit(offsets)
        for number in range(1, min(components, len(np.unique(offsets, axis=0))) + 1)
    ]
    return min(tried, key=lambda mixture: mixture.bic(offsets))


def _gain_left_out(
    offsets: Float[np.ndarray, "n 4"], person: Int[np.ndarray, "n"], of_all: Any, components: int, seed: int
) -> float:
    """Log likelihood of all offsets by mixtures of other people's, fold by fold, over that by the mixture of all."""
    _, number = np.unique(person, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(number.max() + 1)[number] % _FOLDS
    gain = 0.0
    for left_out in range(_FOLDS):
        theirs = offsets[fold == left_out]
        others = _best_mixture(offsets[fold != left_out], components, seed)
        gain += (others.score_samples(theirs) - of_all.score_samples(theirs)).sum()
    return float(gain)


def _filled_up(mixture: Any, components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and Cholesky factors, with components of weight zero up to ``components``."""
    missing = components - mixture.n_components
    weight, mean = np.pad(mixture.weights_, (0, missing)), np.pad(mixture.means_, ((0, missing), (0, 0)))
    factor = np.concatenate([np.linalg.cholesky(mixture.covariances_), np.tile(np.eye(4), (missing, 1, 1))])
    return weight, mean, factor


def fit_proposals(
    people: FoundPeople,
    skeleton: Skeleton,
    *,
    poses: tuple[Float[np.ndarray, "n k 2"], Bool[np.ndarray, "n k"]] | None = None,
    atoms: int = 24,
    components: int = 4,
    fewest: int = 20,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[OffsetMixtures, dict[str, Any]]:
    """PGPG's law from people and their detections, and what there is to say about it.

    Args:
        people: with their detections, see ``find_people``.
        skeleton: of the people.
        poses: points and labels of other people to cluster instead of these.
        atoms: number of atomic poses.
        components: of a mixture, at most.
        fewest: atomic poses of fewer people with detections take the mixture of all.
        seed: of clustering and fitting.
        progress: wraps the loop over the atomic poses.

    Raises:
        DataError: too few people or detections.
        MissingExtraError: scikit-learn is not installed.
    """
    points, labelled = (people.points, people.labelled) if poses is None else poses
    centres, clustered = cluster_poses(points, labelled, skeleton, atoms, seed=seed)
    mixtures, row, own = fit_mixtures(
        people, centres, skeleton, components=components, fewest=fewest, seed=seed, progress=progress
    )
    about: dict[str, Any] = {"people": len(np.unique(people.person)), "detections": len(people.offsets)}
    about |= {"clustered": clustered, "fewest": fewest, "seed": seed, "own_mixture": own.tolist()}
    about["detections_of_atom"] = np.bincount(row, minlength=atoms + 1).tolist()
    about["components"] = (np.asarray(mixtures.weight) > 0).sum(1).tolist()
    return mixtures, about | {
        "mean_offsets": people.offsets.mean(0).tolist(),
        "deviations": people.offsets.std(0).tolist(),
    }


def fit_scored(
    people: FoundPeople,
    skeleton: Skeleton,
    *,
    steps: int = 2000,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[ScoredProposals, dict[str, Any]]:
    """DPG's generator from people and their detections, and what there is to say about it.

    Args:
        people: with their detections.
        skeleton: of the people.
        steps: of the network's training.
        seed: of the training.
        progress: wraps the loop over the steps.

    Raises:
        DataError: no detections.
        RmpeError: the training diverged.
    """
    if not len(people.offsets):
        raise DataError("no detections of labelled people: nothing to learn DPG from")
    parts = (people.boxes, people.points, people.labelled, people.offsets, people.person)
    variables, loss = fit_scorer(*parts, skeleton, steps=steps, seed=seed, progress=progress)
    about = {"people": len(np.unique(people.person)), "detections": len(people.offsets), "steps": steps, "seed": seed}
    order = tuple(range(skeleton.size))
    return ScoredProposals(variables, apply_scorer, skeleton.name, order), about | {"loss": loss}


def read_poses_file(path: str | Path, skeleton: Skeleton) -> tuple[np.ndarray, np.ndarray]:
    """Poses without pictures: ``keypoints`` (n, k, 3) of an .npz file, x, y and a number above zero where labelled.

    Nothing is unpickled.

    Raises:
        DataError: naming the file and what is wrong.
    """
    try:
        keypoints = read_arrays(path).get("keypoints")
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path}: no such file") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    if keypoints is None:
        raise DataError(f"{path}: has no array keypoints")
    if keypoints.dtype.kind not in "fiu" or keypoints.ndim != 3 or keypoints.shape[1:] != (skeleton.size, 3):
        got = f"{keypoints.dtype} {keypoints.shape}"
        raise DataError(f"{path}: keypoints: expected numbers (n, {skeleton.size}, 3), got {got}")
    if not np.isfinite(keypoints).all():
        raise DataError(f"{path}: keypoints: holds values that are not finite")
    return keypoints[..., :2].astype(np.float64), keypoints[..., 2] > 0
