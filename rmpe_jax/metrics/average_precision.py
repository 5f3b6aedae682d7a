"""COCO's average precision, whatever detections are compared with people by: keypoints, or boxes.

`match_detections` gives every detection to a person, at every threshold and in every group of people, by how much they
are alike; `average_precision` counts. Only the second depends on how often a picture counts, so a bootstrap matches
once and maps over weights. All functions take many pictures at once, because precision is a property of a data set.

Reference: https://cocodataset.org/#detection-eval and pycocotools' cocoeval.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int, UInt

if TYPE_CHECKING:
    from jaxtyping import Array
else:
    # Records may hold host arrays.
    Array = jax.Array | np.ndarray

#: cocoeval's thresholds of OKS and of intersection over union.
THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
#: cocoeval adds numpy.spacing(1) to areas and to counts.
EPSILON = 2.220446049250313e-16
# cocoeval's recall levels are numpy.linspace(0, 1, 101), of which some lie above the nearest number to r / 100.
_ABOVE = np.linspace(0, 1, 101) > np.arange(101) / 100
# How many pictures are matched together, and how many detections counted one after the other. Small arrays stay in the
# cache, large ones take fewer steps; on two CPU cores nothing from half to twice of either is much faster.
_PICTURES = 128
_RUN = 64
# Whom a detection is matched with: nobody, one who is left out, one who counts.
_NOBODY, _LEFT_OUT, _COUNTS = range(3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class People:
    """Whom detections are matched with: the people of i pictures, at capacity g, in a groups, such as sizes."""

    counts: Bool[Array, "i g a"]  # who is to be found; the others cost nothing, found or not
    crowd: Bool[Array, "i g"]  # may be matched more than once
    valid: Bool[Array, "i g"]  # which of the g entries hold a person


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matches:
    """What became of the n detections of all pictures, best score first, in a groups of people at t thresholds.

    What is not valid stands last, so n may be cut down to the number of valid detections.
    """

    hit: Bool[Array, "*batch n a t"]  # found a person who counts
    alarm: Bool[Array, "*batch n a t"]  # found nobody; neither hit nor alarm: left out
    picture: Int[Array, "*batch n"]  # index of the detection's picture
    people: Float[Array, "*batch a i"]  # how many people count in each picture


def average_precision(
    matches: Matches, *, weight: Float[Array, "i"] | None = None
) -> tuple[Float[Array, "a t"], Float[Array, "a t"]]:
    """Average precision and recall in every group of people at every threshold; -1 where no person counts.

    AP is the mean over 101 recall levels of the best precision at that recall or a higher one. The detections are cut
    into runs: hits and false alarms are summed up within all runs side by side, and only the run in which a level is
    reached is looked at again. For 5,000 pictures with 20 detections each, one set of weights takes about 10 ms of a
    CPU core in float64, alone or under ``vmap``, which needs a few MB for each.

    Args:
        matches: see `match_detections`.
        weight: how often each picture counts; once by default. A whole number equals as many copies of the picture
            side by side, where no two detections in a picture have the same score. Whole numbers are summed exactly;
            with others, rounding decides whether a recall level is just reached.

    Returns:
        AP and AR.
    """
    n, ranges, levels = matches.hit.shape
    dtype = matches.people.dtype
    weight = jnp.ones(matches.people.shape[1], dtype) if weight is None else weight.astype(dtype)
    people = (matches.people * weight[None]).sum(1)
    hit, alarm = (_in_runs(jnp.reshape(flag, (n, -1))) for flag in (matches.hit, matches.alarm))
    times = _in_runs(weight[matches.picture][:, None])
    # Hits and false alarms of each run, then before and after it.
    nothing = jnp.zeros(hit.shape[1:], dtype)
    each, _ = lax.scan(lambda counts, now: (_add(counts, now), None), (nothing, nothing), (hit, alarm, times))
    after = [jnp.cumsum(count, 1) for count in each]
    before = [jnp.pad(count, ((0, 0), (1, 0)))[:, :-1] for count in after]
    # The best precision in each run and later ones.
    best = _best_precision(before, (hit, alarm, times), jnp.zeros((1, 1), dtype))
    best_from = jnp.pad(lax.cummax(best, 1, reverse=True), ((0, 0), (0, 1)))
    # The run in which each recall level is reached; of that run only the detections count from there on.
    needed = jnp.repeat(_needed_hits(people), levels, 0)
    reached_in = jax.vmap(jnp.searchsorted)(100 * after[0], needed)
    run, row = jnp.minimum(reached_in, hit.shape[2] - 1), jnp.arange(ranges * levels)[:, None]
    again = hit[:, row, run], alarm[:, row, run], times[:, 0, run]
    precision = _best_precision([count[row, run] for count in before], again, needed)
    precision = jnp.maximum(precision, best_from[row, run + 1])
    precision = jnp.where(reached_in < hit.shape[2], precision, 0).mean(1).reshape(ranges, levels)
    people, hits = people[:, None], after[0][:, -1].reshape(ranges, levels)
    return jnp.where(people > 0, precision, -1), jnp.where(people > 0, hits / jnp.where(people > 0, people, 1), -1)


def _needed_hits(people: Float[Array, "a"]) -> Float[Array, "a 101"]:
    """A hundred times the hits that reach each recall level: exact for whole numbers, where a quotient need not be."""
    hundredfold = jnp.arange(101, dtype=people.dtype)[None] * people[:, None]
    return jnp.where(_ABOVE[None], jnp.nextafter(hundredfold, jnp.inf), hundredfold)


def hits_of_levels(people: int) -> Int[np.ndarray, "101"]:
    """How many hits reach each of cocoeval's recall levels, of so many people who count; one at least."""
    hundredths = np.arange(101) * people
    return np.maximum(hundredths // 100 + ((hundredths % 100 > 0) | _ABOVE), 1)


def _in_runs(values: Array) -> Array:
    """(n, rows) as (place in the run, rows, run), with at least one more zero at the end."""
    n, rows = values.shape
    return jnp.pad(values, ((0, _RUN - n % _RUN), (0, 0))).reshape(-1, _RUN, rows).transpose(1, 2, 0)


def _add(counts, now):
    """Hits and false alarms so far, one detection further."""
    (hits, alarms), (hit, alarm, times) = counts, now
    return hits + jnp.where(hit, times, 0), alarms + jnp.where(alarm, times, 0)


def _best_precision(before, runs, needed: Array) -> Array:
    """Best precision within runs of detections where a hundred times the hits are at least ``needed``, or zero."""

    def step(carry, now):
        counts, best = carry
        hits, alarms = _add(counts, now)
        precision = hits / (hits + alarms + EPSILON)
        return ((hits, alarms), jnp.maximum(best, jnp.where(100 * hits >= needed, precision, 0))), None

    (_, best), _ = lax.scan(step, (tuple(before), jnp.zeros_like(before[0])), runs)
    return best


def match_detections(
    similarity: Callable[[Int[Array, "b"], Int[Array, "b d"]], Float[Array, "g d b"]],
    people: People,
    score: Float[Array, "i n"],
    alarming: Bool[Array, "i n a"],
    *,
    thresholds: tuple[float, ...],
    most: int,
) -> Matches:
    """Matches detections and people as cocoeval does.

    In the order of the scores, every detection takes the person whom it is most alike, of those that it passes the
    threshold with and that are left; people who count come before those who do not, and of equal people the last wins.
    Of equal scores the earlier detection and picture come first.

    Args:
        similarity: of everybody in some pictures with the best detections there, from the numbers of the pictures and
            the places of these detections among the n; zero for whoever is not valid.
        people: i pictures' people.
        score: of the same pictures' detections; one that is not finite leaves the detection out.
        alarming: whether a detection that found nobody is a false alarm, in each group of people.
        thresholds: of the similarity, rising.
        most: detections of a picture that count, the best.

    Raises:
        ValueError: no pictures, or a capacity of zero.
    """
    if 0 in (*people.valid.shape, *score.shape):
        raise ValueError(f"expected at least one entry, got {people.valid.shape} people, {score.shape} detections")
    score = jnp.where(jnp.isfinite(score), score, -jnp.inf)
    best = jnp.argsort(-score, axis=1, stable=True)[:, :most]
    score = jnp.take_along_axis(score, best, 1)
    matched = _match_pictures(similarity, people, best, thresholds)
    order = jnp.argsort(-score.ravel(), stable=True)
    picture, place = order // best.shape[1], order % best.shape[1]
    matched, valid = matched[picture, place], jnp.isfinite(score[picture, place])[:, None]
    alarming = valid & alarming[picture, best[picture, place]]
    return Matches(
        hit=(matched == _COUNTS) & valid[..., None],
        alarm=(matched == _NOBODY) & alarming[..., None],
        picture=picture,
        people=people.counts.sum(1).T.astype(score.dtype),
    )


def _match_pictures(similarity, people: People, best, thresholds) -> UInt[Array, "i d a t"]:
    """Whom the best detections of each picture are matched with.

    Pictures go in blocks, those with most people first: a block goes through as many people as its first picture has,
    and pictures without people are not visited. The last block slides back to fit, so some may come twice.
    """
    number_of = occupied(people.valid)
    busiest = jnp.argsort(-number_of)
    size = min(_PICTURES, len(best))

    def match_block(number, matched):
        chosen = lax.dynamic_slice_in_dim(busiest, number * size, size)
        block = jax.tree.map(lambda leaf: leaf[chosen], people)
        here = _assign(similarity(chosen, best[chosen]), block, thresholds)
        return lax.dynamic_update_slice_in_dim(matched, here, number * size, 0)

    blocks = ((number_of > 0).sum() + size - 1) // size
    start = jnp.full((*best.shape, people.counts.shape[2], len(thresholds)), _NOBODY, jnp.uint8)
    return lax.fori_loop(0, blocks, match_block, start)[jnp.argsort(busiest)]


def _assign(similarity: Float[Array, "g d i"], people: People, thresholds) -> UInt[Array, "i d a t"]:
    """Goes through the detections, best first, at all thresholds and in all groups of people side by side.

    For every detection the people are ranked once, by similarity and then by place; who counts ranks above all others.
    The ranks fit into a byte, and so does the number of thresholds passed: that is what makes it fast.
    """
    count = len(similarity)
    number = jnp.uint8 if count < 128 else jnp.uint16
    counting = jnp.array(128 if count < 128 else 2**15, number)
    place = jnp.arange(count)[:, None, None]

    def beat(other, rank):
        row = similarity[other][None]
        return rank + ((row < similarity) | ((row == similarity) & (other <= place))).astype(number)

    rank = lax.fori_loop(0, occupied(people.valid).max(), beat, jnp.zeros(similarity.shape, number))
    passed = jnp.zeros(similarity.shape, jnp.uint8)
    for threshold in thresholds:
        # cocoeval lowers a threshold of 1 a little.
        passed += (similarity >= min(threshold, 1 - 1e-10)).astype(jnp.uint8)
    level = jnp.arange(len(thresholds), dtype=jnp.uint8)[:, None]
    bonus = jnp.where(jnp.moveaxis(people.counts, 0, -1), counting, jnp.array(0, number))[:, :, None]
    crowd = people.crowd.T[:, None, None]

    def match_next(left, detection):
        rank, passed = (values[:, None, None] for values in detection)
        worth = jnp.where(left & (passed > level[None, None]), rank + bonus, 0)
        best = worth.max(0)
        taken = (worth == best[None]) & (worth > 0)
        return left & (crowd | ~taken), (best > 0).astype(jnp.uint8) + (best > counting)

    left = jnp.ones((count, people.counts.shape[2], len(thresholds), similarity.shape[2]), bool)
    _, matched = lax.scan(match_next, left, (rank.swapaxes(0, 1), passed.swapaxes(0, 1)))
    return jnp.moveaxis(matched, -1, 0)


def occupied(valid: Bool[Array, "i g"]) -> Int[Array, "i"]:
    """How many entries of each picture there are up to the last valid one."""
    return jnp.where(valid, jnp.arange(1, valid.shape[1] + 1)[None], 0).max(1)


def in_ranges(size: Float[Array, "i n"], ranges: tuple[tuple[float, float], ...]) -> Bool[Array, "i n a"]:
    """Which sizes lie in each range; both ends belong to it."""
    return jnp.stack([(size >= low) & (size <= high) for low, high in ranges], -1)
