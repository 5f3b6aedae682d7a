"""Thousands of settings of the pose NMS at a time: which poses each keeps, and the average precision that this gives.

What makes it fast is that the four parameters enter late. K_Sim depends on sigma1 alone and H_Sim on sigma2 alone, so
both are tabled once for each of their values; a setting then only asks K_Sim + lambda H_Sim > eta of every pair. The
settings are the last axis of every array, so that all of this is arithmetic on long rows, without sorting, without
``exp``, and without a branch for a pose. What stays is what ``pose_nms`` keeps with the same parameters, and the
average precision is that of COCO's or MPII's evaluation of it.

Reference: RMPE eqs 7 to 10; the paper calls the exhaustive search intractable.
"""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from rmpe_jax.nms.objective import Count, Objective, Scenes, judged
from rmpe_jax.nms.pose import PoseNMSParameters, distance_similarity, joint_planes, keypoint_similarity, matching_joints
from rmpe_jax.records import Poses

#: Settings that go through the device at once: a thousand floats are long enough a row, and fit a CPU's caches.
_ROOM = 1024
# What waits to be counted, over all chunks at a time: poses times settings, about 2 GB. Below so many settings a chunk
# is slow, so that rather fewer are tried at a time.
_HELD, _LEAST = 2**28, 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tables:
    """K_Sim and H_Sim of every pair of poses of similar pictures, for every value of sigma1 and of sigma2."""

    # Row i takes pose i as the reference; infinite, so that it decides alone, where i is not ranked before j (never
    # goes) and where so many joints match that j goes anyway.
    keypoint: Float[Array, "*batch a p p"]
    distance: Float[Array, "*batch b p p"]


def make_tables(
    objective: Objective, sigma1: Float[np.ndarray, "a"], sigma2: Float[np.ndarray, "b"], parameters: PoseNMSParameters
) -> tuple[Tables, ...]:
    """The similarities under some values of sigma1 and of sigma2, one record for each of the objective's scenes.

    Args:
        objective: with the poses.
        sigma1: of the joints' confidences.
        sigma2: of the distances.
        parameters: the definitions; its four learned numbers are not read.

    Raises:
        ValueError: it merges poses, which the objective does not judge.
    """
    if parameters.merge != "none":
        raise ValueError(f"the search judges poses as they were found: expected merge 'none', got {parameters.merge!r}")
    values = jnp.asarray(sigma1, jnp.float32), jnp.asarray(sigma2, jnp.float32)
    return tuple(_tables(scenes.poses, *values, parameters) for scenes in objective.scenes)


@partial(jax.jit, static_argnames="parameters")
def _tables(
    poses: Poses, sigma1: Float[Array, "a"], sigma2: Float[Array, "b"], parameters: PoseNMSParameters
) -> Tables:
    never = jnp.inf if parameters.criterion == "literal" else -jnp.inf

    def one(poses: Poses) -> Tables:
        found = poses.points, poses.score, poses.boxes
        keypoint = jax.vmap(lambda value: keypoint_similarity(*found, parameters=_with(parameters, sigma1=value)))(
            sigma1
        )
        distance = jax.vmap(lambda value: distance_similarity(*found, parameters=_with(parameters, sigma2=value)))(
            sigma2
        )
        if parameters.match_joints:
            matched = matching_joints(*found, parameters=parameters) >= parameters.match_joints
            keypoint = jnp.where(matched[None], -never, keypoint)
        lower_ranked = jnp.triu(jnp.ones(keypoint.shape[1:], bool), 1)
        return Tables(jnp.where(lower_ranked[None], keypoint, never), distance)

    return lax.map(one, poses)


def _with(parameters: PoseNMSParameters, **constants: Array) -> PoseNMSParameters:
    """The same definitions with constants that are traced, which a new record would refuse."""
    changed = copy.copy(parameters)
    for name, value in constants.items():
        object.__setattr__(changed, name, value)
    return changed


@dataclasses.dataclass(frozen=True)
class Settings:
    """Values of (sigma1, sigma2), as indices of tables, times values of (lambda, eta): P x L settings."""

    sigma1: Int[np.ndarray, "P"]
    sigma2: Int[np.ndarray, "P"]
    lambda_: Float[np.ndarray, "L"]
    eta: Float[np.ndarray, "L"]  # absolute, see ``PoseNMSParameters.threshold``


