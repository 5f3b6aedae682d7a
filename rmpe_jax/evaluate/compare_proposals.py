"""Do a generator's boxes follow a detector's? Compared by their offsets, on people that it did not learn from."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.stats import ks_2samp

from rmpe_jax.evaluate.fit_proposals import FoundPeople
from rmpe_jax.proposals.generators import Generator, sample_boxes
from rmpe_jax.proposals.mixtures import offsets_of

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
