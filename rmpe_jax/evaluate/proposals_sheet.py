"""Pictures of what PGPG and DPG learned, and of how their boxes compare with a detector's."""

from collections.abc import Mapping, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.draw import caption, contact_sheet, draw_poses
from rmpe_jax.evaluate.compare_proposals import offset_distances
from rmpe_jax.evaluate.fit_proposals import FoundPeople, atom_of_detections
from rmpe_jax.proposals.generators import sample_boxes
from rmpe_jax.proposals.mixtures import OffsetMixtures, sample_offsets
from rmpe_jax.proposals.offsets import moved_box
from rmpe_jax.proposals.scored import ScoredProposals, indicator_image, pose_image, window_around

# Pixels: a tile, and a torso in it; of the box around an atomic pose, over its joints' extent.
_TILE, _TORSO, _MARGIN = (240, 176), 44, 0.1
_OWN, _DRAWN = (255, 255, 255), (90, 170, 255)
_DARK = 30
# Pixels of a plot's side and of a pose image's; offsets from minus to plus this fill the plot.
_PLOT, _PICTURE, _WIDEST = 176, 176, 0.8
_BLACK, _BLUE = (0, 0, 0), (40, 90, 200)
_LOW, _HIGH = (90, 230, 120), (250, 220, 80)


def draw_mixtures(
    mixtures: OffsetMixtures, people: FoundPeople, *, own: Sequence[bool], boxes: int = 20, seed: int = 0
) -> np.ndarray:
    """A tile for each atomic pose, those with most detections first, and a last one for everybody else.

    White is the person's own box, blue are boxes drawn from the mixture; the clouds are the detections' upper left
    (green) and lower right (yellow) corners. A star marks the mixture of all.

    Args:
        mixtures: the law.
        people: with their detections, in its skeleton.
        own: which atomic poses have a mixture of their own.
        boxes: drawn from each mixture.
        seed: of the drawing.
    """
    draw = jax.jit(lambda key, row: sample_offsets(key, row, mixtures, num=boxes))
    row_of = atom_of_detections(people, mixtures.atoms, mixtures.joints)
    atoms = np.asarray(mixtures.atoms)
    counts = np.bincount(row_of, minlength=len(atoms) + 1)
    tiles = []
    for row in (*np.argsort(-counts[:-1], kind="stable").tolist(), len(atoms)):
        offsets = np.asarray(draw(jax.random.key(seed), jnp.asarray(row)))
        pose = atoms[row] if row < len(atoms) else atoms.mean(0)
        name = f"pose {row}" if row < len(atoms) else "all others"
        tile = _tile(pose, offsets, people.offsets[row_of == row], mixtures)
        tiles.append(caption(tile, f"{name}: {counts[row]}{'' if row < len(atoms) and own[row] else ' *'}"))
    return contact_sheet(tiles, columns=8)


def draw_scored(people: FoundPeople, proposals: ScoredProposals, *, count: int = 8, seed: int = 0) -> np.ndarray:
    """What DPG's network sees of some people who have detections, drawn larger, and the boxes that are chosen.

    Of each person the pose image with the own box, black, and chosen ones, blue; below it the first one's indicator.

    Args:
        people: in the generator's skeleton.
        proposals: the generator.
        count: people.
        seed: of the choice of people and boxes.
    """
    with_boxes = np.random.default_rng(seed).permutation(np.unique(people.person))[:count]
    tiles = []
    for row in with_boxes.tolist():
        box, known = jnp.asarray(people.boxes[row], jnp.float32), jnp.asarray(people.labelled[row])
        points = jnp.asarray(np.where(people.labelled[row][:, None], people.points[row], 0), jnp.float32)
        chosen, _ = sample_boxes(jax.random.key(seed), box, points, known, generator=proposals, num=12)
        window = window_around(box)
        pose = _bytes(pose_image(points, known, window, size=_PICTURE))
        for one, colour in (*((one, _BLUE) for one in chosen), (box, _BLACK)):
            place = (one.reshape(2, 2) - window[None, :2]) / (window[2] - window[0]) * _PICTURE
            _rectangle(pose, np.asarray(place).reshape(4), colour)
        indicator = _bytes(indicator_image(chosen[0], window, size=_PICTURE))
        tiles.append(np.concatenate([pose, np.repeat(indicator[..., None], 3, -1)]))
    return caption(contact_sheet(tiles, columns=8), "DPG: what the network sees; black: own box, blue: chosen boxes")


