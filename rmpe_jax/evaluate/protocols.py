"""The papers' protocols, from labelled pictures and predictions to numbers; PROTOCOLS.md has the rules.

Each gives its numbers as a function of how often each picture counts (``Measured.statistic``), so that one bootstrap
serves all of them.
"""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rmpe_jax.data.coco import coco_annotations
from rmpe_jax.data.files import DataError
from rmpe_jax.data.people import LabelledPicture, Person, people_in, usable_rows
from rmpe_jax.evaluate.predictions import Prediction, Predictions, as_results
from rmpe_jax.evaluate.results import Measured, Table
from rmpe_jax.geometry.boxes import box_iou
from rmpe_jax.metrics.box_ap import BOX_AP_NAMES
from rmpe_jax.metrics.multi_person_ap import (
    MPII_COLUMNS,
    WAF_COLUMNS,
    PredictedPeople,
    TruePeople,
    joint_average_precision,
    match_people,
)
from rmpe_jax.metrics.oks_ap import OKS_AP_NAMES, coco_numbers, match_keypoints, pack_keypoints
from rmpe_jax.metrics.pck import (
    AUC_THRESHOLDS,
    PDJ_FRACTIONS,
    correct_joints,
    correct_joints_at,
    mpii_head_size,
    pck,
    pck_auc,
    pck_curve,
    table_row,
    torso_length,
)
from rmpe_jax.metrics.pcp import (
    LSP_STICKS,
    PCP_COLUMNS,
    WAF_STICKS,
    correct_stickman,
    correct_sticks,
    match_stickmen,
    pcp,
    stickman_scores,
    sticks_of,
)
from rmpe_jax.skeleton import LIMB_JOINTS, LSP_14, Skeleton

Pictures = Sequence[LabelledPicture]
# PCKh's columns: MPII's table without the mean, which is over joints and not over columns.
_PCKH_COLUMNS = {name: joints for name, joints in MPII_COLUMNS.items() if name not in ("UBody", "Total")}
_FLIC_COLUMNS = {"Elbow": ("left_elbow", "right_elbow"), "Wrist": ("left_wrist", "right_wrist")}
# DeepPose's curves: arms on FLIC, arms and legs on LSP.
_LSP_CURVES = {**_FLIC_COLUMNS, **{name: _PCKH_COLUMNS[name] for name in ("Knee", "Ankle")}}
# Half the side of the square, over a person's scale, that MPII's rough position stands for; RMPE's released code keeps
# poses whose middle lies in the box around its group's squares.
_REGION = 40.0
# WAF: a joint predicted with less confidence counts as hidden.
_HIDDEN_BELOW = 0.2
# WAF: the upper-body window is the box of head and shoulders, larger by this share.
_WINDOW_MARGIN = 0.5
CROWD_LEVELS = {"ap_easy": (-np.inf, 0.2), "ap_medium_crowd": (0.2, 0.8), "ap_hard": (0.8, np.inf)}

_match_groups = jax.jit(jax.vmap(match_people))
_match_keypoints = jax.jit(match_keypoints, static_argnames="sigmas")
_coco_numbers = jax.jit(coco_numbers)


class Singles:
    """The labelled people of a single-person protocol and what was predicted for each; arrays over n people."""

    def __init__(self, pictures: Pictures, predictions: Predictions, *, single: bool = False):
        # Of several poses for one person the surest counts.
        by_person = {(p.image_id, p.person): p for p in sorted(predictions.poses, key=lambda pose: pose.pose_score)}
        places, truth, labelled, predicted, score, heads, boxes = [], [], [], [], [], [], []
        for place, record in enumerate(pictures):
            rows = usable_rows(record)
            for row in rows[record.single[rows]] if single else rows:
                pose = by_person.get((record.image_id, int(row)))
                if pose is None and len(record) == 1:
                    pose = by_person.get((record.image_id, None))
                nothing = np.full(record.points.shape[1:], np.nan)
                predicted.append(nothing if pose is None else np.where(pose.present[:, None], pose.points, np.nan))
                score.append(nothing[:, 0] if pose is None else np.where(pose.present, pose.score, np.nan))
                places.append(place)
                truth.append(record.points[row])
                labelled.append(record.visibility[row] > 0)
                heads.append(record.heads[row])
                boxes.append(record.boxes[row])
        if not places:
            raise DataError("nobody to measure: no labelled people in these pictures")
        self.place, self.labelled = np.array(places), jnp.array(labelled)
        # Predicted points and scores are NaN where there are none.
        self.truth, self.predicted, self.score, self.heads, self.boxes = (
            jnp.array(np.array(values), jnp.float32) for values in (truth, predicted, score, heads, boxes)
        )

    def __len__(self) -> int:
        return len(self.place)

    def torsos(self, skeleton: Skeleton) -> Float[Array, "n"]:
        """Length of each torso; zero where it is not labelled."""
        return jax.vmap(partial(torso_length, skeleton=skeleton))(self.truth, self.labelled)


