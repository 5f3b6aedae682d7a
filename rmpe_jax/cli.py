"""The ``rmpe`` command: predict, train, evaluate, compare, calibrate, fit-*, import-weights, export, data.

Thin: it parses, calls the library, and reports.

Exit status: 0 all done, 1 something failed (what could be done was done and written), 2 wrong usage.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import platform
import runpy
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rmpe_jax
from rmpe_jax.errors import RmpeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    _keep_compiled()
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("rmpe: interrupted", file=sys.stderr)
        return 130
    except (RmpeError, OSError) as error:
        print(f"rmpe: {error}", file=sys.stderr)
        return 1
    except (AssertionError, RuntimeError):
        problem = _device_problem()
        if problem is None:
            raise
        print(f"rmpe: {problem}", file=sys.stderr)
        return 1


def _device_problem() -> str | None:
    """Why JAX has no device, if that is so: JAX says it with an AssertionError or a RuntimeError (jax 0.10)."""
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        wanted = f" of JAX_PLATFORMS={asked}" if asked else ""
        return f"JAX finds no device{wanted} here" + (f": {str(error).splitlines()[0]}" if str(error) else "")
    return None


def _keep_compiled() -> None:
    """Programs compiled once are found again by later commands, in JAX_COMPILATION_CACHE_DIR; read by JAX's import."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return  # somebody without a home keeps nothing
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(caches / "rmpe_jax" / f"compiled-{_machine()}"))


