"""``rmpe predict``."""

import argparse
from pathlib import Path
from typing import Any

from rmpe_jax.cli.options import (
    add_detector,
    add_nms,
    add_reading,
    add_weights,
    boxes_file,
    complain,
    detector_of,
    estimator_of,
    number,
    take_file,
)


def add_predict(commands: Any) -> None:
    """Adds the command ``predict``."""
    predict = commands.add_parser("predict", help="poses of the people in pictures")
    predict.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files")
    predict.add_argument("--out", default="poses", metavar="DIR", help="where results go (default: %(default)s)")
    predict.add_argument("--boxes", metavar="FILE", help="the same as --detector file:FILE")
    add_detector(predict)
    predict.add_argument(
        "--min-score",
        type=number(float, 0, 1),
        metavar="S",
        help="poses are left out whose score times their box's is lower (default: in the boxes of builtin and hog what "
        "suits the shipped weights, else 0)",
    )
    predict.add_argument("--no-flip", action="store_true", help="no mirrored second pass: twice as fast")
    add_reading(predict)
    add_nms(predict)
    add_weights(predict)
    predict.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from rmpe_jax.predict.media import predict_pictures

    take_file(options, "boxes")
    boxes = detector_of(options) if boxes_file(options) else None
    estimator = estimator_of(options, smallest_score=options.min_score)
    pictures = [Path(name) for name in options.pictures]
    report = predict_pictures(estimator, pictures, Path(options.out), boxes=boxes, tell=complain)
    print(f"{report.poses} poses in {report.pictures} of {len(options.pictures)} pictures: {report.json_path}")
    return 1 if report.problems else 0