def pck_torso(pictures: Pictures, predictions: Predictions, skeleton: Skeleton, training: Pictures) -> Measured:
    """PCK@0.2 of the torso (LSP, LSPET, FLIC), PDJ, and on LSP's joints PCP; with two references.

    The references never see the picture: the mean training pose placed in the box (where there is a training split),
    and joints drawn uniformly in the box. People without a labelled torso do not count for PCK and PDJ.
    """
    people = Singles(pictures, predictions)
    lengths = people.torsos(skeleton)
    counted = people.labelled & (lengths > 0)[:, None]
    upper_body = bool(set(LSP_14.joints) - set(skeleton.joints))
    columns, curves = (_FLIC_COLUMNS, _FLIC_COLUMNS) if upper_body else (_PCKH_COLUMNS, _LSP_CURVES)
    corner, size = people.boxes[:, None, :2], (people.boxes[:, 2:] - people.boxes[:, :2])[:, None]
    chance = np.random.default_rng(0).random(people.truth.shape).astype(np.float32)
    references = {"random_pck": corner + chance * size}
    examples = people_in(training)
    if examples:
        references["mean_pose_pck"] = corner + _mean_pose(examples) * size

    def judged(points: Float[Array, "n k 2"]) -> Bool[Array, "n k"]:
        return jax.vmap(correct_joints)(points, people.truth, counted, lengths)

    correct = judged(people.predicted)
    others = {name: judged(points) for name, points in references.items()}
    curve = jax.vmap(partial(correct_joints_at, thresholds=PDJ_FRACTIONS))(
        people.predicted, people.truth, counted, lengths
    )
    sticks = None if upper_body else _stick_scores(people, skeleton)
    data = people.place, correct, counted, curve, others, sticks

    def statistic(data: Any, weight: Float[Array, "i"]) -> dict[str, Any]:
        place, correct, counted, curve, others, sticks = data
        each = weight[place]
        total, joints = pck(correct, counted, weight=each)
        _, shares = pck_curve(curve, counted, weight=each)
        numbers: dict[str, Any] = {"pck": total, "pck_per_joint": dict(zip(skeleton.joints, joints, strict=True))}
        numbers["pck_columns"] = table_row(joints, skeleton.joints, columns)
        numbers |= {name: pck(right, counted, weight=each)[0] for name, right in others.items()}
        if sticks is not None:
            found, known = sticks
            shares_of = {kind: pcp(right, known, weight=each)[1] for kind, right in found.items()}
            numbers |= {f"pcp_{k}": table_row(v, tuple(LSP_STICKS), PCP_COLUMNS) for k, v in shares_of.items()}
        rows = [table_row(of_joint, skeleton.joints, curves) for of_joint in shares]
        numbers["pdj"] = {
            name: {f"{fraction:g}": row[name] for fraction, row in zip(PDJ_FRACTIONS, rows, strict=True)}
            for name in curves
        }
        return numbers

    tables = _pck_tables(predictions.source, tuple(columns), tuple(others), tuple(curves), pcp_too=sticks is not None)
    about = {"people": len(people), "people_without_torso": int((lengths == 0).sum())}
    return Measured(statistic, data, tables, about)


_PCP_KINDS = ("strict", "relaxed")


def _pck_tables(
    label: str, columns: tuple[str, ...], references: tuple[str, ...], curves: tuple[str, ...], *, pcp_too: bool
) -> tuple[Table, ...]:
    rows = {label: (*(f"pck_columns/{name}" for name in columns), "pck")}
    tables = [Table("PCK@0.2 of the torso", (*columns, "Mean"), rows)]
    tables.append(Table("references", references, {"PCK@0.2": references}))
    if pcp_too:
        rows = {f"{label}, {kind}": tuple(f"pcp_{kind}/{name}" for name in PCP_COLUMNS) for kind in _PCP_KINDS}
        tables.append(Table("PCP@0.5 (DeepPose's table 1: relaxed)", tuple(PCP_COLUMNS), rows))
    fractions = tuple(f"{fraction:g}" for fraction in PDJ_FRACTIONS)
    rows = {name: tuple(f"pdj/{name}/{fraction}" for fraction in fractions) for name in curves}
    return (*tables, Table("PDJ at fractions of the torso", fractions, rows))


