"""The pose estimator: a picture and its people's boxes in, poses in the picture's frame out.

Each box is extended and cropped, the hourglass gives heat maps, their maxima go back to the picture along the same
affine map, and the pose NMS removes duplicates. Everything after decoding the file is pure and differentiable up to
the argmax; ``Estimator`` only pads to few fixed shapes, so that little is compiled.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from rmpe_jax.config import Experiment
from rmpe_jax.geometry.affine import image_from_person, pixels_of_resized, transform_points
from rmpe_jax.geometry.boxes import usable_boxes
from rmpe_jax.geometry.sampling import crop_image
from rmpe_jax.heatmaps import decode_heatmaps, flip_heatmaps
from rmpe_jax.models.hourglass import apply_hourglass
from rmpe_jax.nms.pose import RELEASED, PoseNMSParameters, pose_nms
from rmpe_jax.predict.detectors import Detector, detect_with_hog
from rmpe_jax.pretrained import DEFAULT, Weights, load_weights
from rmpe_jax.records import Boxes, Poses
from rmpe_jax.skeleton import Skeleton

# Halvings of the picture that crops may read from, and the granularity of picture sizes that are compiled for.
_LEVELS = 5
_SIDE_STEP = 256
# Pixels from the picture's corner beyond which a box is taken for broken; much farther, float32 overflows.
_FARTHEST = 1e6


def crop_people(
    image: Num[Array, "H W 3"], boxes: Float[Array, "p 4"], *, experiment: Experiment
) -> tuple[Float[Array, "p h w 3"], Float[Array, "p 2 3"]]:
    """Crops of each person's extended box, RGB in [0, 1], and ``image_from_crop`` of each.

    A box that is not usable (NaN, inverted, beyond a million pixels) gives the crop of a unit box at the origin: mask
    it out.
    """
    size, extension = experiment.model.input_size, experiment.data.extension
    boxes = jnp.where(_can_be_cropped(boxes)[:, None], boxes, jnp.array([0.0, 0.0, 1.0, 1.0])[None])
    maps = jax.vmap(lambda box: image_from_person(box, size, extension=extension))(boxes)
    return jax.vmap(lambda matrix: crop_image(image, matrix, size, levels=_LEVELS) / 255)(maps), maps


def _can_be_cropped(boxes: Float[Array, "p 4"]) -> Bool[Array, "p"]:
    return usable_boxes(boxes) & (jnp.abs(boxes) <= _FARTHEST).all(-1)


def estimate_heatmaps(
    variables: dict[str, Any], crops: Float[Array, "p h w 3"], *, experiment: Experiment, flip_test: bool
) -> Float[Array, "p hm wm k"]:
    """Heat maps of the last stack; with ``flip_test`` the mean with those of the mirrored crops, mirrored back."""
    skeleton, count = experiment.joints, crops.shape[0]
    if flip_test:
        crops = jnp.concatenate([crops, crops[:, :, ::-1]])
    maps = apply_hourglass(variables, crops, experiment.model, joints=skeleton.size)[-1]
    if flip_test:
        back = jax.vmap(partial(flip_heatmaps, flip_order=skeleton.flip_order))(maps[count:])
        maps = (maps[:count] + back) / 2
    return maps


def read_poses(
    heatmaps: Float[Array, "p hm wm k"], image_from_crop: Float[Array, "p 2 3"], *, experiment: Experiment
) -> tuple[Float[Array, "p k 2"], Float[Array, "p k"]]:
    """Joints in picture pixels and their scores, from the maps of each crop."""
    points, score = jax.vmap(decode_heatmaps)(heatmaps)
    points = transform_points(pixels_of_resized(experiment.model.output_size, experiment.model.input_size), points)
    return jax.vmap(transform_points)(image_from_crop, points), score


def estimate_poses(
    variables: dict[str, Any],
    image: Num[Array, "H W 3"],
    boxes: Boxes,
    *,
    experiment: Experiment,
    flip_test: bool = True,
    nms: PoseNMSParameters | None = RELEASED,
) -> Poses:
    """The whole of inference as one pure function of one picture, for ``jit``, ``vmap`` and ``grad``.

    Args:
        variables: of the hourglass.
        image: RGB, 0 to 255.
        boxes: human proposals; those not valid, not finite or inverted give poses that are not valid.
        experiment: the architecture and the crop's extension.
        flip_test: average with the mirrored crop.
        nms: parameters of the pose NMS; None keeps every pose.

    Returns:
        A pose for each box, in the boxes' order; ``valid`` says which stay.
    """
    crops, image_from_crop = crop_people(image, boxes.xyxy, experiment=experiment)
    heatmaps = estimate_heatmaps(variables, crops, experiment=experiment, flip_test=flip_test)
    points, score = read_poses(heatmaps, image_from_crop, experiment=experiment)
    poses = Poses(points, score, boxes.xyxy, boxes.valid & _can_be_cropped(boxes.xyxy))
    return poses if nms is None else keep_distinct(poses, nms)


def keep_distinct(poses: Poses, nms: PoseNMSParameters) -> Poses:
    """The same poses, with ``valid`` False for those that the pose NMS removes."""
    return dataclasses.replace(poses, valid=pose_nms(poses, parameters=nms))


class Estimator:
    """A network ready to use: ``estimator(image)`` gives the poses of the picture's people.

    Example::

        estimator = rmpe_jax.load()
        poses = estimator(rmpe_jax.read_image("people.jpg"))
        poses.points[0]  # 19 joints of the best pose, pixels
    """

    def __init__(
        self,
        weights: Weights,
        *,
        detector: Detector = detect_with_hog,
        flip_test: bool = True,
        nms: PoseNMSParameters | None = RELEASED,
        smallest_score: float = 0.0,
        batch: int = 8,
    ):
        """Compiles nothing yet; the first picture does.

        Args:
            weights: the trained network.
            detector: used where no boxes are given.
            flip_test: average with the mirrored crop (twice the work).
            nms: parameters of the pose NMS; None keeps the pose of every box.
            smallest_score: poses whose mean joint confidence is below this are left out.
            batch: people that go through the network at once.
        """
        self.weights = weights
        self.detector = detector
        self.smallest_score = smallest_score
        self._nms, self._batch = nms, batch
        self._variables = jax.tree.map(jnp.asarray, weights.variables)
        experiment = weights.experiment
        self._crop = jax.jit(partial(crop_people, experiment=experiment))
        self._estimate = jax.jit(partial(_poses_of_crops, experiment=experiment, flip_test=flip_test))
        self._keep = jax.jit(partial(keep_distinct, nms=nms)) if nms else None

    @property
    def skeleton(self) -> Skeleton:
        """The joints that poses have, in order."""
        return self.weights.experiment.joints

    def __call__(self, image: np.ndarray, boxes: Any = None) -> Poses:
        """Poses of the people of one picture, best first, duplicates removed.

        Args:
            image: uint8 RGB, (height, width, 3).
            boxes: people's boxes, ``Boxes`` or anything of shape (n, 4), x0 y0 x1 y1; by default the detector's.
                Boxes that are not finite, inverted or wholly outside the picture give no pose.

        Returns:
            Host arrays without padding: every entry is valid.

        Raises:
            ValueError: the picture or the boxes have another shape or type.
        """
        _check_image(image)
        if boxes is None:
            boxes = self.detector(image)
        given = boxes if isinstance(boxes, Boxes) else Boxes.from_arrays(boxes)
        poses = self.poses_in_boxes(image, np.asarray(given.xyxy)[np.asarray(given.valid)])
        if self._keep is not None:
            poses = self._keep(poses)
        poses, ranking = jax.tree.map(np.asarray, poses), np.asarray(poses.pose_score)
        order = np.argsort(-ranking, kind="stable")
        chosen = order[(poses.valid & (ranking >= self.smallest_score))[order]]
        return jax.tree.map(lambda array: array[chosen], poses)

    def poses_in_boxes(self, image: np.ndarray, boxes: np.ndarray) -> Poses:
        """A pose for each box, in order and without NMS, padded with entries that are not valid."""
        _check_image(image)
        count = len(boxes)
        capacity = self._batch * 2 ** max(int(np.ceil(np.log2(max(count, 1) / self._batch))), 0)
        padded = np.zeros((capacity, 4), np.float32)
        padded[:count] = boxes
        height, width = image.shape[:2]
        inside = (padded[:, :2] < [width, height]).all(-1) & (padded[:, 2:] > -1).all(-1)
        valid = jnp.asarray((np.arange(capacity) < count) & inside) & _can_be_cropped(jnp.asarray(padded))
        grow = [(0, -side % _SIDE_STEP) for side in (height, width)]
        picture = jnp.asarray(np.pad(image, [*grow, (0, 0)]))
        points = np.zeros((capacity, self.skeleton.size, 2), np.float32)
        score = np.zeros((capacity, self.skeleton.size), np.float32)
        for start in range(0, count, self._batch):
            part = slice(start, start + self._batch)
            crops, image_from_crop = self._crop(picture, jnp.asarray(padded[part]))
            points[part], score[part] = self._estimate(self._variables, crops, image_from_crop)
        return Poses(jnp.asarray(points), jnp.asarray(score), jnp.asarray(padded), valid)


def _poses_of_crops(variables, crops, image_from_crop, *, experiment: Experiment, flip_test: bool):
    heatmaps = estimate_heatmaps(variables, crops, experiment=experiment, flip_test=flip_test)
    return read_poses(heatmaps, image_from_crop, experiment=experiment)


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        described = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"expected a picture as uint8 RGB of shape (height, width, 3), got {described}")
    if 0 in image.shape:
        raise ValueError(f"expected a picture with pixels, got shape {image.shape}")


def load(name: str | Path = DEFAULT, **options: Any) -> Estimator:
    """An estimator with shipped weights, or with those of a file; ``options`` go to ``Estimator``."""
    return Estimator(load_weights(name), **options)