def _machine() -> str:
    """Tells processors apart: on a CPU, what was compiled for one may not run on another that shares the folder."""
    with contextlib.suppress(OSError):
        flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Feat"))]
        return f"{platform.machine()}-{zlib.crc32(''.join(flags[:1]).encode()):08x}"
    return platform.machine()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rmpe", description="Regional multi-person pose estimation in JAX.")
    parser.add_argument("--version", action="version", version=f"rmpe_jax {rmpe_jax.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_predict(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_calibrate(commands)
    _add_fit_nms(commands)
    _add_fit_proposals(commands)
    _add_import(commands)
    _add_export(commands)
    _add_data(commands)
    return parser


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser("predict", help="poses of the people in pictures")
    predict.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files")
    predict.add_argument("--out", default="poses", metavar="DIR", help="where results go (default: %(default)s)")
    predict.add_argument("--boxes", metavar="FILE", help="the same as --detector file:FILE")
    _add_detector(predict)
    predict.add_argument(
        "--min-score",
        type=_number(float, 0, 1),
        metavar="S",
        help="poses are left out whose score times their box's is lower (default: in the boxes of builtin and hog what "
        "suits the shipped weights, else 0)",
    )
    predict.add_argument("--no-flip", action="store_true", help="no mirrored second pass: twice as fast")
    _add_reading(predict)
    _add_nms(predict)
    _add_weights(predict)
    predict.set_defaults(run=_predict)


def _add_train(commands: Any) -> None:
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
    _add_workers(train)
    train.add_argument("--processes", action="store_true", help="decode in processes instead of threads")
    train.add_argument(
        "--memory",
        type=_number(float, 0),
        default=8.0,
        metavar="GB",
        help="cut-out people that are kept in memory; the others are read again each time (default: %(default)s)",
    )
    train.add_argument(
        "--on-device", action="store_true", help="keep all cut-out people in the devices' memory; the same batches"
    )
    train.add_argument(
        "--mapping",
        choices=("pmap", "sharded"),
        default="pmap",
        help="the step over devices by pmap, or by jit over a mesh (default: %(default)s)",
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="compile one step, print what it takes and how fast it is, and stop; --out, --processes, --memory and "
        "--on-device have no use then",
    )
    several = train.add_argument_group("several processes, on one machine or many")
    several.add_argument(
        "--distributed",
        action="store_true",
        help="train together with the other processes; SLURM, Open MPI, GKE and TPU pods are found by JAX",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 is to be reached")
    several.add_argument("--process-count", type=_number(int, 1), metavar="N", help="how many there are")
    several.add_argument("--process", type=_number(int, 0), metavar="I", help="the number of this one, from 0")
    several.add_argument(
        "--peer-timeout",
        type=_number(float, 1),
        default=100.0,
        metavar="S",
        help="seconds to wait for the others, and for a sign of life of them later (default: %(default)g)",
    )
    train.set_defaults(run=_train)


def _add_evaluate(commands: Any) -> None:
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
    _add_detector(evaluate)
    evaluate.add_argument("--predictions", metavar="FILE", help="measure these poses instead of a network's")
    evaluate.add_argument("--save-predictions", metavar="FILE", help="write the poses, to be measured again")
    evaluate.add_argument("--limit", type=_number(int, 1), metavar="N", help="only the first N pictures")
    evaluate.add_argument(
        "--toolkit-parity", action="store_true", help="multi-person AP: count recall as MPII's toolkit does"
    )
    evaluate.add_argument(
        "--replicates",
        type=_number(int, 0),
        default=1000,
        metavar="N",
        help="of the bootstrap; 0 for no intervals (default: %(default)s)",
    )
    evaluate.add_argument("--no-flip", action="store_true", help="no mirrored second pass")
    _add_reading(evaluate)
    _add_nms(evaluate)
    _add_outputs(evaluate)
    _add_weights(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser("compare", help="the difference of two results, with its interval")
    compare.add_argument("first", metavar="A.json", help="written by rmpe evaluate --json")
    compare.add_argument("second", metavar="B.json", help="measured on the same pictures")
    _add_outputs(compare)
    compare.set_defaults(run=_compare)


def _add_calibrate(commands: Any) -> None:
    calibrate = commands.add_parser("calibrate", help="make an hourglass's scores probabilities, from labelled people")
    calibrate.add_argument("dataset", metavar="NAME", help="a data set; see `rmpe data list`")
    calibrate.add_argument("--data", default=".", metavar="DIR", help="official files, or where the prepared set is")
    calibrate.add_argument("--split", default="val", metavar="NAME", help="whose people (default: %(default)s)")
    calibrate.add_argument("--out", required=True, metavar="FILE", help="the weights with their calibration")
    calibrate.add_argument("--no-flip", action="store_true", help="for use without the mirrored second pass")
    calibrate.add_argument("--limit", type=_number(int, 1), metavar="N", help="only the first N pictures")
    _add_weights(calibrate)
    calibrate.set_defaults(run=_calibrate)


def _add_fit_nms(commands: Any) -> None:
    fit = commands.add_parser("fit-nms", help="learn the parameters of the pose NMS")
    fit.add_argument(
        "--detections", required=True, metavar="FILE", help="poses of several detections of everybody, before any NMS"
    )
    fit.add_argument("--annotations", metavar="FILE", help="labels: an annotation file of COCO or CrowdPose")
    fit.add_argument("--dataset", metavar="NAME", help="labels: a data set instead; see `rmpe data list`")
    fit.add_argument("--data", default=".", metavar="DIR", help="of --dataset: official files, or where it is prepared")
    fit.add_argument("--split", metavar="NAME", help="of --dataset (default: its training split)")
    fit.add_argument(
        "--out", default="nms.json", metavar="FILE", help="for `rmpe predict --nms` (default: %(default)s)"
    )
    fit.add_argument("--sheet", metavar="FILE", help="AP over every two parameters (default: --out with .png)")
    fit.add_argument(
        "--preset",
        default="default",
        metavar="NAME",
        help="definitions, and where to start (default: %(default)s)",
    )
    fit.add_argument(
        "--grid",
        type=_number(int, 2, 64),
        default=16,
        metavar="N",
        help="values of each of the four parameters; all N^4 settings are tried (default: %(default)s)",
    )
    fit.add_argument(
        "--folds",
        type=_number(int, 0),
        default=5,
        metavar="N",
        help="of the pictures, to tell the gain on those not searched on; 0 for none (default: %(default)s)",
    )
    fit.add_argument(
        "--seed", type=_number(int, 0, 2**32 - 1), default=0, metavar="N", help="of folds, starts and bootstrap"
    )
    fit.set_defaults(run=_fit_nms)


def _add_fit_proposals(commands: Any) -> None:
    fit = commands.add_parser(
        "fit-proposals", help="learn the boxes that a detector gives people, by their pose (PGPG, DPG)"
    )
    fit.add_argument("--data", required=True, metavar="DIR", help="official files, or where the prepared set is")
    fit.add_argument("--dataset", default="coco", metavar="NAME", help="see `rmpe data list` (default: %(default)s)")
    fit.add_argument("--split", metavar="NAME", help="which (default: its training split)")
    fit.add_argument("--detections", metavar="FILE", help="the same as --detector file:FILE")
    _add_detector(fit)
    fit.add_argument("--poses", metavar="FILE.npz", help="poses to cluster instead of the set's: keypoints (n, k, 3)")
    fit.add_argument(
        "--atoms", type=_number(int, 1), default=24, metavar="N", help="atomic poses (default: %(default)s)"
    )
    fit.add_argument(
        "--out", default="proposals.npz", metavar="FILE", help="for augment.proposals (default: %(default)s)"
    )
    fit.add_argument(
        "--kind",
        choices=("both", "pgpg", "dpg"),
        default="both",
        help="what to fit; of both, DPG goes to a file whose name ends in -dpg.npz (default: %(default)s)",
    )
    fit.add_argument(
        "--steps", type=_number(int, 1), default=2000, metavar="N", help="of DPG's training (default: %(default)s)"
    )
    fit.add_argument("--sheet", metavar="FILE", help="poses, boxes and their offsets (default: --out with .png)")
    fit.add_argument(
        "--seed", type=_number(int, 0, 2**32 - 1), default=0, metavar="N", help="of fitting, and of who is set aside"
    )
    fit.set_defaults(run=_fit_proposals)


def _add_import(commands: Any) -> None:
    imported = commands.add_parser("import-weights", help="a network of PyTorch as weights of this package")
    imported.add_argument("file", metavar="FILE", help=".pth, .pt, .pth.tar or .safetensors; PyTorch is not needed")
    imported.add_argument(
        "--layout",
        required=True,
        choices=("bearpaw", "anibali", "princeton", "resnet18"),
        help="whose hourglass, or resnet18: torchvision's, as the STN's localization network",
    )
    imported.add_argument("--sppe", metavar="NAME|FILE", help="for resnet18: weights of the hourglass behind it")
    imported.add_argument("--out", metavar="FILE", help="(default: FILE's name with .safetensors, here)")
    imported.add_argument("--skeleton", metavar="NAME", help="the joints of an hourglass's maps (default: mpii_16)")
    imported.add_argument(
        "--new-head", action="store_true", help="leave out the layers of the maps, to train others for --skeleton"
    )
    imported.set_defaults(run=_import_weights)


def _add_export(commands: Any) -> None:
    export = commands.add_parser("export", help="weights as one file for JAX (StableHLO) or everything else (ONNX)")
    export.add_argument("--format", required=True, choices=("stablehlo", "onnx"), help="of the file")
    export.add_argument("--out", metavar="FILE", help="(default: NAME-PROGRAM.stablehlo.zip or .onnx, here)")
    export.add_argument(
        "--program",
        choices=("poses", "sppe"),
        default="poses",
        help="picture and boxes to poses, or crops to heat maps (default: %(default)s)",
    )
    export.add_argument(
        "--picture-size", type=_size, metavar="H,W", help="of the pictures that poses takes (default: 640,640)"
    )
    export.add_argument("--picture-dtype", choices=("uint8", "float32"), help="of these pictures (default: uint8)")
    export.add_argument("--batch", type=_number(int, 1), metavar="N", help="people in a call (default: any number)")
    export.add_argument("--flip", action="store_true", help="average with the mirrored crop: twice the work")
    _add_weights(export)
    export.set_defaults(run=_export)


def _size(text: str) -> tuple[int, int]:
    """Height and width, with a comma."""
    with contextlib.suppress(ValueError):
        height, width = (int(side) for side in text.split(","))
        return height, width
    raise argparse.ArgumentTypeError(f"expected height,width such as 480,640, got {text}")


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="prepare data sets, and look at them")
    verbs = data.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="the data sets, and which official files each is read from")
    listing.set_defaults(run=_data_list)
    prepare = verbs.add_parser("prepare", help="write a data set as array_record files, and check them")
    prepare.add_argument("name", metavar="NAME", help="a data set; see `rmpe data list`")
    prepare.add_argument("--from", dest="source", metavar="DIR", help="folder of the official files")
    prepare.add_argument(
        "--to",
        dest="target",
        default="datasets",
        metavar="DIR",
        help="where prepared sets are kept (default: %(default)s)",
    )
    prepare.add_argument(
        "--split", action="append", default=[], metavar="NAME", dest="splits", help="only this split; may be repeated"
    )
    _add_workers(prepare)
    prepare.set_defaults(run=_data_prepare)
    show = verbs.add_parser("show", help="draw samples with their labels on one sheet")
    show.add_argument("name", metavar="NAME", help="a data set; see `rmpe data list`")
    show.add_argument("--data", default=".", metavar="DIR", help="official files, or where the prepared set is")
    show.add_argument("--split", metavar="NAME", help="which (default: the first that is there)")
    show.add_argument("--count", type=_number(int, 1), default=12, metavar="N", help="pictures (default: %(default)s)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice (default: %(default)s)")
    show.add_argument("--out", default="sheet.png", metavar="FILE", help="the sheet (default: %(default)s)")
    show.set_defaults(run=_data_show)


def _number(kind: type[int] | type[float], low: int, high: int | None = None) -> Callable[[str], int | float]:
    """A parser of finite numbers from ``low`` to ``high``."""
    wanted = f"a {'whole ' if kind is int else ''}number from {low}" + ("" if high is None else f" to {high}")

    def parse(text: str) -> int | float:
        with contextlib.suppress(ValueError):
            if low <= kind(text) < math.inf and (high is None or kind(text) <= high):
                return kind(text)
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")

    return parse


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write it as JSON; - prints it as the last line")
    parser.add_argument("--markdown", metavar="FILE", help="write the table as Markdown")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_number(int, 1),
        default=2,
        metavar="N",
        help="how many decode at a time (default: %(default)s)",
    )


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="NAME|FILE", help="shipped weights by name, or a .safetensors file")