def _stick_scores(people: Singles, skeleton: Skeleton) -> tuple[dict[str, Bool[Array, "n s"]], Bool[Array, "n s"]]:
    """Which sticks are found by either criterion, and which are labelled."""
    make = jax.vmap(partial(sticks_of, skeleton=skeleton, sticks=LSP_STICKS))
    truth, labelled = make(people.truth, people.labelled)
    predicted, _ = make(people.predicted, people.labelled)
    found = {}
    for kind in _PCP_KINDS:
        found[kind] = jax.vmap(partial(correct_sticks, criterion=kind))(predicted, truth, labelled)
    return found, labelled


def _mean_pose(people: Sequence[Person]) -> Float[Array, "1 k 2"]:
    """Mean joint positions as fractions of the box."""
    labelled = np.stack([person.labelled for person in people])[..., None]
    boxes = np.stack([person.box for person in people])[:, None]
    relative = (np.stack([person.points for person in people]) - boxes[..., :2]) / (boxes[..., 2:] - boxes[..., :2])
    mean = np.where(labelled, relative, 0).sum(0) / np.maximum(labelled.sum(0), 1)
    return jnp.array(mean[None], jnp.float32)


def pckh(pictures: Pictures, predictions: Predictions, skeleton: Skeleton) -> Measured:
    """MPII's single-person table: PCKh@0.5, @0.1 and the area under the curve, over people who stand apart.

    Pelvis and thorax are left out of the mean, as in the field's evaluators.
    """
    people = Singles(pictures, predictions, single=True)
    heads = jnp.nan_to_num(mpii_head_size(people.heads))
    mean_joints = jnp.array([joint not in ("pelvis", "thorax") for joint in skeleton.joints])
    counted = people.labelled & (heads > 0)[:, None] & mean_joints[None]
    judge = partial(jax.vmap(correct_joints_at, (0, 0, 0, 0, None)), people.predicted, people.truth, counted, heads)
    at_half, at_tenth, curve = (judge(thresholds) for thresholds in ((0.5,), (0.1,), AUC_THRESHOLDS))

    def statistic(data: Any, weight: Float[Array, "i"]) -> dict[str, Any]:
        place, at_half, at_tenth, curve, counted = data
        each = weight[place]
        total, joints = pck(at_half[:, 0], counted, weight=each)
        numbers: dict[str, Any] = {"pckh": total, "pckh_01": pck(at_tenth[:, 0], counted, weight=each)[0]}
        numbers["auc"] = pck_auc(curve, counted, weight=each)[0]
        numbers["pckh_columns"] = table_row(joints, skeleton.joints, _PCKH_COLUMNS)
        return numbers

    columns = (*(f"pckh_columns/{name}" for name in _PCKH_COLUMNS), "pckh", "pckh_01", "auc")
    table = Table("PCKh@0.5", (*_PCKH_COLUMNS, "Mean", "Mean@0.1", "AUC"), {predictions.source: columns})
    about = {"people": len(people), "people_without_head": int((heads == 0).sum())}
    return Measured(statistic, (people.place, at_half, at_tenth, curve, counted), (table,), about)


def multi_person(pictures: Pictures, predictions: Predictions, skeleton: Skeleton, *, denominator: str) -> Measured:
    """The AP of MPII's groups, or of WAF's pictures.

    A group of MPII has a place: the box around squares of 80 scales a side at its people's rough positions. A pose
    belongs to the group in whose place its middle lies (between pelvis and thorax); poses elsewhere do not count.

    Args:
        pictures: with groups.
        predictions: detected poses.
        skeleton: MPII's or WAF's.
        denominator: "strict" or "toolkit_parity", see ``joint_average_precision``.
    """
    joints, columns = multi_person_joints(skeleton)
    order = [skeleton.joints.index(joint) for joint in joints]
    groups = groups_of(pictures, predictions, skeleton)
    labels = true_people(pictures, groups, order)
    found = [
        [(pose.points[order], pose.score[order], pose.present[order]) for pose in group.members] for group in groups
    ]
    fields = [[[pose[field] for pose in group] for group in found] for field in range(3)]
    matches = _match_groups(labels, PredictedPeople.from_lists(*fields, joints=len(joints)))
    places = [group.place for group in groups]

    def statistic(data: Any, weight: Float[Array, "i"]) -> dict[str, Any]:
        matches, place = data
        ap = joint_average_precision(matches, weight=weight[place], denominator=denominator)
        row = table_row(ap, joints, columns)
        return {"map": row["Total"], "ap_columns": row, "ap_per_joint": dict(zip(joints, ap, strict=True))}

    rows = {predictions.source: tuple(f"ap_columns/{name}" for name in columns)}
    about = {"groups": len(places), "people": int(sum(len(g.rows) for g in groups)), "denominator": denominator}
    table = Table("multi-person AP", tuple(columns), rows)
    return Measured(statistic, (matches, np.array(places)), (table,), about)


