"""One call from weights, or a file of predictions, and a data set to the result of its protocol."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rmpe_jax.data.files import DataError
from rmpe_jax.data.people import LabelledPicture
from rmpe_jax.data.prepared import finished_splits, is_prepared, prepared_folder
from rmpe_jax.data.sets import data_set, read_data
from rmpe_jax.evaluate import protocols
from rmpe_jax.evaluate.predictions import (
    Predictions,
    predict_detected,
    predict_in_boxes,
    read_predictions,
    write_predictions,
)
from rmpe_jax.evaluate.results import Measured, Result, make_result
from rmpe_jax.predict.detectors import BoxesFile, read_boxes
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.skeleton import Skeleton

#: For each data set its protocols, the default first, and the split that is measured by default.
PROTOCOLS = {
    "coco": (("oks",), "val2017"),
    "crowdpose": (("oks",), "test"),
    "flic": (("pck",), "test"),
    "lsp": (("pck",), "test"),
    "lspet": (("pck",), "val"),
    "mpii": (("pckh", "multi"), "val"),
    "synthetic": (("oks",), "val"),
    "waf": (("multi", "sticks"), "test"),
}
#: What nothing may be tuned on. LSPET's and MPII's validation people are for that too.
TESTED = {(name, split) for name, (_, split) in PROTOCOLS.items() if split != "val"}
_IN_OWN_BOX = ("pck", "pckh")
_DETECTED = ("multi", "sticks")


def evaluate_dataset(
    name: str,
    predictor: Estimator | str | Path,
    folder: str | Path,
    *,
    split: str | None = None,
    protocol: str | None = None,
    boxes: str | BoxesFile | None = None,
    limit: int | None = None,
    toolkit_parity: bool = False,
    replicates: int = 1000,
    seed: int = 0,
    save_predictions: str | Path | None = None,
    report: Callable[[str], None] = print,
) -> Result:
    """Measures poses on a data set by its protocol, with bootstrap intervals over pictures.

    Args:
        name: of the data set; ``PROTOCOLS`` has what is measured on it.
        predictor: an estimator, or a file of predictions (see ``evaluate.predictions``).
        folder: the official files, or the prepared set.
        split: another than the one that is usually measured.
        protocol: another than the data set's first.
        boxes: "gt" for the labelled people's own boxes (an oracle), "detector" for the estimator's, or a file of
            COCO-style detections, or what ``read_boxes`` made of one. By default "gt" for "oks" and "detector" for
            "multi" and "sticks"; single-person protocols have no choice: "pck" takes the own box, "pckh" MPII's rough
            position and scale.
        limit: only the first pictures, for a quick look.
        toolkit_parity: the multi-person AP counts recall as MPII's toolkit does, see ``joint_average_precision``.
        replicates: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.
        save_predictions: write the predictions there, to be evaluated again without the network.
        report: receives a line for each picture that cannot be read; nobody is found in it.

    Returns:
        The numbers in [0, 1] by name, with ``intervals``, ``bootstrap`` and ``tables``; see ``evaluate.results``.

    Raises:
        DataError: the data or the predictions cannot be read, or there is nobody to measure.
    """
    known, usual = PROTOCOLS[data_set(name).name]
    protocol, split = protocol or known[0], split or usual
    if protocol not in known:
        raise DataError(f"{name} has the protocols {', '.join(known)}, not {protocol!r}")
    if protocol in _IN_OWN_BOX and boxes not in (None, "gt"):
        given = boxes.path if isinstance(boxes, BoxesFile) else boxes
        raise DataError(f"the protocol {protocol} predicts each person in their own box: --boxes {given} has no use")
    if toolkit_parity and protocol != "multi":
        raise DataError(f"toolkit parity is of multi-person AP: with the protocol {protocol} it has no use")
    if boxes is not None and not isinstance(predictor, Estimator):
        raise DataError(f"predictions from a file are measured as they are: boxes {boxes!r} have no use")
    everything, skeleton = read_data(name, folder, split), data_set(name).skeleton
    pictures = everything[:limit]
    if not pictures:
        raise DataError(f"{folder}: the split {split} of {name} has no pictures")
    _check_labels(f"{folder}: the split {split} of {name}", everything, protocol)
    boxes = boxes or {"pckh": "position", **dict.fromkeys(_DETECTED, "detector")}.get(protocol, "gt")
    predictions = _predictions(predictor, pictures, skeleton, boxes)
    if len(predictions.problems) == len(pictures):
        raise DataError(f"none of {len(pictures)} pictures can be read; the first: {predictions.problems[0]}")
    for problem in predictions.problems:
        report(problem)
    if save_predictions is not None:
        write_predictions(save_predictions, predictions, pictures)
    measured = _measure(name, folder, protocol, pictures, predictions, skeleton, toolkit_parity)
    about = {"dataset": name, "split": split, "protocol": protocol, "weights": predictions.source}
    about |= {"boxes": predictions.boxes, "unreadable": len(predictions.problems)}
    names = [record.picture.name for record in pictures]
    return make_result(about, measured, names, replicates=replicates, seed=seed)


def _check_labels(what: str, pictures: list[LabelledPicture], protocol: str) -> None:
    """Raises DataError before a network runs for nothing."""
    if protocol == "pckh" and not any(np.isfinite(record.heads).all(1).any() for record in pictures):
        raise DataError(f"{what} has no head boxes; a re-issued JSON needs gt_valid.mat beside it")
    if protocol == "multi" and not any((record.group >= 0).any() for record in pictures):
        raise DataError(f"{what} has no groups of people")
    if not any((record.visibility > 0).any() for record in pictures):
        raise DataError(f"{what} has nobody to measure: no labelled people")


def _predictions(
    predictor: Estimator | str | Path, pictures: list[LabelledPicture], skeleton: Skeleton, boxes: str | BoxesFile
) -> Predictions:
    if not isinstance(predictor, Estimator):
        return read_predictions(predictor, pictures, skeleton)
    if boxes in ("gt", "position"):
        return predict_in_boxes(predictor, pictures, skeleton, positions=boxes == "position")
    file = boxes if isinstance(boxes, BoxesFile) else None if boxes == "detector" else read_boxes(boxes)
    return predict_detected(predictor, pictures, skeleton, file)


def _measure(
    name: str,
    folder: str | Path,
    protocol: str,
    pictures: list[LabelledPicture],
    predictions: Predictions,
    skeleton: Skeleton,
    toolkit_parity: bool,
) -> Measured:
    if protocol == "pck":
        return protocols.pck_torso(pictures, predictions, skeleton, _training_pictures(name, folder))
    if protocol == "pckh":
        return protocols.pckh(pictures, predictions, skeleton)
    if protocol == "multi":
        denominator = "toolkit_parity" if toolkit_parity else "strict"
        return protocols.multi_person(pictures, predictions, skeleton, denominator=denominator)
    if protocol == "sticks":
        return protocols.stickmen(pictures, predictions, skeleton)
    return protocols.oks(pictures, predictions, skeleton, crowds=name == "crowdpose")


def _training_pictures(name: str, folder: str | Path) -> list[LabelledPicture]:
    """Those of the mean pose; none where the set was prepared without them."""
    if is_prepared(name, folder) and "train" not in finished_splits(prepared_folder(name, folder)):
        return []
    return read_data(name, folder, "train")
