"""RMPE, regional multi-person pose estimation, in JAX: from a picture to the poses of its people.

>>> import rmpe_jax
>>> rmpe_jax.COCO_17.size
17

Names are imported when they are first used, so ``import rmpe_jax`` itself is quick and needs nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmpe_jax.browse import labels_sheet as labels_sheet
    from rmpe_jax.config import Experiment as Experiment
    from rmpe_jax.config import HourglassConfig as HourglassConfig
    from rmpe_jax.config import LocalizationConfig as LocalizationConfig
    from rmpe_jax.config import override as override
    from rmpe_jax.data.images import read_image as read_image
    from rmpe_jax.data.images import write_image as write_image
    from rmpe_jax.data.people import LabelledPicture as LabelledPicture
    from rmpe_jax.data.prepare import prepare_data as prepare_data
    from rmpe_jax.data.sets import read_data as read_data
    from rmpe_jax.draw import caption as caption
    from rmpe_jax.draw import contact_sheet as contact_sheet
    from rmpe_jax.draw import draw_arrows as draw_arrows
    from rmpe_jax.draw import draw_boxes as draw_boxes
    from rmpe_jax.draw import draw_grid as draw_grid
    from rmpe_jax.draw import draw_heatmaps as draw_heatmaps
    from rmpe_jax.draw import draw_poses as draw_poses
    from rmpe_jax.draw import draw_suppressed as draw_suppressed
    from rmpe_jax.draw import suppression_sheet as suppression_sheet
    from rmpe_jax.evaluate.detections import evaluate_detector as evaluate_detector
    from rmpe_jax.evaluate.run import evaluate_dataset as evaluate_dataset
    from rmpe_jax.export import ExportedProgram as ExportedProgram
    from rmpe_jax.export import export_weights as export_weights
    from rmpe_jax.export import load_exported as load_exported
    from rmpe_jax.geometry.affine import compose as compose
    from rmpe_jax.geometry.affine import image_from_crop as image_from_crop
    from rmpe_jax.geometry.affine import image_from_person as image_from_person
    from rmpe_jax.geometry.affine import invert_affine as invert_affine
    from rmpe_jax.geometry.affine import pixels_of_resized as pixels_of_resized
    from rmpe_jax.geometry.affine import transform_points as transform_points
    from rmpe_jax.geometry.boxes import box_iou as box_iou
    from rmpe_jax.geometry.boxes import box_nms as box_nms
    from rmpe_jax.geometry.boxes import extend_boxes as extend_boxes
    from rmpe_jax.geometry.remapping import crop_from_stn as crop_from_stn
    from rmpe_jax.geometry.remapping import sdtn as sdtn
    from rmpe_jax.geometry.remapping import sdtn_points as sdtn_points
    from rmpe_jax.geometry.remapping import stn as stn
    from rmpe_jax.geometry.sampling import affine_grid as affine_grid
    from rmpe_jax.geometry.sampling import crop_aligned as crop_aligned
    from rmpe_jax.geometry.sampling import crop_image as crop_image
    from rmpe_jax.geometry.sampling import crop_images as crop_images
    from rmpe_jax.geometry.sampling import grid_sample as grid_sample
    from rmpe_jax.heatmaps import decode_dark as decode_dark
    from rmpe_jax.heatmaps import decode_heatmaps as decode_heatmaps
    from rmpe_jax.heatmaps import decode_soft_argmax as decode_soft_argmax
    from rmpe_jax.heatmaps import encode_heatmaps as encode_heatmaps
    from rmpe_jax.metrics.box_ap import box_ap as box_ap
    from rmpe_jax.metrics.box_ap import evaluate_boxes as evaluate_boxes
    from rmpe_jax.metrics.intervals import bootstrap as bootstrap
    from rmpe_jax.metrics.intervals import interval as interval
    from rmpe_jax.metrics.multi_person_ap import joint_average_precision as joint_average_precision
    from rmpe_jax.metrics.multi_person_ap import match_people as match_people
    from rmpe_jax.metrics.oks import oks as oks
    from rmpe_jax.metrics.oks_ap import evaluate_keypoints as evaluate_keypoints
    from rmpe_jax.metrics.oks_ap import oks_ap as oks_ap
    from rmpe_jax.metrics.pck import pck as pck
    from rmpe_jax.metrics.pcp import pcp as pcp
    from rmpe_jax.models.hourglass import apply_hourglass as apply_hourglass
    from rmpe_jax.models.hourglass import init_hourglass as init_hourglass
    from rmpe_jax.models.localization import apply_localization as apply_localization
    from rmpe_jax.models.localization import init_localization as init_localization
    from rmpe_jax.models.rmpe import init_estimator as init_estimator
    from rmpe_jax.models.single_person import crop_people as crop_people
    from rmpe_jax.models.single_person import estimate_heatmaps as estimate_heatmaps
    from rmpe_jax.models.single_person import read_poses as read_poses
    from rmpe_jax.nms.baselines import box_pose_nms as box_pose_nms
    from rmpe_jax.nms.baselines import joint_overlap_nms as joint_overlap_nms
    from rmpe_jax.nms.baselines import oks_nms as oks_nms
    from rmpe_jax.nms.baselines import soft_oks_nms as soft_oks_nms
    from rmpe_jax.nms.objective import Objective as Objective
    from rmpe_jax.nms.objective import oks_objective as oks_objective
    from rmpe_jax.nms.objective import people_objective as people_objective
    from rmpe_jax.nms.pose import PRESETS as PRESETS
    from rmpe_jax.nms.pose import PoseNMSParameters as PoseNMSParameters
    from rmpe_jax.nms.pose import Suppressed as Suppressed
    from rmpe_jax.nms.pose import distance_similarity as distance_similarity
    from rmpe_jax.nms.pose import keypoint_similarity as keypoint_similarity
    from rmpe_jax.nms.pose import pose_nms as pose_nms
    from rmpe_jax.nms.pose import pose_similarity as pose_similarity
    from rmpe_jax.nms.pose import suppress_poses as suppress_poses
    from rmpe_jax.nms.search import Grid as Grid
    from rmpe_jax.nms.search import default_grid as default_grid
    from rmpe_jax.nms.search import fit_pose_nms as fit_pose_nms
    from rmpe_jax.nms.search import learnable as learnable
    from rmpe_jax.nms.search import sweep_eta as sweep_eta
    from rmpe_jax.nms.search import try_grid as try_grid
    from rmpe_jax.predict.detectors import detect_with_hog as detect_with_hog
    from rmpe_jax.predict.detectors import read_boxes as read_boxes
    from rmpe_jax.predict.estimator import Estimator as Estimator
    from rmpe_jax.predict.estimator import estimate_poses as estimate_poses
    from rmpe_jax.predict.estimator import load as load
    from rmpe_jax.predict.onnx_detector import OnnxDetector as OnnxDetector
    from rmpe_jax.predict.person_detector import PersonDetector as PersonDetector
    from rmpe_jax.predict.transformers_detector import TransformersDetector as TransformersDetector
    from rmpe_jax.pretrained import load_nms as load_nms
    from rmpe_jax.pretrained import load_proposals as load_proposals
    from rmpe_jax.pretrained import load_weights as load_weights
    from rmpe_jax.pretrained import save_nms as save_nms
    from rmpe_jax.pretrained import save_proposals as save_proposals
    from rmpe_jax.pretrained import save_weights as save_weights
    from rmpe_jax.proposals.generators import Law as Law
    from rmpe_jax.proposals.generators import sample_boxes as sample_boxes
    from rmpe_jax.proposals.mixtures import OffsetMixtures as OffsetMixtures
    from rmpe_jax.proposals.offsets import propose as propose
    from rmpe_jax.proposals.scored import ScoredProposals as ScoredProposals
    from rmpe_jax.records import Boxes as Boxes
    from rmpe_jax.records import Poses as Poses
    from rmpe_jax.skeleton import COCO_17 as COCO_17
    from rmpe_jax.skeleton import COCO_LSP_19 as COCO_LSP_19
    from rmpe_jax.skeleton import CROWDPOSE_14 as CROWDPOSE_14
    from rmpe_jax.skeleton import FLIC_11 as FLIC_11
    from rmpe_jax.skeleton import LSP_14 as LSP_14
    from rmpe_jax.skeleton import MPII_16 as MPII_16
    from rmpe_jax.skeleton import WAF_10 as WAF_10
    from rmpe_jax.skeleton import Skeleton as Skeleton
    from rmpe_jax.torch_layouts import import_localization as import_localization
    from rmpe_jax.torch_layouts import import_weights as import_weights
    from rmpe_jax.train.differences import by_differences as by_differences
    from rmpe_jax.train.gradient_paths import ByPath as ByPath
    from rmpe_jax.train.gradient_paths import Scene as Scene
    from rmpe_jax.train.gradient_paths import gradient_paths as gradient_paths
    from rmpe_jax.train.gradient_paths import remapping_loss as remapping_loss

__version__ = "0.1.0"

# Public name -> module that defines it; a test holds this against the imports above.
_HOME = {
    "labels_sheet": "browse",
    **dict.fromkeys(
        (
            "Experiment",
            "HourglassConfig",
            "LocalizationConfig",
            "override",
        ),
        "config",
    ),
    **dict.fromkeys(
        (
            "read_image",
            "write_image",
        ),
        "data.images",
    ),
    "LabelledPicture": "data.people",
    "prepare_data": "data.prepare",
    "read_data": "data.sets",
    **dict.fromkeys(
        (
            "caption",
            "contact_sheet",
            "draw_arrows",
            "draw_boxes",
            "draw_grid",
            "draw_heatmaps",
            "draw_poses",
            "draw_suppressed",
            "suppression_sheet",
        ),
        "draw",
    ),
    "evaluate_detector": "evaluate.detections",
    "evaluate_dataset": "evaluate.run",
    **dict.fromkeys(
        (
            "ExportedProgram",
            "export_weights",
            "load_exported",
        ),
        "export",
    ),
    **dict.fromkeys(
        (
            "compose",
            "image_from_crop",
            "image_from_person",
            "invert_affine",
            "pixels_of_resized",
            "transform_points",
        ),
        "geometry.affine",
    ),
    **dict.fromkeys(
        (
            "box_iou",
            "box_nms",
            "extend_boxes",
        ),
        "geometry.boxes",
    ),
    **dict.fromkeys(
        (
            "crop_from_stn",
            "sdtn",
            "sdtn_points",
            "stn",
        ),
        "geometry.remapping",
    ),
    **dict.fromkeys(
        (
            "affine_grid",
            "crop_aligned",
            "crop_image",
            "crop_images",
            "grid_sample",
        ),
        "geometry.sampling",
    ),
    **dict.fromkeys(
        (
            "decode_dark",
            "decode_heatmaps",
            "decode_soft_argmax",
            "encode_heatmaps",
        ),
        "heatmaps",
    ),
    **dict.fromkeys(("import_localization", "import_weights"), "torch_layouts"),
    **dict.fromkeys(
        (
            "box_ap",
            "evaluate_boxes",
        ),
        "metrics.box_ap",
    ),
    **dict.fromkeys(
        (
            "bootstrap",
            "interval",
        ),
        "metrics.intervals",
    ),
    **dict.fromkeys(
        (
            "joint_average_precision",
            "match_people",
        ),
        "metrics.multi_person_ap",
    ),
    "oks": "metrics.oks",
    **dict.fromkeys(
        (
            "evaluate_keypoints",
            "oks_ap",
        ),
        "metrics.oks_ap",
    ),
    "pck": "metrics.pck",
    "pcp": "metrics.pcp",
    **dict.fromkeys(
        (
            "apply_hourglass",
            "init_hourglass",
        ),
        "models.hourglass",
    ),
    **dict.fromkeys(
        (
            "apply_localization",
            "init_localization",
        ),
        "models.localization",
    ),
    "init_estimator": "models.rmpe",
    **dict.fromkeys(
        (
            "crop_people",
            "estimate_heatmaps",
            "read_poses",
        ),
        "models.single_person",
    ),
    **dict.fromkeys(
        (
            "box_pose_nms",
            "joint_overlap_nms",
            "oks_nms",
            "soft_oks_nms",
        ),
        "nms.baselines",
    ),
    **dict.fromkeys(
        (
            "Objective",
            "oks_objective",
            "people_objective",
        ),
        "nms.objective",
    ),
    **dict.fromkeys(
        (
            "PRESETS",
            "PoseNMSParameters",
            "Suppressed",
            "distance_similarity",
            "keypoint_similarity",
            "pose_nms",
            "pose_similarity",
            "suppress_poses",
        ),
        "nms.pose",
    ),
    **dict.fromkeys(
        (
            "Grid",
            "default_grid",
            "fit_pose_nms",
            "learnable",
            "sweep_eta",
            "try_grid",
        ),
        "nms.search",
    ),
    **dict.fromkeys(
        (
            "detect_with_hog",
            "read_boxes",
        ),
        "predict.detectors",
    ),
    "OnnxDetector": "predict.onnx_detector",
    "PersonDetector": "predict.person_detector",
    "TransformersDetector": "predict.transformers_detector",
    **dict.fromkeys(
        (
            "Estimator",
            "estimate_poses",
            "load",
        ),
        "predict.estimator",
    ),
    **dict.fromkeys(
        (
            "load_nms",
            "load_proposals",
            "load_weights",
            "save_nms",
            "save_proposals",
            "save_weights",
        ),
        "pretrained",
    ),
    **dict.fromkeys(
        (
            "Law",
            "sample_boxes",
        ),
        "proposals.generators",
    ),
    "OffsetMixtures": "proposals.mixtures",
    "propose": "proposals.offsets",
    "ScoredProposals": "proposals.scored",
    **dict.fromkeys(
        (
            "Boxes",
            "Poses",
        ),
        "records",
    ),
    **dict.fromkeys(
        (
            "COCO_17",
            "COCO_LSP_19",
            "CROWDPOSE_14",
            "FLIC_11",
            "LSP_14",
            "MPII_16",
            "WAF_10",
            "Skeleton",
        ),
        "skeleton",
    ),
    "by_differences": "train.differences",
    **dict.fromkeys(
        (
            "ByPath",
            "Scene",
            "gradient_paths",
            "remapping_loss",
        ),
        "train.gradient_paths",
    ),
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rmpe_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rmpe_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
