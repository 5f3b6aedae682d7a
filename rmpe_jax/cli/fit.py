"""``rmpe fit-nms`` and ``rmpe fit-proposals``."""

import argparse
from pathlib import Path
from typing import Any

from rmpe_jax.cli.options import add_detector, complain, detector_of, number, take_file
from rmpe_jax.errors import RmpeError


def add_fit_nms(commands: Any) -> None:
    """Adds the command ``fit-nms``."""
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
        type=number(int, 2, 64),
        default=16,
        metavar="N",
        help="values of each of the four parameters; all N^4 settings are tried (default: %(default)s)",
    )
    fit.add_argument(
        "--folds",
        type=number(int, 0),
        default=5,
        metavar="N",
        help="of the pictures, to tell the gain on those not searched on; 0 for none (default: %(default)s)",
    )
    fit.add_argument(
        "--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="N", help="of folds, starts and bootstrap"
    )
    fit.set_defaults(run=_fit_nms)


def add_fit_proposals(commands: Any) -> None:
    """Adds the command ``fit-proposals``."""
    fit = commands.add_parser(
        "fit-proposals", help="learn the boxes that a detector gives people, by their pose (PGPG, DPG)"
    )
    fit.add_argument("--data", required=True, metavar="DIR", help="official files, or where the prepared set is")
    fit.add_argument("--dataset", default="coco", metavar="NAME", help="see `rmpe data list` (default: %(default)s)")
    fit.add_argument("--split", metavar="NAME", help="which (default: its training split)")
    fit.add_argument("--detections", metavar="FILE", help="the same as --detector file:FILE")
    add_detector(fit)
    fit.add_argument("--poses", metavar="FILE.npz", help="poses to cluster instead of the set's: keypoints (n, k, 3)")
    fit.add_argument(
        "--atoms", type=number(int, 1), default=24, metavar="N", help="atomic poses (default: %(default)s)"
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
        "--steps", type=number(int, 1), default=2000, metavar="N", help="of DPG's training (default: %(default)s)"
    )
    fit.add_argument("--sheet", metavar="FILE", help="poses, boxes and their offsets (default: --out with .png)")
    fit.add_argument(
        "--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="N", help="of fitting, and of who is set aside"
    )
    fit.set_defaults(run=_fit_proposals)


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
        complain(f"{options.detections}: {missing} of {len(poses)} poses have no box: their joints' extent was taken")
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
    take_file(options, "detections")
    detections = detector_of(options)
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
        complain(problem)
    return int(bool(problems))