def draw_offsets(found: np.ndarray, drawn: Mapping[str, np.ndarray]) -> np.ndarray:
    """Clouds of offsets: those of a detector's boxes, and beside them those of generators' boxes.

    The left plot of each pair has the offset of x0 to the right and that of x1 upwards, the right one those of y0 and
    y1. Written above: the Kolmogorov-Smirnov statistic of x0, y0, x1 and y1 against the detector's.

    Args:
        found: (n, 4), offsets of a detector's boxes.
        drawn: the same of generators, by name.
    """
    tiles = [caption(_clouds(found), f"detector, {len(found)} boxes, held out")]
    for name, offsets in drawn.items():
        distances = " ".join(f"{value:.2f}" for value in offset_distances(offsets, found))
        tiles.append(caption(_clouds(offsets), f"{name}: {distances}"))
    return contact_sheet(tiles, columns=4)


def _clouds(offsets: np.ndarray) -> np.ndarray:
    plots = []
    for axis in (0, 1):
        plot = np.full((_PLOT, _PLOT, 3), _DARK, np.uint8)
        plot[_PLOT // 2], plot[:, _PLOT // 2] = 80, 80
        place = np.clip((offsets[:, [axis, axis + 2]] + _WIDEST) / (2 * _WIDEST), 0, 1) * (_PLOT - 1)
        columns, rows = np.round(place).astype(int).T
        plot[_PLOT - 1 - rows, columns] = _DRAWN
        plots.append(np.pad(plot, ((4, 4), (4, 4), (0, 0)), constant_values=_DARK + 20))
    return np.concatenate(plots, 1)


def _bytes(image: jax.Array) -> np.ndarray:
    return np.round(255 * np.asarray(image)).astype(np.uint8)


def _tile(pose: np.ndarray, offsets: np.ndarray, found: np.ndarray, mixtures: OffsetMixtures) -> np.ndarray:
    height, width = _TILE
    known = np.all(np.isfinite(pose), -1, keepdims=True)
    low, high = pose[known[:, 0]].min(0), pose[known[:, 0]].max(0)
    points = (pose - (low + high) / 2) * _TORSO + [width / 2, height / 2]
    size = (high - low) * (1 + _MARGIN) * _TORSO
    own = np.concatenate([[width, height] - size, [width, height] + size]) / 2
    moved = np.asarray(jax.vmap(lambda offset: moved_box(jnp.asarray(own, jnp.float32), offset))(jnp.asarray(offsets)))
    tile = np.full((height, width, 3), _DARK, np.uint8)
    for box in moved:
        _rectangle(tile, box, _DRAWN)
    tile = np.round(0.5 * tile + 0.5 * _DARK).astype(np.uint8)
    sides = np.tile(own[2:] - own[:2], 2)
    for corner, colour in ((slice(0, 2), _LOW), (slice(2, 4), _HIGH)):
        columns, rows = np.round((own + found * sides)[:, corner]).astype(int).T
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        tile[rows[inside], columns[inside]] = colour
    _rectangle(tile, own, _OWN)
    return draw_poses(tile, np.where(known, points, np.nan)[None], known.astype(float).T, mixtures.joints)


def _rectangle(image: np.ndarray, box: np.ndarray, colour: tuple[int, int, int]) -> None:
    (x0, y0), (x1, y1) = np.round(np.clip(box, -1000, 1000)).astype(int).reshape(2, 2).tolist()
    cv2.rectangle(image, (x0, y0), (x1, y1), colour, 1, cv2.LINE_AA)