def average_precisions(
    objective: Objective,
    tables: tuple[Tables, ...],
    settings: Settings,
    counts: Sequence[Count],
    parameters: PoseNMSParameters,
    *,
    progress: Callable[[Iterator[None], int], Iterable[None]] = lambda chunks, total: chunks,
) -> Float[np.ndarray, "f P L"]:
    """The average precision of every setting, counted over each of f sets of pictures.

    Args:
        objective: what is counted.
        tables: of its poses, by the definitions of ``parameters``.
        settings: to be tried.
        counts: see ``Objective.count``.
        parameters: the definitions.
        progress: is given an iterator over chunks of settings as they are done, and their number; goes through it.
    """
    pairs, others = len(settings.sigma1), len(settings.lambda_)
    values = np.zeros((len(counts), pairs, others), np.float32)
    workers, most = _workers(), _HELD // max(1, len(objective.picture_of_row))
    room = min(_ROOM, max(_LEAST, most // workers))
    width = min(others, room)
    height = min(pairs, max(1, room // width))
    # The last chunk slides back to fit, so that one shape is compiled.
    starts = [
        (min(p, pairs - height), min(q, others - width))
        for p in range(0, pairs, height)
        for q in range(0, others, width)
    ]

    def try_chunk(start: tuple[int, int]) -> None:
        rows, columns = (slice(at, at + size) for at, size in zip(start, (height, width), strict=True))
        chunk = settings.sigma1[rows], settings.sigma2[rows], settings.lambda_[columns], settings.eta[columns]
        found = _answers(objective.scenes, tables, *map(jnp.asarray, chunk), parameters)
        for place, count in enumerate(counts):
            values[place, rows, columns] = np.asarray(_mean_precision(*found, count)).reshape(height, width)

    with ThreadPoolExecutor(min(workers, max(1, most // room))) as threads:
        for _ in progress(threads.map(try_chunk, starts), len(starts)):
            pass
    return values


def _workers() -> int:
    """Chunks at a time: on a CPU one for each core, since a chunk runs on one; an accelerator is busy with one."""
    if jax.default_backend() != "cpu":
        return 1
    # Only Linux knows which cores this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def precision_by_picture(
    objective: Objective,
    tables: tuple[Tables, ...],
    settings: Settings,
    chosen: Int[np.ndarray, "i"],
    count: Count,
    parameters: PoseNMSParameters,
) -> float:
    """The average precision where every picture has a setting of its own.

    Args:
        objective: what is counted.
        tables: of its poses.
        settings: n pairs and n others, of which the first pair goes with the first other, and so on.
        chosen: for each picture, which of the n settings counts.
        count: over which pictures.
        parameters: the definitions.
    """
    size = len(settings.sigma1)
    chunk = settings.sigma1, settings.sigma2, settings.lambda_, settings.eta
    found = _answers(objective.scenes, tables, *map(jnp.asarray, chunk), parameters)
    column = jnp.asarray(chosen[objective.picture_of_row] * (size + 1))[:, None]
    return float(_mean_precision(*(jnp.take_along_axis(words, column, 1) for words in found), count)[0])


def eta_edges(
    objective: Objective, tables: tuple[Tables, ...], lambda_: float, parameters: PoseNMSParameters
) -> Float[np.ndarray, "m"]:
    """The values of eta, rising, at which the poses of some picture that stay change; absolute.

    What stays is the same for all eta from one of them, included, up to the next, excluded (with the literal criterion
    the other way round). Every similarity of a picture is tried on that picture alone.

    Args:
        objective: with the poses.
        tables: of one sigma1 and one sigma2.
        lambda_: weight of H_Sim.
        parameters: the definitions.
    """
    found = [
        _edges(scenes, table, jnp.float32(lambda_), parameters)
        for scenes, table in zip(objective.scenes, tables, strict=True)
    ]
    edges = [np.asarray(similarity)[np.asarray(changes)] for similarity, changes in found]
    return np.unique(np.concatenate(edges)) if edges else np.zeros(0, np.float32)


@partial(jax.jit, static_argnames="parameters")
def _edges(
    scenes: Scenes, table: Tables, lambda_: Float[Array, ""], parameters: PoseNMSParameters
) -> tuple[Float[Array, "i n"], Bool[Array, "i n"]]:
    """The similarities of each picture, rising, and at which of them the poses that stay change."""

    def one(picture):
        scene, table = picture
        similarity = jnp.sort((table.keypoint[0] + lambda_ * table.distance[0]).ravel())
        finite = jnp.isfinite(similarity)
        lowest = jnp.where(finite, similarity, jnp.inf).min(initial=jnp.inf)
        # Tried half-way to the next similarity, so that rounding decides nothing; infinite ones never change anything.
        after = jnp.append(similarity[1:], jnp.inf)
        eta = jnp.where(jnp.isfinite(after), (similarity + after) / 2, similarity + 1)
        eta = jnp.append(lowest - 1, jnp.where(finite, eta, jnp.where(similarity < 0, lowest - 1, jnp.inf)))
        zero = jnp.zeros(1, jnp.int32)
        kept = _kept(table, scene.poses.valid.sum(), zero, zero, jnp.full(eta.shape, lambda_), eta, parameters)
        return similarity, finite & (kept[:, 1:] != kept[:, :-1]).any(0)

    return lax.map(one, (scenes, table))


@partial(jax.jit, static_argnames="parameters")
def _answers(
    scenes: tuple[Scenes, ...],
    tables: tuple[Tables, ...],
    sigma1: Int[Array, "P"],
    sigma2: Int[Array, "P"],
    lambda_: Float[Array, "L"],
    eta: Float[Array, "L"],
    parameters: PoseNMSParameters,
) -> tuple[UInt[Array, "n s"], UInt[Array, "n s"]]:
    """The right and all answers of the poses that each setting keeps, one row for each pose of the scenes."""

    def one(picture):
        scene, table = picture
        count = scene.poses.valid.sum()
        left = _kept(table, count, sigma1, sigma2, lambda_, eta, parameters)
        if parameters.min_best:
            usable = joint_planes(scene.poses.points, scene.poses.score)[2].T
            left &= (usable & (scene.poses.score >= parameters.min_best)).any(-1)[:, None]
        return judged(scene.judge, left, count)

    found = [lax.map(one, pair) for pair in zip(scenes, tables, strict=True)]
    flat = jax.tree.map(lambda rows: rows.reshape(-1, rows.shape[-1]), found)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *flat)


def _kept(table, count, sigma1, sigma2, lambda_, eta, parameters) -> Bool[Array, "p s"]:
    """The greedy loop of every setting of one picture at once; poses go by falling rank."""
    poses, bound = table.keypoint.shape[-1], eta[None, None]
    left = jnp.broadcast_to((jnp.arange(poses) < count)[:, None, None], (poses, len(sigma1), len(eta)))

    def visit(reference, left):
        keypoint, distance = table.keypoint[sigma1, reference].T, table.distance[sigma2, reference].T
        similarity = keypoint[..., None] + lambda_[None, None] * distance[..., None]
        goes = similarity <= bound if parameters.criterion == "literal" else similarity > bound
        # Bytes instead of flags: a CPU compares and selects them many at a time.
        return jnp.where(goes, left & ~left[reference][None], left)

    left = lax.fori_loop(0, count, visit, left.astype(jnp.uint8) * jnp.uint8(255))
    return left.reshape(poses, -1) > 0


@jax.jit
def _mean_precision(right: UInt[Array, "n s"], answered: UInt[Array, "n s"], count: Count) -> Float[Array, "s"]:
    """The mean over questions of the area under the precision envelope.

    Answers go from the worst to the best, with the number of right ones and of all up to each, so that the best
    precision so far is that at this recall or a higher one.
    """
    questions, settings = len(count.asked), right.shape[1]
    bit = jnp.arange(questions, dtype=right.dtype)[:, None]
    question = jnp.arange(len(count.worth))[:, None]

    def flags(words, row, mask):
        return ((words[row] & mask[:, None]) >> bit & 1).astype(jnp.int32)

    def add(totals, at):
        return (totals[0] + flags(right, *at), totals[1] + flags(answered, *at)), None

    def subtract(state, at):
        hits, answers, best, area, lost = state
        hit, precision = flags(right, *at), hits / jnp.maximum(answers, 1)
        best = jnp.where(hit > 0, jnp.maximum(best, precision), best)
        # Kahan's sum, since a hundred roundings of float32 in one direction are more than an evaluator may be off.
        added = jnp.where(hit > 0, count.worth[question, hits] * best, 0.0) - lost
        total = area + added
        return (hits - hit, answers - flags(answered, *at), best, total, (total - area) - added), None

    steps = count.row.T, count.mask.T
    nothing = jnp.zeros((questions, settings), jnp.int32)
    totals, _ = lax.scan(add, (nothing, nothing), steps)
    none = jnp.zeros((questions, settings))
    (*_, area, _), _ = lax.scan(subtract, (*totals, none, none, none), steps, reverse=True)
    asked = count.asked[:, None]
    return jnp.where(asked, area, 0.0).sum(0) / jnp.maximum(count.asked.sum(), 1)
