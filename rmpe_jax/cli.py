"""The ``rmpe`` command: predict, train, evaluate. Thin: it parses, calls the library, and reports.

Exit status: 0 all done, 1 something failed (what could be done was done and written), 2 wrong usage.
"""

import argparse
import contextlib
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import rmpe_jax
from rmpe_jax.errors import RmpeError

# The HOG detector's false alarms mostly get poses below this, its people above (COCO train2017; see the model card).
_DETECTED_SCORE = 0.68


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("rmpe: interrupted", file=sys.stderr)
        return 130
    except (RmpeError, OSError) as error:
        print(f"rmpe: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rmpe", description="Regional multi-person pose estimation in JAX.")
    parser.add_argument("--version", action="version", version=f"rmpe_jax {rmpe_jax.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    predict = commands.add_parser("predict", help="poses of the people in pictures")
    predict.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files")
    predict.add_argument("--out", default="poses", metavar="DIR", help="where results go (default: %(default)s)")
    predict.add_argument("--boxes", metavar="FILE", help="people's boxes as COCO results; default: the HOG detector")
    predict.add_argument(
        "--min-score",
        type=_share,
        metavar="S",
        help=f"poses below this mean joint confidence are left out (default: 0 with --boxes, else {_DETECTED_SCORE})",
    )
    predict.add_argument("--no-flip", action="store_true", help="no mirrored second pass: twice as fast")
    _add_weights(predict)
    predict.set_defaults(run=_predict)

    train = commands.add_parser("train", help="train a network from an experiment file")
    train.add_argument("experiment", metavar="EXPERIMENT.py", help="a Python file that defines `experiment`; it is run")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="assignments",
        help="change a setting, such as model.stacks=4; may be repeated",
    )
    train.add_argument(
        "--out", metavar="DIR", help="checkpoints, log and weights (default: runs/NAME); an interrupted run goes on"
    )
    train.add_argument(
        "--workers", type=_count, default=2, metavar="N", help="threads that decode pictures (default: %(default)s)"
    )
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="measure weights on a data set")
    evaluate.add_argument("dataset", choices=("lspet", "coco"))
    evaluate.add_argument("--data", required=True, metavar="DIR", help="folder of the data set")
    evaluate.add_argument("--split", metavar="NAME", help="of COCO (default: val2017)")
    evaluate.add_argument("--boxes", metavar="gt|detector|FILE", help="people's boxes on COCO (default: gt)")
    evaluate.add_argument("--limit", type=_count, metavar="N", help="only the first N people or pictures")
    evaluate.add_argument("--json", metavar="FILE", help="write the result as JSON; - prints it as the last line")
    evaluate.add_argument("--no-flip", action="store_true", help="no mirrored second pass")
    _add_weights(evaluate)
    evaluate.set_defaults(run=_evaluate)
    return parser


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")


def _count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="NAME|FILE", help="shipped weights by name, or a .safetensors file")


def _estimator(options: argparse.Namespace, **settings):
    from rmpe_jax.predict.estimator import load
    from rmpe_jax.pretrained import DEFAULT

    return load(options.weights or DEFAULT, flip_test=not options.no_flip, **settings)


def _predict(options: argparse.Namespace) -> int:
    from rmpe_jax.predict.detectors import read_boxes
    from rmpe_jax.predict.media import predict_pictures

    boxes = read_boxes(options.boxes) if options.boxes else None
    default = 0.0 if boxes else _DETECTED_SCORE
    smallest = default if options.min_score is None else options.min_score
    estimator = _estimator(options, smallest_score=smallest)
    pictures = [Path(name) for name in options.pictures]
    report = predict_pictures(estimator, pictures, Path(options.out), boxes=boxes, tell=_complain)
    print(f"{report.poses} poses in {report.pictures} of {len(options.pictures)} pictures: {report.json_path}")
    return 1 if report.problems else 0


def _complain(line: str) -> None:
    print(f"rmpe: {line}", file=sys.stderr)


def _train(options: argparse.Namespace) -> int:
    from rmpe_jax.config import Experiment, override
    from rmpe_jax.data.people import DataError
    from rmpe_jax.train.loop import train

    path = Path(options.experiment)
    if not path.is_file():
        raise DataError(f"{path}: no such experiment file")
    experiment = runpy.run_path(str(path)).get("experiment")
    if not isinstance(experiment, Experiment):
        raise DataError(f"{path}: defines no `experiment` of type rmpe_jax.config.Experiment")
    experiment = override(experiment, options.assignments)
    weights = train(experiment, options.out or Path("runs") / experiment.name, workers=options.workers)
    print(f"weights: {weights}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from rmpe_jax.evaluate import evaluate_coco, evaluate_lspet, table
    from rmpe_jax.predict.formats import write_json

    if options.dataset == "lspet" and (options.split or options.boxes):
        raise RmpeError("evaluate lspet takes no --split and no --boxes: one split, each person in their own box")
    estimator = _estimator(options)
    if options.dataset == "lspet":
        result = evaluate_lspet(estimator, options.data, limit=options.limit)
    else:
        result = evaluate_coco(
            estimator, options.data, options.split or "val2017", boxes=options.boxes or "gt", limit=options.limit
        )
    print(table(result))
    if options.json == "-":
        print(json.dumps(result))
    elif options.json:
        write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
