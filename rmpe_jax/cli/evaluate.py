"""``rmpe evaluate``, ``compare`` and ``calibrate``."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rmpe_jax.cli.options import (
    add_detector,
    add_nms,
    add_outputs,
    add_reading,
    add_weights,
    boxes_file,
    complain,
    detector_of,
    estimator_of,
    number,
    weights_file,
    write_outputs,
)
from rmpe_jax.errors import RmpeError


def add_evaluate(commands: Any) -> None:
    """Adds the command ``evaluate``."""
    evaluate = commands.add_parser("evaluate", help="measure weights, or predictions, on a data set")
    evaluate.add_argument(
        "name", metavar="NAME", help="a data set, see `rmpe data list`; or the word detector, to measure people's boxes"
    )
    evaluate.add_argument("--data", default=".", metavar="DIR", help="official files, or where the prepared set is")
    evaluate.add_argument("--split", metavar="NAME", help="another than the one that is usually measured")
    evaluate.add_argument(
        "--dataset", metavar="NAME", help="of detector: on whose pictures, coco (default), crowdpose or synthetic"
    )
    evaluate.add_argument("--protocol", metavar="NAME", help="mpii: pckh or multi; waf: multi or sticks")
    evaluate.add_argument(
        "--boxes", metavar="gt|detector|FILE", help="people's boxes (default: gt; multi and sticks: detector)"
    )
    add_detector(evaluate)
    evaluate.add_argument("--predictions", metavar="FILE", help="measure these poses instead of a network's")
    evaluate.add_argument("--save-predictions", metavar="FILE", help="write the poses, to be measured again")
    evaluate.add_argument("--limit", type=number(int, 1), metavar="N", help="only the first N pictures")
    evaluate.add_argument(
        "--toolkit-parity", action="store_true", help="multi-person AP: count recall as MPII's toolkit does"
    )
    evaluate.add_argument(
        "--replicates",
        type=number(int, 0),
        default=1000,
        metavar="N",
        help="of the bootstrap; 0 for no intervals (default: %(default)s)",
    )
    evaluate.add_argument("--no-flip", action="store_true", help="no mirrored second pass")
    add_reading(evaluate)
    add_nms(evaluate)
    add_outputs(evaluate)
    add_weights(evaluate)
    evaluate.set_defaults(run=_evaluate)


def add_compare(commands: Any) -> None:
    """Adds the command ``compare``."""
    compare = commands.add_parser("compare", help="the difference of two results, with its interval")
    compare.add_argument("first", metavar="A.json", help="written by rmpe evaluate --json")
    compare.add_argument("second", metavar="B.json", help="measured on the same pictures")
    add_outputs(compare)
    compare.set_defaults(run=_compare)


def add_calibrate(commands: Any) -> None:
    """Adds the command ``calibrate``."""
    calibrate = commands.add_parser("calibrate", help="make an hourglass's scores probabilities, from labelled people")
    calibrate.add_argument("dataset", metavar="NAME", help="a data set; see `rmpe data list`")
    calibrate.add_argument("--data", default=".", metavar="DIR", help="official files, or where the prepared set is")
    calibrate.add_argument("--split", default="val", metavar="NAME", help="whose people (default: %(default)s)")
    calibrate.add_argument("--out", required=True, metavar="FILE", help="the weights with their calibration")
    calibrate.add_argument("--no-flip", action="store_true", help="for use without the mirrored second pass")
    calibrate.add_argument("--limit", type=number(int, 1), metavar="N", help="only the first N pictures")
    add_weights(calibrate)
    calibrate.set_defaults(run=_calibrate)


def _evaluate(options: argparse.Namespace) -> int:
    if options.name == "detector":
        return _evaluate_detector(options)
    from rmpe_jax.evaluate.results import as_markdown, as_text
    from rmpe_jax.evaluate.run import evaluate_dataset

    if options.dataset:
        raise RmpeError(f"--dataset is of `rmpe evaluate detector`: with {options.name} it has no use")
    how = ("boxes", "detector", "weights", "no_flip", "decoder", "scales", "nms")
    if options.predictions and any(getattr(options, name) for name in how):
        given = ", ".join(f"--{name.replace('_', '-')}" for name in how)
        raise RmpeError(f"--predictions is measured as it is: {given} have no use")
    boxes = options.boxes
    if boxes_file(options):
        if boxes:
            raise RmpeError(f"--boxes {boxes}: with --detector {options.detector} it has no use")
        boxes = detector_of(options)
    result = evaluate_dataset(
        options.name,
        options.predictions or estimator_of(options),
        options.data,
        split=options.split,
        protocol=options.protocol,
        boxes=boxes,
        limit=options.limit,
        toolkit_parity=options.toolkit_parity,
        replicates=options.replicates,
        save_predictions=options.save_predictions,
        report=complain,
    )
    print(as_text(result))
    if options.nms and result["boxes"] in ("gt", "position"):
        complain("--nms had no use: everybody was predicted in their own box, and nobody removed")
    if options.detector and result["boxes"] in ("gt", "position"):
        complain("--detector had no use: say --boxes detector to measure with its boxes")
    write_outputs(options, result, as_markdown(result))
    return 1 if result["unreadable"] else 0


def _evaluate_detector(options: argparse.Namespace) -> int:
    from rmpe_jax.evaluate.detections import evaluate_detector
    from rmpe_jax.evaluate.results import as_markdown, as_text

    of_poses = ("protocol", "boxes", "predictions", "save_predictions", "toolkit_parity")
    of_poses = (*of_poses, "weights", "nms", "no_flip", "decoder", "scales")
    given = [f"--{name.replace('_', '-')}" for name in of_poses if getattr(options, name)]
    if given:
        use = "have no use" if len(given) > 1 else "has no use"
        raise RmpeError(f"a detector is measured by its boxes, not by poses: {', '.join(given)} {use}")
    kind, _, name = (options.detector or "builtin").partition(":")
    # A file without its folder.
    name = f"{kind}:{Path(name).name}" if name and kind != "hf" else options.detector or kind
    if options.detector_score is None and kind in ("builtin", "onnx", "hf"):
        options.detector_score = 0.0  # AP wants every box; how many a threshold leaves is told beside it
    result = evaluate_detector(
        options.dataset or "coco",
        detector_of(options),
        options.data,
        name=name,
        split=options.split,
        limit=options.limit,
        replicates=options.replicates,
        report=complain,
    )
    print(as_text(result))
    write_outputs(options, result, as_markdown(result))
    return 1 if result["unreadable"] else 0


def _compare(options: argparse.Namespace) -> int:
    from rmpe_jax.evaluate.results import compare, comparison_table, read_result

    first, second = read_result(options.first), read_result(options.second)
    found = compare(first, second)
    print(f"{options.first} against {options.second}: {first['dataset']}, {first['split']}, {first['protocol']}")
    print(comparison_table(found))
    content = [dataclasses.asdict(entry) for entry in found]
    write_outputs(options, content, comparison_table(found, markdown=True))
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from rmpe_jax.data.sets import data_set, read_data
    from rmpe_jax.evaluate.calibrate import calibrate
    from rmpe_jax.evaluate.run import TESTED
    from rmpe_jax.files import check_writable
    from rmpe_jax.pretrained import DEFAULT, load_weights, save_weights

    if (options.dataset, options.split) in TESTED:
        raise RmpeError(f"--split {options.split}: results of {options.dataset} are reported on it; choose another")
    out = weights_file(options.out)
    check_writable(out)
    weights = load_weights(options.weights or DEFAULT)
    pictures = read_data(options.dataset, options.data, options.split)[: options.limit]
    skeleton = data_set(options.dataset).skeleton
    weights, found = calibrate(weights, pictures, skeleton, flip_test=not options.no_flip)
    save_weights(out, weights)
    print(f"{found.joints} joints: log odds times {found.slope:.3f}, plus {found.shift:.3f}")
    print(f"scores were off by {found.error_before:.1%} on average; {found.error_after:.1%} where the fit did not look")
    print(f"weights: {out}")
    return 0