def _add_detector(parser: argparse.ArgumentParser) -> None:
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
        "--detector-score", type=_number(float, 0, 1), metavar="S", help="boxes of a lower score are left out"
    )
    group.add_argument("--person", type=_number(int, 0), metavar="N", help="number of the detector's class person")


def _detector(options: argparse.Namespace) -> Any:
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


def _take_file(options: argparse.Namespace, name: str) -> None:
    """Another option that names a file of boxes, as --detector."""
    given = getattr(options, name)
    if given and options.detector:
        raise RmpeError(f"--detector {options.detector}: with --{name} it has no use")
    if given:
        options.detector = f"file:{given}"


def _boxes_file(options: argparse.Namespace) -> str | None:
    """The file that stands in for a detector."""
    kind, _, name = (options.detector or "").partition(":")
    return name or None if kind == "file" else None


def _add_reading(parser: argparse.ArgumentParser) -> None:
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


def _add_nms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nms",
        metavar="NAME|FILE",
        help="pose NMS: none, default, released, paper, alphapose, or a file of `rmpe fit-nms`",
    )


def _estimator(options: argparse.Namespace, **settings):
    from rmpe_jax.predict.estimator import load
    from rmpe_jax.pretrained import DEFAULT, load_nms

    if options.nms is not None:
        settings["nms"] = load_nms(options.nms)
    if options.scales is not None:
        settings["scales"] = options.scales
    if _boxes_file(options) is None:
        settings["detector"] = _detector(options)
    return load(options.weights or DEFAULT, flip_test=not options.no_flip, decoder=options.decoder, **settings)


