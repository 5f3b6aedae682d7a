"""Do a generator's boxes follow a detector's? Compared by offsets and shape, on people that it did not learn from."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.stats import ks_2samp

from rmpe_jax.evaluate.fit_proposals import FoundPeople, atom_of_detections
from rmpe_jax.metrics.intervals import bootstrap, interval
from rmpe_jax.proposals.generators import Generator, Law, sample_boxes
from rmpe_jax.proposals.mixtures import OffsetMixtures, log_density, offsets_of
from rmpe_jax.proposals.scored import ScoredProposals
from rmpe_jax.skeleton import Skeleton

# People whose boxes are drawn at a time.
_CHUNK = 512


def drawn_offsets(people: FoundPeople, generator: Generator, *, seed: int = 0) -> Float[np.ndarray, "m 4"]:
    """For every detection one box drawn for the same person, as offsets from the own box over its sides.

    Args:
        people: with their detections.
        generator: for poses in the order of the people's joints.
        seed: of the drawing.
    """
    count = len(people.person)
    rows = np.resize(people.person, (-(-count // _CHUNK), _CHUNK))
    keys = jax.random.split(jax.random.key(seed), rows.shape)
    draw = jax.jit(jax.vmap(partial(sample_boxes, generator=generator, num=1)))
    points = np.where(people.labelled[..., None], people.points, 0)
    found = []
    for key, row in zip(keys, rows, strict=True):
        own = jnp.asarray(people.boxes[row], jnp.float32)
        boxes, _ = draw(key, own, jnp.asarray(points[row], jnp.float32), jnp.asarray(people.labelled[row]))
        found.append(np.asarray(offsets_of(boxes[:, 0], own)))
    return np.concatenate(found)[:count]


def offset_distances(drawn: Float[np.ndarray, "n 4"], found: Float[np.ndarray, "m 4"]) -> list[float]:
    """The Kolmogorov-Smirnov statistic of each of the four offsets: 0 the same distribution, 1 nothing in common.

    Args:
        drawn: offsets of a generator's boxes.
        found: of a detector's.
    """
    tests: list[Any] = [ks_2samp(drawn[:, axis], found[:, axis]) for axis in range(4)]
    return [float(test.statistic) for test in tests]


def aspects(people: FoundPeople, offsets: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "m"]:
    """Width over height of the boxes with these offsets, one for each of the people's detections."""
    sides = (people.boxes[:, 2:] - people.boxes[:, :2])[people.person] * (1 + offsets[:, 2:] - offsets[:, :2])
    return sides[:, 0] / sides[:, 1]


def box_distances(drawn: Float[np.ndarray, "n 4"], of: FoundPeople, found: FoundPeople) -> list[float]:
    """Kolmogorov-Smirnov statistics of the four offsets, and of width over height, against a detector's boxes.

    Args:
        drawn: offsets of a generator's boxes, one for each of the detections of ``of``.
        of: whose boxes they are.
        found: people with the detector's boxes.
    """
    shape: Any = ks_2samp(aspects(of, drawn), aspects(found, found.offsets))
    return [*offset_distances(drawn, found.offsets), float(shape.statistic)]


def compare_boxes(
    generators: Mapping[str, Generator], learnt: FoundPeople, aside: FoundPeople, skeleton: Skeleton, *, seed: int = 0
) -> tuple[dict[str, list[float]], dict[str, Float[np.ndarray, "m 4"]]]:
    """``box_distances`` of generators, of others for comparison, and of detections of other people.

    The others are the published Gaussians, uniform jitter, and the random boxes that DPG chooses from. Two samples of
    the detector's own boxes are not at zero either: that is the last row.

    Args:
        generators: by name.
        learnt: those from whom the generators learned, with their detections.
        aside: those to compare with.
        skeleton: of the people.
        seed: of the drawing.

    Returns:
        The distances and the offsets, both by name.
    """
    others = {name: Law(name) for name in ("alphapose_global", "uniform")}
    order = tuple(range(skeleton.size))
    random = ScoredProposals({}, _no_score, skeleton.name, order, candidates=1, threshold=0.0)
    named = {**generators, **others, "random boxes": random}
    drawn = {name: drawn_offsets(aside, generator, seed=seed) for name, generator in named.items()}
    distances = {name: box_distances(offsets, aside, aside) for name, offsets in drawn.items()}
    distances["detections of others"] = box_distances(learnt.offsets, learnt, aside)
    return distances, drawn


def _no_score(variables: Any, image: Any, rows: Any, columns: Any) -> Any:
    """Every box alike."""
    return jnp.zeros(len(rows))


def pose_gain(people: FoundPeople, mixtures: OffsetMixtures, *, seed: int = 0) -> list[float]:
    """What knowing the pose gains: log likelihood of the detections by their people's mixtures over that by all's.

    Args:
        people: with their detections, in the mixtures' skeleton; not those of the fit.
        mixtures: PGPG's law.
        seed: of the bootstrap over people.

    Returns:
        The mean over the detections, in nats, and its 95 % interval.
    """
    row = jnp.asarray(atom_of_detections(people, mixtures.atoms, mixtures.joints))
    density = jax.jit(jax.vmap(lambda offset, row: log_density(offset, row, mixtures)))
    offsets = jnp.asarray(people.offsets, jnp.float32)
    gain = density(offsets, row) - density(offsets, jnp.full_like(row, len(mixtures.atoms)))
    _, number = np.unique(people.person, return_inverse=True)

    def mean(weight):
        return (gain * weight[number]).sum() / weight[number].sum()

    count = int(number.max()) + 1
    low, high = interval(bootstrap(jax.random.key(seed), mean, count, replicates=1000))
    return [float(gain.mean()), float(low), float(high)]
