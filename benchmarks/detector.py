"""How long the built-in person detector takes, beside OpenCV's HOG, and its share of the way from picture to poses.

.venv/bin/python benchmarks/detector.py [--quick] [--json -|FILE]

A picture of 640 x 480 pixels with three drawn people, one after the other in each round: the built-in detector, HOG,
the poses of three people in boxes that are given (the shipped estimator, with the flip test), and the whole way with
all boxes of the built-in detector. Milliseconds by the clock and of CPU, medians; the first calls, which compile, do
not count. Measured: README.md in this folder.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import command
import cv2
import jax
import numpy as np

import rmpe_jax
from rmpe_jax.data.synthetic import read_synthetic
from rmpe_jax.predict.detectors import detect_with_hog
from rmpe_jax.predict.person_detector import PersonDetector

BOXES = np.array([[40, 60, 200, 420], [220, 40, 400, 440], [420, 80, 600, 430]], np.float32)


def group_picture() -> np.ndarray:
    """Three drawn people side by side, 640 x 480 pixels."""
    people = read_synthetic("val")[:3]
    parts = [cv2.resize(record.picture.read(), (640 // 3 + 1, 480)) for record in people]
    return np.ascontiguousarray(np.concatenate(parts, 1)[:, :640])


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds by the clock and of CPU that a call takes."""
    clock, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return 1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - cpu)


def measure(rounds: int) -> dict[str, Any]:
    """All figures."""
    image, detector = group_picture(), PersonDetector()
    estimator = rmpe_jax.load(detector=detector)
    ways: dict[str, Callable[[], Any]] = {
        "builtin": lambda: detector(image),
        "hog": lambda: detect_with_hog(image),
        "poses": lambda: estimator(image, BOXES),
        "pipeline": lambda: estimator(image),
    }
    for run in ways.values():
        jax.block_until_ready(run())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            times[name].append(timed(run))
    figures: dict[str, Any] = {"backend": jax.default_backend(), "jax": jax.__version__, "rounds": rounds}
    for name, taken in times.items():
        for kind, values in zip(("ms", "cpu_ms"), zip(*taken, strict=True), strict=True):
            figures[f"{name}_{kind}"] = round(statistics.median(values), 1)
    figures["ratio_hog"] = round(figures["hog_cpu_ms"] / figures["builtin_cpu_ms"], 2)
    figures["boxes"] = len(detector(image).valid)
    figures["share_of_pipeline"] = round(figures["builtin_ms"] / figures["pipeline_ms"], 3)
    return figures


def main() -> None:
    """Reads the command line, measures and reports."""
    options = command.parser("Times the person detector.", quick="five rounds instead of thirty").parse_args()
    figures = measure(5 if options.quick else 30)
    command.report(figures, options.json)


if __name__ == "__main__":
    main()
