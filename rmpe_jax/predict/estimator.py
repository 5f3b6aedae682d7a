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
from jaxtyping import Array, Num

from rmpe_jax.config import Experiment, PersonDetectorConfig
from rmpe_jax.geometry.boxes import boxes_on_picture
from rmpe_jax.models.rmpe import remap_crops
from rmpe_jax.models.single_person import LEVELS, crop_people, estimate_joints
from rmpe_jax.nms.pose import DEFAULT as DEFAULT_NMS
from rmpe_jax.nms.pose import PoseNMSParameters, suppress_poses
from rmpe_jax.predict.detectors import Detector, check_image, needed_score
from rmpe_jax.predict.person_detector import PersonDetector
from rmpe_jax.pretrained import DEFAULT, Weights, WeightsError, load_weights
from rmpe_jax.records import Boxes, Poses
from rmpe_jax.skeleton import Skeleton

# Pictures are padded to multiples of this, so that few sizes are compiled.
_SIDE_STEP = 256


def estimate_poses(
    variables: dict[str, Any],
    image: Num[Array, "H W 3"],
    boxes: Boxes,
    *,
    experiment: Experiment,
    flip_test: bool = True,
    scales: tuple[float, ...] = (1.0,),
    nms: PoseNMSParameters | None = DEFAULT_NMS,
) -> Poses:
    """The whole of inference as one pure function of one picture, for ``jit`` and ``vmap``.

    Joints come from maxima of heat maps and have no gradient with respect to the maps; for gradients take
    ``crop_people`` and ``estimate_heatmaps``.

    Args:
        variables: of the hourglass.
        image: RGB, 0 to 255.
        boxes: human proposals; those not valid, not finite, inverted or outside the picture give poses that are
            not valid, with a box of zeros.
        experiment: the architecture and the crop's extension.
        flip_test: average with the mirrored crop.
        scales: average over crops of these scales, see ``estimate_joints``.
        nms: parameters of the pose NMS, learned or one of ``PRESETS``; None keeps every pose.

    Returns:
        A pose for each box, in the boxes' order; ``valid`` says which stay.
    """
    valid = jnp.asarray(boxes.valid) & boxes_on_picture(jnp.asarray(boxes.xyxy), (image.shape[0], image.shape[1]))
    xyxy = jnp.where(valid[:, None], boxes.xyxy, 0.0)
    crops, image_from_crop = crop_and_remap(variables, image, xyxy, experiment=experiment)
    settings = {"experiment": experiment, "flip_test": flip_test, "scales": scales}
    points, score = estimate_joints(variables, image, crops, image_from_crop, **settings)
    poses = Poses(points, score, xyxy, valid)
    return poses if nms is None else keep_distinct(poses, nms)


def crop_and_remap(
    variables: dict[str, Any], image: Num[Array, "H W 3"], boxes: Array, *, experiment: Experiment
) -> tuple[Array, Array]:
    """What the SPPE sees of each box, after the STN if there is one, and the map from there to the picture."""
    crops, image_from_crop = crop_people(image, boxes, experiment=experiment)
    return remap_crops(variables, image, crops, image_from_crop, experiment=experiment, levels=LEVELS)


