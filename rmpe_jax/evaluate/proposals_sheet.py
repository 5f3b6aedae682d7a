"""PGPG's law as a picture: every atomic pose with boxes that a detector would give it."""

from collections.abc import Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.draw import caption, contact_sheet, draw_poses
from rmpe_jax.proposals.mixtures import OffsetMixtures, sample_offsets
from rmpe_jax.proposals.offsets import moved_box

# Pixels: a tile, and a torso in it; of the box around an atomic pose, over its joints' extent.
_TILE, _TORSO, _MARGIN = (240, 176), 44, 0.1
_OWN, _DRAWN = (255, 255, 255), (90, 170, 255)
_DARK = 30


def draw_mixtures(mixtures: OffsetMixtures, counts: Sequence[int], *, boxes: int = 40, seed: int = 0) -> np.ndarray:
    """A tile for each atomic pose, those with most detections first, and a last one for everybody else.

    White is the person's own box, blue are boxes drawn from the mixture.

    Args:
        mixtures: the law.
        counts: number of detections of each atomic pose, and of people who are of none. Where they were too few, the
            tile shows the mixture of all.
        boxes: drawn from each mixture.
        seed: of the drawing.
    """
    draw = jax.jit(lambda key, row: sample_offsets(key, row, mixtures, num=boxes))
    atoms = np.asarray(mixtures.atoms)
    mean = atoms.mean(0)
    tiles = []
    order = np.argsort(-np.asarray(counts[:-1]), kind="stable").tolist()
    for row in (*order, len(atoms)):
        offsets = np.asarray(draw(jax.random.key(seed), jnp.asarray(row)))
        pose = atoms[row] if row < len(atoms) else mean
        name = f"pose {row}" if row < len(atoms) else "all others"
        tiles.append(caption(_tile(pose, offsets, mixtures), f"{name}: {counts[row]}"))
    return contact_sheet(tiles, columns=8)


def _tile(pose: np.ndarray, offsets: np.ndarray, mixtures: OffsetMixtures) -> np.ndarray:
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
    _rectangle(tile, own, _OWN)
    return draw_poses(tile, np.where(known, points, np.nan)[None], known.astype(float).T, mixtures.joints)


def _rectangle(image: np.ndarray, box: np.ndarray, colour: tuple[int, int, int]) -> None:
    (x0, y0), (x1, y1) = np.round(np.clip(box, -1000, 1000)).astype(int).reshape(2, 2).tolist()
    cv2.rectangle(image, (x0, y0), (x1, y1), colour, 1, cv2.LINE_AA)