def _predict(options: argparse.Namespace) -> int:
    from rmpe_jax.predict.media import predict_pictures

    _take_file(options, "boxes")
    boxes = _detector(options) if _boxes_file(options) else None
    estimator = _estimator(options, smallest_score=options.min_score)
    pictures = [Path(name) for name in options.pictures]
    report = predict_pictures(estimator, pictures, Path(options.out), boxes=boxes, tell=_complain)
    print(f"{report.poses} poses in {report.pictures} of {len(options.pictures)} pictures: {report.json_path}")
    return 1 if report.problems else 0


def _complain(line: str) -> None:
    print(f"rmpe: {line}", file=sys.stderr)


def _train(options: argparse.Namespace) -> int:
    from rmpe_jax.train.distributed import is_main, join

    where = (options.coordinator, options.process_count, options.process)
    if options.distributed:
        join(*where, timeout=options.peer_timeout)
    elif where != (None, None, None):
        raise RmpeError("--coordinator, --process-count and --process are for --distributed")
    # What follows makes arrays, which only a process that has joined may do.
    from rmpe_jax.train.dry_run import dry_run
    from rmpe_jax.train.loop import train

    experiment = _experiment(Path(options.experiment), options.assignments)
    if options.dry_run:
        found = dry_run(experiment, workers=options.workers, mapping=options.mapping, report=_complain)
        if is_main():
            print(found.as_text())
        return 0
    weights = train(
        experiment,
        options.out or Path("runs") / experiment.name,
        workers=options.workers,
        processes=options.processes,
        memory=options.memory,
        on_device=options.on_device,
        mapping=options.mapping,
    )
    if is_main():
        print(f"weights: {weights}")
    return 0


