"""Poses as COCO keypoint results: a list of objects, one per pose, that pycocotools reads."""

from typing import Any

import numpy as np

from rmpe_jax.records import Poses
from rmpe_jax.skeleton import COCO_17, Skeleton, joint_map


def coco_results(poses: Poses, skeleton: Skeleton, *, image_id: int, file_name: str) -> list[dict[str, Any]]:
    """One object per valid pose.

    ``keypoints`` are COCO's seventeen as x, y, confidence (0, 0, 0 where the skeleton lacks the joint), ``score`` is
    the mean confidence, in [0, 1], ``box`` the person's x, y, width, height. Joints beyond COCO's stand by name in
    ``extra_keypoints``.
    """
    order = np.array(joint_map(skeleton, COCO_17))
    extra = [joint for joint in skeleton.joints if joint not in COCO_17.joints]
    results = []
    for place in np.flatnonzero(poses.valid):
        points, score, box = (np.asarray(array[place]) for array in (poses.points, poses.score, poses.boxes))
        triplets = np.concatenate([points, score[:, None]], 1)
        keypoints = np.where((order >= 0)[:, None], triplets[order], 0)
        corner_and_size = np.concatenate([box[:2], box[2:] - box[:2]])
        results.append(
            {
                "image_id": image_id,
                "file_name": file_name,
                "category_id": 1,
                "keypoints": _rounded(keypoints.ravel()),
                "score": round(float(poses.pose_score[place]), 4),
                "box": _rounded(corner_and_size),
                "extra_keypoints": {joint: _rounded(triplets[skeleton.joints.index(joint)]) for joint in extra},
            }
        )
    return results


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]
