"""The records that travel between the parts: fixed-capacity arrays and a ``valid`` mask.

Every record is a frozen pytree for one picture; ``jax.vmap`` adds the batch. An entry whose ``valid`` is False may
hold any finite numbers and never changes a result. Coordinates are (x, y) in pixels with pixel centres at integers.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from rmpe_jax.scores import pose_score

if TYPE_CHECKING:
    from jaxtyping import Array
else:
    # Detectors and files make host arrays; a record may hold those too.
    Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Boxes:
    """Human proposals of one picture, at capacity p."""

    xyxy: Float[Array, "*batch p 4"]  # x0 y0 x1 y1, pixels of the picture
    score: Float[Array, "*batch p"]  # the detector's confidence, in [0, 1]
    valid: Bool[Array, "*batch p"]  # which of the p entries hold a box

    @classmethod
    def from_arrays(cls, boxes: Any, score: Any = None) -> "Boxes":
        """Boxes as host arrays, all valid.

        Args:
            boxes: anything of shape (n, 4), x0 y0 x1 y1; one box or none may be flat.
            score: n confidences; 1 by default.

        Raises:
            ValueError: another shape, or another number of scores.
        """
        xyxy = np.asarray(boxes, np.float32)
        if xyxy.size and (xyxy.ndim not in (1, 2) or xyxy.shape[-1] != 4):
            raise ValueError(f"expected boxes of shape (n, 4), got {xyxy.shape}")
        xyxy = xyxy.reshape(-1, 4)
        scores = np.ones(len(xyxy), np.float32) if score is None else np.asarray(score, np.float32).reshape(-1)
        if len(scores) != len(xyxy):
            raise ValueError(f"expected as many scores as boxes, got {len(scores)} scores and {len(xyxy)} boxes")
        arrays: Any = (xyxy, scores, np.ones(len(xyxy), bool))
        return cls(*arrays)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Poses:
    """Poses of one picture, at capacity p, with k joints each."""

    points: Float[Array, "*batch p k 2"]  # (x, y), pixels of the picture
    score: Float[Array, "*batch p k"]  # each joint's, in [0, 1]: what it means stands in ``scores``
    boxes: Float[Array, "*batch p 4"]  # the proposal that gave the pose, x0 y0 x1 y1, not extended
    valid: Bool[Array, "*batch p"]  # which of the p entries hold a pose

    @property
    def pose_score(self) -> Float[Array, "*batch p"]:
        """Mean of the joints' scores, in [0, 1], see ``scores``; the ranking score of RMPE's released code."""
        return pose_score(self.score)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PoseBatch:
    """A training batch: b people, each on a square canvas cut from its picture around the person.

    Split over devices (``train.parallel``) it has one more axis in front: ``parts``.
    """

    canvas: Array  # (b, c, c, 3) uint8 RGB
    points: Float[Array, "*parts b k 2"]  # joints, pixels of the canvas
    labelled: Bool[Array, "*parts b k"]  # False where the data set does not label the joint
    box: Float[Array, "*parts b 4"]  # the person's box, pixels of the canvas, not extended
    index: Array  # (b,) int32, position in the global batch: the source of each example's randomness
    valid: Bool[Array, "*parts b"]  # False for the padding of a last, short batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SceneBatch:
    """A training batch of a person detector: b examples, each made of q scenes with room for p people.

    Split over devices it has one more axis in front; a single example, under ``vmap``, has one less.
    """

    canvas: Array  # (b, q, c, c, 3) uint8 RGB
    extent: Float[Array, "*b q 4"]  # what of the canvas is picture, x0 y0 x1 y1, pixels of the canvas
    boxes: Float[Array, "*b q p 4"]  # of people, pixels of the canvas; they may reach beyond it
    person: Bool[Array, "*b q p"]  # which of the p entries hold a person who is to be found
    ignored: Bool[Array, "*b q p"]  # which hold a crowd, or somebody whom nothing says whether to find
    complete: Bool[Array, "*b q"]  # whether everybody in the scene is labelled
    index: Array  # (b,) int32, position in the global batch: the source of each example's randomness
    valid: Bool[Array, "*b q"]  # False where the picture could not be read
