"""DPG, the deep proposals generator: a huge number of random boxes, and those that a network takes for a detector's.

The network sees two pictures of the same window around the person: the proposal as an indicator, black inside and white
outside, and the pose as blobs, one colour for each joint. How it was built and trained was never published; here it is
a function that is passed in, ``models.proposal_scorer`` has one and ``train.proposal_scorer`` trains it.

Trained to tell a detector's boxes from random ones, half of each, it gives p = d / (d + r), where d and r are their
densities. So random boxes drawn in proportion to the odds p / (1 - p) follow the detector's law, as far as the network
is right and there are enough of them. Drawn in proportion to p itself, as the paper has it, they stay nearer to random
ones; both are here. The threshold leaves out boxes that are likelier random than the detector's.

Reference: RMPE, arXiv version 1, "deep proposals generator"; the colours and the size of the blobs after its code.
"""

import colorsys
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rmpe_jax.proposals.offsets import moved_box
from rmpe_jax.skeleton import Skeleton, joint_map, skeleton_named

#: What the network sees: pixels of the pose image's side, and of the indicator's.
POSE_SIZE, INDICATOR_SIZE = 64, 16
# Both show a square of this many of the box's longer sides.
_WINDOW = 2.0
# Standard deviation of a blob over the side of the window, so that neighbouring joints stay apart: RMPE's code has 0.06
# of the whole picture's.
_BLOB = 0.03
# Random boxes: standard deviation of each corner over the sides, wider than a detector's. Uniform ones do as well, but
# fewer of them are like a detector's: HOG's law, all of whose boxes have one shape, has the weight of 1 in 400 boxes
# uniform up to 0.6, and of 1 in 150 of these (people set aside in experiments/proposals_study.py).
_SPREAD = 0.25