def keep_distinct(poses: Poses, nms: PoseNMSParameters) -> Poses:
    """The same poses, with ``valid`` False for those that the pose NMS removes; those that stay may be merged."""
    return suppress_poses(poses, parameters=nms).poses


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
        detector: Detector | None = None,
        flip_test: bool = True,
        scales: tuple[float, ...] = (1.0,),
        decoder: str | None = None,
        nms: PoseNMSParameters | None = DEFAULT_NMS,
        smallest_score: float | None = None,
        batch: int = 8,
    ):
        """Compiles nothing yet; the first picture does.

        Args:
            weights: the trained network.
            detector: used where no boxes are given; by default the built-in one.
            flip_test: average with the mirrored crop (twice the work).
            scales: the multi-scale test: average over crops whose sides are this many times as long, such as
                (0.9, 1.0, 1.1) (so many times the work).
            decoder: how joints are read from heat maps, another than the weights' own: "quarter", "dark" or
                "soft_argmax".
            nms: parameters of the pose NMS; None keeps the pose of every box.
            smallest_score: poses are left out, before the pose NMS, whose score times that of their box is below this;
                by default 0 in boxes that are given, and in those of the detector what suits it.
            batch: most people that go through the network at once, a power of two.

        Raises:
            WeightsError: the weights are a person detector's.
            ValueError: a setting is out of range.
        """
        if isinstance(weights.experiment.model, PersonDetectorConfig):
            raise WeightsError(f"{weights.experiment.name}: weights of a person detector, which estimates no poses")
        if batch < 1 or batch & (batch - 1):
            raise ValueError(f"batch must be a power of two, got {batch}")
        if not scales or not all(0.1 <= scale <= 10 for scale in scales):
            raise ValueError(f"scales must be one or more numbers from 0.1 to 10, got {scales}")
        if decoder is not None:
            model = dataclasses.replace(weights.experiment.hourglass, decoder=decoder)
            weights = dataclasses.replace(weights, experiment=dataclasses.replace(weights.experiment, model=model))
        self.weights = weights
        self.detector = PersonDetector() if detector is None else detector
        self.smallest_score = smallest_score
        self._batch = batch
        self._variables = jax.tree.map(jnp.asarray, weights.variables)
        experiment = weights.experiment
        self._crop = jax.jit(partial(crop_and_remap, experiment=experiment))
        settings = {"experiment": experiment, "flip_test": flip_test, "scales": tuple(scales)}
        self._estimate = jax.jit(partial(estimate_joints, **settings))
        self._keep = jax.jit(partial(keep_distinct, nms=nms)) if nms else None

    @property
    def skeleton(self) -> Skeleton:
        """The joints that poses have, in order."""
        return self.weights.experiment.joints

    def needed_score(self, *, detected: bool) -> float:
        """What a pose's score times that of its box must reach: in boxes of the detector, or in given ones."""
        if self.smallest_score is not None:
            return self.smallest_score
        return needed_score(self.detector) if detected else 0.0

    def __call__(self, image: np.ndarray, boxes: Any = None, *, smallest_score: float | None = None) -> Poses:
        """Poses of the people of one picture, best first, duplicates removed.

        Args:
            image: uint8 RGB, (height, width, 3).
            boxes: people's boxes, ``Boxes`` or anything of shape (n, 4), x0 y0 x1 y1; by default the detector's.
                Boxes that are not finite, inverted or wholly outside the picture give no pose.
            smallest_score: see ``needed_score``, which it replaces.

        Returns:
            Host arrays without padding: every entry is valid.

        Raises:
            ValueError: the picture or the boxes have another shape or type.
        """
        check_image(image)
        if smallest_score is None:
            smallest_score = self.needed_score(detected=boxes is None)
        if boxes is None:
            boxes = self.detector(image)
        given = boxes if isinstance(boxes, Boxes) else Boxes.from_arrays(boxes)
        # A pose's score is at most 1, so boxes below need no pose.
        valid = np.asarray(given.valid) & (np.asarray(given.score) >= smallest_score)
        poses = self.poses_in_boxes(image, np.asarray(given.xyxy)[valid])
        trust = np.zeros(len(poses.valid), np.float32)
        trust[: valid.sum()] = np.asarray(given.score)[valid]
        # A pose in a doubtful box must not remove that of a better one, and go itself then.
        sure = np.asarray(poses.valid) & (np.asarray(poses.pose_score) * trust >= smallest_score)
        poses = dataclasses.replace(poses, valid=jnp.asarray(sure))
        if self._keep is not None:
            poses = self._keep(poses)
        poses, ranking = jax.tree.map(np.asarray, poses), np.asarray(poses.pose_score)
        order = np.argsort(-ranking, kind="stable")
        chosen = order[poses.valid[order]]
        return jax.tree.map(lambda array: array[chosen], poses)

    def poses_in_boxes(self, image: np.ndarray, boxes: np.ndarray) -> Poses:
        """A pose for each box, in order and without NMS, padded with entries that are not valid."""
        check_image(image)
        count = len(boxes)
        # Powers of two: few shapes are compiled, and one person does not cost a whole batch.
        capacity = 2 ** int(np.ceil(np.log2(max(count, 1))))
        padded = np.zeros((capacity, 4), np.float32)
        padded[:count] = boxes
        height, width = image.shape[:2]
        valid = np.asarray(boxes_on_picture(jnp.asarray(padded), (height, width)))
        padded[~valid] = 0
        grow = [(0, -side % _SIDE_STEP) for side in (height, width)]
        picture = jnp.asarray(np.pad(image, [*grow, (0, 0)]))
        points = np.zeros((capacity, self.skeleton.size, 2), np.float32)
        score = np.zeros((capacity, self.skeleton.size), np.float32)
        for start in range(0, count, self._batch):
            part = slice(start, start + self._batch)
            crops, image_from_crop = self._crop(self._variables, picture, jnp.asarray(padded[part]))
            points[part], score[part] = self._estimate(self._variables, picture, crops, image_from_crop)
        return Poses(*(jnp.asarray(array) for array in (points, score, padded, valid)))


def load(name: str | Path = DEFAULT, **options: Any) -> Estimator:
    """An estimator with shipped weights, or with those of a file; ``options`` go to ``Estimator``."""
    return Estimator(load_weights(name), **options)