def _experiment(path: Path, assignments: Sequence[str]) -> Any:
    """What a file defines as ``experiment``, with settings changed."""
    from rmpe_jax.config import Experiment, override
    from rmpe_jax.data.files import DataError

    if not path.is_file():
        raise DataError(f"{path}: no such experiment file")
    experiment = runpy.run_path(str(path)).get("experiment")
    if not isinstance(experiment, Experiment):
        raise DataError(f"{path}: defines no `experiment` of type rmpe_jax.config.Experiment")
    return override(experiment, assignments)


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
    if _boxes_file(options):
        if boxes:
            raise RmpeError(f"--boxes {boxes}: with --detector {options.detector} it has no use")
        boxes = _detector(options)
    result = evaluate_dataset(
        options.name,
        options.predictions or _estimator(options),
        options.data,
        split=options.split,
        protocol=options.protocol,
        boxes=boxes,
        limit=options.limit,
        toolkit_parity=options.toolkit_parity,
        replicates=options.replicates,
        save_predictions=options.save_predictions,
        report=_complain,
    )
    print(as_text(result))
    if options.nms and result["boxes"] in ("gt", "position"):
        _complain("--nms had no use: everybody was predicted in their own box, and nobody removed")
    if options.detector and result["boxes"] in ("gt", "position"):
        _complain("--detector had no use: say --boxes detector to measure with its boxes")
    _write_outputs(options, result, as_markdown(result))
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
        _detector(options),
        options.data,
        name=name,
        split=options.split,
        limit=options.limit,
        replicates=options.replicates,
        report=_complain,
    )
    print(as_text(result))
    _write_outputs(options, result, as_markdown(result))
    return 1 if result["unreadable"] else 0


def _write_outputs(options: argparse.Namespace, content: object, markdown: str) -> None:
    from rmpe_jax.files import replacing, write_json

    if options.markdown:
        with replacing(options.markdown) as temporary:
            temporary.write_text(markdown, encoding="utf-8")
    if options.json == "-":
        print(json.dumps(content, allow_nan=False))
    elif options.json:
        write_json(options.json, content)


def _compare(options: argparse.Namespace) -> int:
    from rmpe_jax.evaluate.results import compare, comparison_table, read_result

    first, second = read_result(options.first), read_result(options.second)
    found = compare(first, second)
    print(f"{options.first} against {options.second}: {first['dataset']}, {first['split']}, {first['protocol']}")
    print(comparison_table(found))
    content = [dataclasses.asdict(entry) for entry in found]
    _write_outputs(options, content, comparison_table(found, markdown=True))
    return 0