#: Logits that boxes are a detector's, from the network's variables, the pose image (POSE_SIZE, POSE_SIZE, 3), and the
#: rows and columns of n indicators (n, INDICATOR_SIZE).
ScoreFunction = Callable[[Any, Array, Array, Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScoredProposals:
    """A score function with what it has learned, and how boxes are chosen by it."""

    variables: dict[str, Any]
    score: ScoreFunction = dataclasses.field(metadata={"static": True})
    skeleton: str = dataclasses.field(metadata={"static": True})  # whose joints the colours stand for
    order: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # of them in the poses given; -1: not there
    candidates: int = dataclasses.field(default=1024, metadata={"static": True})  # random boxes for each person
    threshold: float = dataclasses.field(default=0.5, metadata={"static": True})  # smallest probability
    draw: Literal["odds", "score"] = dataclasses.field(default="odds", metadata={"static": True})

    def __post_init__(self):
        if self.candidates < 1 or not 0 <= self.threshold < 1 or self.draw not in ("odds", "score"):
            given = f"{self.candidates}, {self.threshold}, {self.draw!r}"
            raise ValueError(f"expected candidates >= 1, 0 <= threshold < 1 and draw odds or score, got {given}")


def in_skeleton(proposals: ScoredProposals, skeleton: Skeleton) -> ScoredProposals:
    """The same generator for poses of another skeleton; joints that it lacks are not drawn."""
    order = joint_map(skeleton, skeleton_named(proposals.skeleton))
    return dataclasses.replace(proposals, order=order)


def window_around(box: Float[Array, "4"]) -> Float[Array, "4"]:
    """The square that both pictures show: about the box's centre, twice its longer side."""
    centre, half = (box[:2] + box[2:]) / 2, _WINDOW / 2 * (box[2:] - box[:2]).max()
    return jnp.concatenate([centre - half, centre + half])


def indicator_profiles(
    box: Float[Array, "4"], window: Float[Array, "4"], size: int
) -> tuple[Float[Array, "{size}"], Float[Array, "{size}"]]:
    """How much of every row and of every column of the window's pixels a box covers, in [0, 1].

    Args:
        box: the proposal, any frame.
        window: the square that is shown, same frame.
        size: pixels of its side.

    Returns:
        Rows and columns; their outer product is the share of each pixel that the box covers.
    """
    pixel = (window[2:] - window[:2]) / size
    low, high = (box[:2] - window[:2]) / pixel, (box[2:] - window[:2]) / pixel
    start = jnp.arange(size)[:, None]
    covered = jnp.clip(jnp.minimum(high[None], start + 1) - jnp.maximum(low[None], start), 0, 1)
    return covered[:, 1], covered[:, 0]


def indicator_image(
    box: Float[Array, "4"], window: Float[Array, "4"], *, size: int = POSE_SIZE
) -> Float[Array, "{size} {size}"]:
    """The proposal as a picture: 0, black, inside; 1, white, outside; between them where the edge cuts a pixel.

    Args:
        box: the proposal, any frame.
        window: the square that is shown, same frame.
        size: pixels of its side.
    """
    rows, columns = indicator_profiles(box, window, size)
    return 1 - rows[:, None] * columns[None, :]


def joint_colours(count: int) -> Float[np.ndarray, "{count} 3"]:
    """Different colours, RGB in [0, 1], one for each joint: hues a golden section apart, dark and light in turn."""
    hues = (np.arange(count) * (np.sqrt(5) - 1) / 2) % 1
    return np.array([colorsys.hls_to_rgb(hue, (0.35, 0.55)[joint % 2], 0.9) for joint, hue in enumerate(hues)])


def pose_image(
    points: Float[Array, "k 2"], labelled: Bool[Array, "k"], window: Float[Array, "4"], *, size: int = POSE_SIZE
) -> Float[Array, "{size} {size} 3"]:
    """The pose as a picture: a blob in its own colour for each labelled joint, on white.

    Args:
        points: joints, the window's frame.
        labelled: which carry a label; others, and those that are not finite, are not drawn.
        window: the square that is shown.
        size: pixels of its side.

    Returns:
        RGB in [0, 1].
    """
    drawn = labelled & jnp.isfinite(points).all(-1)
    place = (jnp.where(drawn[:, None], points, 0.0) - window[:2][None]) / (window[2:] - window[:2])[None]
    pixels = (jnp.arange(size) + 0.5) / size
    rows, columns = (jnp.exp(-((pixels[None] - place[:, axis, None]) ** 2) / (2 * _BLOB**2)) for axis in (1, 0))
    paint = drawn[:, None] * (jnp.asarray(joint_colours(len(points)), jnp.float32) - 1)
    blobs = jnp.einsum("kr,kc,kp->rcp", rows, columns, paint, precision="highest")
    return jnp.clip(1 + blobs, 0, 1)


def random_boxes(key: Array, box: Float[Array, "4"], *, num: int) -> Float[Array, "{num} 4"]:
    """Boxes around a person: each corner moved by a normal number with a deviation of a quarter of the sides."""
    offsets = _SPREAD * jax.random.normal(key, (num, 4))
    return jax.vmap(lambda offset: moved_box(box, offset))(offsets)


def score_boxes(
    score: ScoreFunction,
    variables: Any,
    boxes: Float[Array, "n 4"],
    box: Float[Array, "4"],
    points: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
) -> Float[Array, "n"]:
    """Logits that boxes are a detector's, for one person.

    Args:
        score: the network, or another function of both pictures.
        variables: of it.
        boxes: the proposals.
        box: the person's own.
        points: joints, in the skeleton whose colours the network knows.
        labelled: which of them are drawn.
    """
    window = window_around(box)
    rows, columns = jax.vmap(lambda one: indicator_profiles(one, window, INDICATOR_SIZE))(boxes)
    return score(variables, pose_image(points, labelled, window), rows, columns)


def sample_scored(
    key: Array,
    box: Float[Array, "4"],
    points: Float[Array, "k 2"],
    labelled: Bool[Array, "k"],
    proposals: ScoredProposals,
    *,
    num: int,
) -> Float[Array, "{num} 4"]:
    """Boxes chosen by their scores among random ones.

    Args:
        key: PRNG key.
        box: the person's own, x0 y0 x1 y1, not extended, finite and with an area.
        points: joints, in the skeleton for which ``proposals.order`` stands.
        labelled: which joints carry a label.
        proposals: the score function, and how to choose.
        num: how many boxes; the same may come twice.

    Returns:
        The boxes; the person's own where no score reaches the threshold, or no joint is labelled.
    """
    box_key, choice_key = jax.random.split(key)
    order = np.array(proposals.order)
    known = labelled[order] & (order >= 0) & jnp.isfinite(points[order]).all(-1)
    candidates = random_boxes(box_key, box, num=proposals.candidates)
    logits = score_boxes(proposals.score, proposals.variables, candidates, box, points[order], known)
    logits = jnp.where(known.any(), logits, -jnp.inf)
    chosen = choose_boxes(choice_key, candidates, logits, threshold=proposals.threshold, draw=proposals.draw, num=num)
    return jnp.where(jnp.isfinite(chosen), chosen, box[None])


def choose_boxes(
    key: Array,
    candidates: Float[Array, "n 4"],
    logits: Float[Array, "n"],
    *,
    threshold: float,
    draw: Literal["odds", "score"] = "odds",
    num: int,
) -> Float[Array, "{num} 4"]:
    """Boxes drawn, with repetition, among those whose probability reaches the threshold.

    Args:
        key: PRNG key.
        candidates: boxes.
        logits: of the probability that each is a detector's; one that is NaN counts as none.
        threshold: smallest probability.
        draw: "odds": in proportion to p / (1 - p), the detector's law; "score": in proportion to p.
        num: how many.

    Returns:
        The boxes; NaN if none reaches the threshold.
    """
    accepted = (jax.nn.sigmoid(logits) >= threshold) & (logits > -jnp.inf)
    weight = logits if draw == "odds" else jax.nn.log_sigmoid(logits)
    place = jax.random.categorical(key, jnp.where(accepted, weight, -jnp.inf), shape=(num,))
    return jnp.where(accepted.any(), candidates[place], jnp.nan)
