"""What several commands share: options, what they stand for, and how results and complaints are told."""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rmpe_jax.errors import RmpeError


def number(kind: type[int] | type[float], low: int, high: int | None = None) -> Callable[[str], int | float]:
    """A parser of finite numbers from ``low`` to ``high``."""
    wanted = f"a {'whole ' if kind is int else ''}number from {low}" + ("" if high is None else f" to {high}")

    def parse(text: str) -> int | float:
        with contextlib.suppress(ValueError):
            if low <= kind(text) < math.inf and (high is None or kind(text) <= high):
                return kind(text)
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")

    return parse


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Where results are written besides the terminal; ``write_outputs`` does it."""
    parser.add_argument("--json", metavar="FILE", help="write it as JSON; - prints it as the last line")
    parser.add_argument("--markdown", metavar="FILE", help="write the table as Markdown")


def write_outputs(options: argparse.Namespace, content: object, markdown: str) -> None:
    """Writes what ``add_outputs`` asked for."""
    from rmpe_jax.files import replacing, write_json

    if options.markdown:
        with replacing(options.markdown) as temporary:
            temporary.write_text(markdown, encoding="utf-8")
    if options.json == "-":
        print(json.dumps(content, allow_nan=False))
    elif options.json:
        write_json(options.json, content)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """How many decode pictures."""
    parser.add_argument(
        "--workers",
        type=number(int, 1),
        default=2,
        metavar="N",
        help="how many decode at a time (default: %(default)s)",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Which network."""
    parser.add_argument("--weights", metavar="NAME|FILE", help="shipped weights by name, or a .safetensors file")


def weights_file(name: str) -> Path:
    """The path of weights that are to be written."""
    out = Path(name)
    if out.suffix != ".safetensors":
        raise RmpeError(f"--out {out}: expected a name that ends in .safetensors")
    return out


def add_detector(parser: argparse.ArgumentParser) -> None:
    """Which human detector; ``detector_of`` makes it."""
    group = parser.add_argument_group("the human detector")
    group.add_argument(
        "--detector",
        metavar="builtin|file:FILE|onnx:FILE|hf:NAME|hog",
        help="the shipped detector (default), or builtin:FILE for one that `rmpe train` made; boxes of a file of COCO "
        "results; an ONNX file; one of Hugging Face's transformers by name or folder; OpenCV's HOG",
    )
    group.add_argument(
        "--detector-layout",
        choices=("yolox", "yolo", "end2end", "detr", "boxes", "tensorflow"),
        help="outputs of the ONNX file (default: as its signature says)",
    )
    group.add_argument(
        "--detector-score", type=number(float, 0, 1), metavar="S", help="boxes of a lower score are left out"
    )
    group.add_argument("--person", type=number(int, 0), metavar="N", help="number of the detector's class person")


def detector_of(options: argparse.Namespace) -> Any:
    """The detector that is asked for; of file:FILE a ``BoxesFile``."""
    given = "builtin" if options.detector is None else options.detector
    kind, _, name = given.partition(":")
    settings: dict[str, Any] = {"person": options.person, "threshold": options.detector_score}
    settings = {key: value for key, value in settings.items() if value is not None}
    if given not in ("builtin", "hog") and not (name and kind in ("builtin", "file", "onnx", "hf")):
        wanted = "builtin, builtin:FILE, file:FILE, onnx:FILE, hf:NAME or hog"
        raise RmpeError(f"--detector: expected {wanted}, got {options.detector!r}")
    if options.detector_layout and kind != "onnx":
        raise RmpeError("--detector-layout is of onnx:FILE: here it has no use")
    if options.person is not None and kind not in ("onnx", "hf"):
        raise RmpeError(f"--person is of onnx:FILE and hf:NAME: with {kind} it has no use")
    if options.detector_score is not None and kind == "hog":
        raise RmpeError("--detector-score: with hog it has no use")
    if kind == "file":
        from rmpe_jax.predict.detectors import read_boxes

        return read_boxes(name, **settings)
    if kind == "onnx":
        from rmpe_jax.predict.onnx_detector import OnnxDetector

        return OnnxDetector(name, layout=options.detector_layout, **settings)
    if kind == "hf":
        from rmpe_jax.predict.transformers_detector import TransformersDetector

        return TransformersDetector(name, **settings)
    if kind == "hog":
        from rmpe_jax.predict.detectors import detect_with_hog

        return detect_with_hog
    from rmpe_jax.predict.person_detector import PersonDetector
    from rmpe_jax.pretrained import DEFAULT_DETECTOR

    return PersonDetector(name or DEFAULT_DETECTOR, **settings)


def take_file(options: argparse.Namespace, name: str) -> None:
    """Another option that names a file of boxes, as --detector."""
    given = getattr(options, name)
    if given and options.detector:
        raise RmpeError(f"--detector {options.detector}: with --{name} it has no use")
    if given:
        options.detector = f"file:{given}"


def boxes_file(options: argparse.Namespace) -> str | None:
    """The file that stands in for a detector."""
    kind, _, name = (options.detector or "").partition(":")
    return name or None if kind == "file" else None


def add_reading(parser: argparse.ArgumentParser) -> None:
    """How joints are read from heat maps."""
    parser.add_argument(
        "--decoder",
        choices=("quarter", "dark", "soft_argmax"),
        help="how joints are read from heat maps (default: as the weights say)",
    )
    parser.add_argument(
        "--scales",
        type=_scales,
        metavar="S,S,...",
        help="multi-scale test: average over crops with sides so many times as long, such as 0.9,1,1.1",
    )


def _scales(text: str) -> tuple[float, ...]:
    with contextlib.suppress(ValueError):
        scales = tuple(float(part) for part in text.split(","))
        if all(0.1 <= scale <= 10 for scale in scales):
            return scales
    raise argparse.ArgumentTypeError(f"expected numbers from 0.1 to 10 with commas, got {text}")


def add_nms(parser: argparse.ArgumentParser) -> None:
    """Which pose NMS."""
    parser.add_argument(
        "--nms",
        metavar="NAME|FILE",
        help="pose NMS: none, default, released, paper, alphapose, or a file of `rmpe fit-nms`",
    )


def estimator_of(options: argparse.Namespace, **settings):
    """The estimator that weights, detector, reading and NMS make up."""
    from rmpe_jax.predict.estimator import load
    from rmpe_jax.pretrained import DEFAULT, load_nms

    if options.nms is not None:
        settings["nms"] = load_nms(options.nms)
    if options.scales is not None:
        settings["scales"] = options.scales
    if boxes_file(options) is None:
        settings["detector"] = detector_of(options)
    return load(options.weights or DEFAULT, flip_test=not options.no_flip, decoder=options.decoder, **settings)


def complain(line: str) -> None:
    """Says something that is wrong, or of no use, and goes on."""
    print(f"rmpe: {line}", file=sys.stderr)