def _fit_nms(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from rmpe_jax.data.images import write_image
    from rmpe_jax.evaluate.fit_nms import as_text, fit_nms, read_labelled
    from rmpe_jax.evaluate.fit_sheet import draw_fit
    from rmpe_jax.files import check_writable
    from rmpe_jax.nms.pose import PRESETS

    if options.preset not in PRESETS:
        raise RmpeError(f"--preset {options.preset}: expected one of {', '.join(PRESETS)}")
    if options.folds == 1:
        raise RmpeError("--folds 1: expected 0 for none, or 2 and more")
    sheet = Path(options.sheet or Path(options.out).with_suffix(".png"))
    if sheet == Path(options.out):
        raise RmpeError(f"--out {options.out}: the maps would replace the parameters; --sheet takes another name")
    if sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise RmpeError(f"--sheet {sheet}: expected a .png or .jpg")
    labelled = read_labelled(
        options.detections,
        annotations=options.annotations,
        dataset=options.dataset,
        folder=options.data,
        split=options.split,
    )
    for place in (options.out, sheet):
        check_writable(place)

    def progress(steps, total, what):
        return tqdm(steps, what, total=total, mininterval=1.0)

    fit, about = fit_nms(
        labelled,
        options.out,
        parameters=PRESETS[options.preset],
        size=options.grid,
        folds=options.folds,
        seed=options.seed,
        progress=progress,
    )
    poses = labelled.predictions.poses
    if missing := sum(pose.box is None for pose in poses):
        _complain(f"{options.detections}: {missing} of {len(poses)} poses have no box: their joints' extent was taken")
    print(as_text(fit, about))
    write_image(sheet, draw_fit(fit))
    print(f"parameters: {options.out}, maps: {sheet}")
    return 0


def _fit_proposals(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from rmpe_jax.data.images import write_image
    from rmpe_jax.data.sets import data_set, read_data
    from rmpe_jax.evaluate.fit_proposals import find_people, read_poses_file
    from rmpe_jax.evaluate.fit_report import fit_and_compare
    from rmpe_jax.files import check_writable
    from rmpe_jax.predict.detectors import detect_with_hog, every_window_of_hog
    from rmpe_jax.pretrained import save_proposals

    out = Path(options.out)
    sheet = Path(options.sheet or out.with_suffix(".png"))
    if out.suffix != ".npz" or sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise RmpeError(f"expected --out with .npz and --sheet with .png or .jpg, got {out} and {sheet}")
    if options.kind == "dpg" and options.poses is not None:
        raise RmpeError("--poses are clustered for pgpg, but --kind is dpg")
    kinds = ("pgpg", "dpg") if options.kind == "both" else (options.kind,)
    places = {kind: out.with_stem(f"{out.stem}-dpg") if kind == "dpg" and len(kinds) > 1 else out for kind in kinds}
    data = data_set(options.dataset)
    pictures = read_data(options.dataset, options.data, options.split or data.splits[0])
    _take_file(options, "detections")
    detections = _detector(options)
    if detections is detect_with_hog:
        detections = every_window_of_hog
    poses = None if options.poses is None else read_poses_file(options.poses, data.skeleton)
    for place in (*places.values(), sheet):
        check_writable(place)

    def progress(title):
        return lambda steps: tqdm(steps, title, mininterval=1.0)

    problems: list[str] = []
    people = find_people(pictures, detections, progress=progress("pictures"), report=problems.append)
    settings = {"poses": poses, "atoms": options.atoms, "steps": options.steps, "seed": options.seed}
    found, distances, picture = fit_and_compare(people, data.skeleton, kinds, **settings, progress=progress)
    given = {"dataset": options.dataset, "detector": (options.detector or "builtin").partition(":")[0]}
    for kind, (generator, about) in found.items():
        save_proposals(places[kind], generator, about=about | given)
        print(f"{kind}: {places[kind]}")
    write_image(sheet, picture)
    print(f"poses, boxes and offsets: {sheet}")
    print("how far boxes are from those of people set aside (Kolmogorov-Smirnov; x0, y0, x1, y1, width / height):")
    for name, values in distances.items():
        print("  " + "  ".join(f"{value:.3f}" for value in values) + f"  {name}")
    if "pgpg" in found:
        gain, low, high = found["pgpg"][1]["pose_gain"]
        print(f"knowing the pose gains pgpg {gain:.3f} nats a detection ({low:.3f} to {high:.3f})")
    for problem in problems:
        _complain(problem)
    return int(bool(problems))


def _calibrate(options: argparse.Namespace) -> int:
    from rmpe_jax.data.sets import data_set, read_data
    from rmpe_jax.evaluate.calibrate import calibrate
    from rmpe_jax.evaluate.run import TESTED
    from rmpe_jax.files import check_writable
    from rmpe_jax.pretrained import DEFAULT, load_weights, save_weights

    if (options.dataset, options.split) in TESTED:
        raise RmpeError(f"--split {options.split}: results of {options.dataset} are reported on it; choose another")
    out = _weights_file(options.out)
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


def _weights_file(name: str) -> Path:
    out = Path(name)
    if out.suffix != ".safetensors":
        raise RmpeError(f"--out {out}: expected a name that ends in .safetensors")
    return out


def _import_weights(options: argparse.Namespace) -> int:
    from rmpe_jax.files import check_writable
    from rmpe_jax.pretrained import save_weights

    weights = _imported(options)
    out = _weights_file(options.out or f"{weights.experiment.name}.safetensors")
    if out.exists() and out.samefile(options.file):
        raise RmpeError(f"--out {out}: is the file that is read")
    check_writable(out)
    save_weights(out, weights)
    model = weights.experiment.hourglass
    stn = "an STN and " if options.layout == "resnet18" else ""
    print(f"{stn}{model.stacks} stacks, {model.features} features, {weights.experiment.joints.size} joints: {out}")
    return 0


def _imported(options: argparse.Namespace) -> Any:
    from rmpe_jax.pretrained import load_weights
    from rmpe_jax.torch_layouts import import_localization, import_weights

    if options.layout != "resnet18":
        if options.sppe:
            raise RmpeError(f"--sppe is of --layout resnet18: with {options.layout} it has no use")
        skeleton = options.skeleton or "mpii_16"
        return import_weights(options.file, options.layout, skeleton=skeleton, new_head=options.new_head)
    if options.skeleton or options.new_head:
        raise RmpeError("--skeleton and --new-head are of hourglasses: with --layout resnet18 they have no use")
    if not options.sppe:
        raise RmpeError("--layout resnet18: say with --sppe which hourglass is to stand behind the STN")
    weights = import_localization(options.file, load_weights(options.sppe))
    name = f"{weights.experiment.name}-stn"
    return dataclasses.replace(weights, experiment=dataclasses.replace(weights.experiment, name=name))


def _export(options: argparse.Namespace) -> int:
    from rmpe_jax.export import export_weights
    from rmpe_jax.files import check_writable
    from rmpe_jax.pretrained import DEFAULT, load_weights

    given = {"picture_size": options.picture_size, "picture_dtype": options.picture_dtype}
    given = {name: value for name, value in given.items() if value is not None}
    if given and options.program != "poses":
        raise RmpeError("--picture-size and --picture-dtype are for --program poses")
    weights = load_weights(options.weights or DEFAULT)
    suffix = ".onnx" if options.format == "onnx" else ".stablehlo.zip"
    out = Path(options.out or f"{weights.experiment.name}-{options.program}{suffix}")
    check_writable(out)
    settings = {"program": options.program, "batch": options.batch, "flip_test": options.flip}
    about = export_weights(weights, out, options.format, **settings, **given)
    for kind in ("inputs", "outputs"):
        for name, array in about[kind].items():
            shape = ", ".join(map(str, array["shape"]))
            print(f"{kind[:-1]:6}  {name:8}  {array['dtype']} ({shape})  {array['meaning']}")
    print(f"{options.program} of {len(about['joints'])} joints, {out.stat().st_size / 1e6:.1f} MB: {out}")
    return 0


def _data_list(options: argparse.Namespace) -> int:
    from rmpe_jax.browse import sets_table

    print(sets_table())
    return 0


def _data_prepare(options: argparse.Namespace) -> int:
    from rmpe_jax.data.prepare import prepare_data

    splits = tuple(options.splits)
    place = prepare_data(
        options.name, options.source, options.target, splits=splits, workers=options.workers, progress=True
    )
    print(f"prepared: {place}")
    return 0


def _data_show(options: argparse.Namespace) -> int:
    from rmpe_jax.browse import labels_sheet
    from rmpe_jax.data.images import write_image

    sheet, line, problems = labels_sheet(
        options.name, options.data, split=options.split, count=options.count, seed=options.seed
    )
    write_image(options.out, sheet)
    for problem in problems:
        _complain(problem)
    print(f"{line}: {options.out}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