@dataclasses.dataclass(frozen=True)
class Group:
    """People who are measured together by multi-person AP, and the poses of their picture."""

    place: int  # of the picture among the pictures
    rows: np.ndarray  # of the people in their picture
    poses: list[Prediction]  # of the picture
    belongs: np.ndarray  # which of them are in the group's place

    @property
    def members(self) -> list[Prediction]:
        """The poses that belong to the group."""
        return [pose for pose, belongs in zip(self.poses, self.belongs, strict=True) if belongs]


def groups_of(pictures: Pictures, predictions: Predictions, skeleton: Skeleton) -> list[Group]:
    """The groups of people of some pictures, each with the poses of its picture; see ``multi_person``.

    Raises:
        DataError: there is none.
    """
    poses, groups = _by_picture(predictions.poses), []
    for place, record in enumerate(pictures):
        for number in np.unique(record.group[record.group >= 0]):
            rows, found = np.flatnonzero(record.group == number), poses.get(record.image_id, [])
            belongs = np.array([_belongs(pose, record, rows, skeleton) for pose in found], bool)
            groups.append(Group(place, rows, found, belongs))
    if not groups:
        raise DataError("nobody to measure: no groups of people in these pictures")
    return groups


def multi_person_joints(skeleton: Skeleton) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The joints over which multi-person AP is the mean, and the columns of its table: MPII's, or WAF's."""
    columns = {name: joints for name, joints in MPII_COLUMNS.items() if set(joints) <= set(skeleton.joints)}
    if "Total" in columns:
        return LSP_14.joints, columns
    return tuple(dict.fromkeys(sum(WAF_COLUMNS.values(), ()))), WAF_COLUMNS


def true_people(pictures: Pictures, groups: Sequence[Group], order: Sequence[int]) -> TruePeople:
    """The people of groups, with some of their joints."""
    records = [(pictures[group.place], group.rows) for group in groups]
    heads = [jnp.array(record.heads[rows], jnp.float32) for record, rows in records]
    return TruePeople.from_lists(
        [record.points[rows][:, order] for record, rows in records],
        [record.visibility[rows][:, order] > 0 for record, rows in records],
        [np.nan_to_num(np.asarray(mpii_head_size(boxes))) for boxes in heads],
        joints=len(order),
    )


def _by_picture(poses: Sequence[Prediction]) -> dict[int, list[Prediction]]:
    found: dict[int, list[Prediction]] = {}
    for pose in poses:
        found.setdefault(pose.image_id, []).append(pose)
    return found


def _belongs(pose: Prediction, record: LabelledPicture, rows: np.ndarray, skeleton: Skeleton) -> bool:
    centres, scales = record.centres[rows], record.scale[rows]
    if not np.isfinite(centres).all() or not np.isfinite(scales).all():
        return True
    trunk = [skeleton.joints.index(joint) for joint in ("pelvis", "thorax")]
    trunk = [joint for joint in trunk if pose.present[joint]] or np.flatnonzero(pose.present)
    middle, margin = pose.points[trunk].mean(0), _REGION * scales[:, None]
    return bool((middle >= (centres - margin).min(0)).all() and (middle <= (centres + margin).max(0)).all())


def stickmen(pictures: Pictures, predictions: Predictions, skeleton: Skeleton) -> Measured:
    """WAF's older figures: detection rate, PCP of each stick, mPCP and AOP.

    The upper-body window of a person is the box of head and shoulders, half as large again; a joint predicted with a
    confidence below 0.2 is taken to be hidden.
    """
    poses, places, parts = _by_picture(predictions.poses), [], []
    make = jax.jit(jax.vmap(partial(sticks_of, skeleton=skeleton, sticks=WAF_STICKS)))
    for place, record in enumerate(pictures):
        here = poses.get(record.image_id, [])
        points = np.array([p.points for p in here], np.float32).reshape(-1, skeleton.size, 2)
        seen = np.array([p.present & (p.score >= _HIDDEN_BELOW) for p in here], bool).reshape(-1, skeleton.size)
        labelled = record.visibility > 0
        match = np.full(len(record), -1)
        if here:
            windows = _windows(points, seen, skeleton), _windows(record.points, labelled, skeleton)
            overlap = box_iou(windows[0][:, None], windows[1][None])
            match = np.asarray(match_stickmen(overlap, jnp.ones(len(here), bool), jnp.array(labelled.any(1))))
        for row, other in enumerate(match.tolist()):
            nothing = np.zeros((skeleton.size, 2), np.float32), np.zeros(skeleton.size, bool)
            pose = (points[other], seen[other]) if other >= 0 else nothing
            parts.append((*pose, record.points[row].astype(np.float32), labelled[row], other >= 0))
            places.append(place)
    if not parts:
        raise DataError("nobody to measure: no labelled people in these pictures")
    columns = [jnp.array(np.array(column)) for column in zip(*parts, strict=True)]
    predicted, visible = make(columns[0], columns[1])
    truth, true_visible = make(columns[2], columns[3])
    correct, occlusion = jax.vmap(correct_stickman)(predicted, visible, truth, true_visible)

    def statistic(data: Any, weight: Float[Array, "i"]) -> dict[str, Any]:
        correct, occlusion, detected, place = data
        scores = stickman_scores(correct, occlusion, detected, weight=weight[place])
        each = dict(zip(WAF_STICKS, scores.pcp, strict=True))
        return {"mpcp": scores.mpcp, "aop": scores.aop, "detection_rate": scores.detection_rate, "pcp": each}

    names = (*(f"pcp/{stick}" for stick in WAF_STICKS), "mpcp", "aop", "detection_rate")
    titles = (*(stick.replace("_", " ") for stick in WAF_STICKS), "mPCP", "AOP", "detected")
    table = Table("stickmen", titles, {predictions.source: names})
    return Measured(statistic, (correct, occlusion, columns[4], np.array(places)), (table,), {"people": len(parts)})


def _windows(points: np.ndarray, seen: np.ndarray, skeleton: Skeleton) -> Float[Array, "n 4"]:
    """Boxes of head and shoulders; an empty box far away where fewer than two of their joints are seen."""
    joints = [skeleton.joints.index(name) for name in ("head_top", "neck", "left_shoulder", "right_shoulder")]
    inside, points = seen[:, joints, None], points[:, joints]
    low = np.where(inside, points, np.inf).min(1, initial=np.inf)
    high = np.where(inside, points, -np.inf).max(1, initial=-np.inf)
    margin = _WINDOW_MARGIN / 2 * np.maximum(high - low, 0)
    boxes = np.concatenate([low - margin, high + margin], 1)
    return jnp.array(np.where(seen[:, joints].sum(1)[:, None] >= 2, boxes, -1e6), jnp.float32)


def oks(pictures: Pictures, predictions: Predictions, skeleton: Skeleton, *, crowds: bool = False) -> Measured:
    """COCO's OKS AP and AR: pycocotools' numbers on COCO, intervals from our own evaluator, which must agree.

    Args:
        pictures: with crowds and people without joints.
        predictions: poses.
        skeleton: COCO's or CrowdPose's; its sigmas count.
        crowds: report CrowdPose's table, with AP at three levels of crowding, instead of COCO's.

    With everybody predicted in their own box there is also ``limb_pck``: PCK@0.2 of the torso over the joints of arms
    and legs.

    Raises:
        DataError: our evaluator and pycocotools differ by more than 1e-6: a defect that must not go unseen.
    """
    annotations, results = coco_annotations(pictures), as_results(predictions.poses)
    numbers = [record.image_id for record in pictures]
    with jax.enable_x64(True):
        truth, found = pack_keypoints(annotations, results, numbers, joints=skeleton.size)
        matches = _match_keypoints(truth, found, sigmas=skeleton.sigmas)
    # Matches count pictures in the order of their numbers.
    order = np.argsort(np.array(numbers))
    crowding = np.array([record.crowd_index for record in pictures])
    levels = {name: (crowding >= low) & (crowding < high) for name, (low, high) in CROWD_LEVELS.items()}

    limbs = _limb_scores(pictures, predictions, skeleton)
    data = matches, order, levels, limbs

    def statistic(data: Any, weight: Float[Array, "i"]) -> dict[str, Any]:
        matches, order, levels, limbs = data
        values: dict[str, Any] = dict(zip(OKS_AP_NAMES, coco_numbers(matches, weight=weight[order]), strict=True))
        if crowds:
            here = {name: coco_numbers(matches, weight=(weight * level)[order])[0] for name, level in levels.items()}
            values |= here
        # COCO's evaluators say -1 for the share of nothing.
        values = {name: jnp.where(value < 0, jnp.nan, value) for name, value in values.items()}
        if limbs is not None:
            place, correct, counted = limbs
            values["limb_pck"] = pck(correct, counted, weight=weight[place])[0]
        return values

    names = ("ap", "ap50", "ap75", "ar", "ar50", "ar75", *CROWD_LEVELS) if crowds else OKS_AP_NAMES
    titles = ("AP", "AP50", "AP75", "AR", "AR50", "AR75", "AP_E", "AP_M", "AP_H") if crowds else _COCO_TITLES
    tables = [Table("OKS average precision and recall", titles, {predictions.source: names})]
    if limbs is not None:
        tables.append(Table("PCK@0.2 of the torso", ("arms and legs",), {predictions.source: ("limb_pck",)}))
    people = sum(not annotation["iscrowd"] and annotation["num_keypoints"] > 0 for annotation in annotations)
    about: dict[str, Any] = {"people": people, "poses": len(results)}
    if not results:
        return Measured(statistic, data, tuple(tables), about, x64=True)
    exact = coco_summary(annotations, results, numbers, skeleton.sigmas)
    with jax.enable_x64(True):
        ours = np.asarray(_coco_numbers(matches)).tolist()
    exact, about["difference_to_pycocotools"] = agreed(ours, exact)
    return Measured(statistic, data, tuple(tables), about, exact, x64=True)


def agreed(ours: Sequence[float], exact: dict[str, float]) -> tuple[dict[str, float], float]:
    """The numbers of pycocotools, but for those of nobody, and how far our own, in the same order, are from them.

    Raises:
        DataError: they differ by more than 1e-6: a defect that must not go unseen.
    """
    difference = max(abs(mine - theirs) for mine, theirs in zip(ours, exact.values(), strict=True))
    if difference > 1e-6:
        raise DataError(f"pycocotools and our evaluator differ by {difference:g}: please report this")
    return {name: value for name, value in exact.items() if value >= 0}, difference


_COCO_TITLES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


def coco_summary(
    annotations: list[dict[str, Any]],
    results: list[dict[str, Any]],
    image_ids: list[int],
    sigmas: Sequence[float] | None = None,
    *,
    kind: Literal["keypoints", "bbox"] = "keypoints",
) -> dict[str, float]:
    """COCO's ten keypoint numbers, or its AP of boxes, by pycocotools, which needs at least one result.

    Args:
        annotations: labelled people as COCO's dictionaries.
        results: poses or boxes as COCO's results.
        image_ids: the pictures to evaluate.
        sigmas: per joint; COCO's by default.
        kind: the numbers are called ``OKS_AP_NAMES`` or ``BOX_AP_NAMES``.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        pictures, people = [{"id": number} for number in image_ids], [dict(record) for record in annotations]
        content: Any = {"info": {}, "images": pictures, "annotations": people, "categories": [{"id": 1}]}
        truth.dataset = content
        truth.createIndex()
        # loadRes adds to the dictionaries that it is given; its type says str, but a list is documented.
        detections = truth.loadRes([dict(result) for result in results])  # pyright: ignore[reportArgumentType]
        evaluation = COCOeval(truth, detections, kind)
        evaluation.params.imgIds = image_ids
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = OKS_AP_NAMES if kind == "keypoints" else BOX_AP_NAMES
    return {name: float(value) for name, value in zip(names, evaluation.stats[: len(names)], strict=True)}


def _limb_scores(pictures: Pictures, predictions: Predictions, skeleton: Skeleton) -> tuple[Any, ...] | None:
    """The picture of each person, the right joints and the counted ones.

    None where nobody is labelled, or people were detected and not predicted in their own boxes.
    """
    detected = any(pose.person is None for pose in predictions.poses)
    if detected or not predictions.poses or not any(len(usable_rows(record)) for record in pictures):
        return None
    people = Singles(pictures, predictions)
    lengths = people.torsos(skeleton)
    limbs = jnp.array([joint in LIMB_JOINTS for joint in skeleton.joints])
    counted = people.labelled & limbs[None] & (lengths > 0)[:, None]
    return people.place, jax.vmap(correct_joints)(people.predicted, people.truth, counted, lengths), counted
