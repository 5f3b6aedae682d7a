"""``rmpe import-weights`` and ``rmpe export``."""

import argparse
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from rmpe_jax.cli.options import add_weights, number, weights_file
from rmpe_jax.errors import RmpeError


def add_import(commands: Any) -> None:
    """Adds the command ``import-weights``."""
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


def add_export(commands: Any) -> None:
    """Adds the command ``export``."""
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
    export.add_argument("--batch", type=number(int, 1), metavar="N", help="people in a call (default: any number)")
    export.add_argument("--flip", action="store_true", help="average with the mirrored crop: twice the work")
    add_weights(export)
    export.set_defaults(run=_export)


def _size(text: str) -> tuple[int, int]:
    """Height and width, with a comma."""
    with contextlib.suppress(ValueError):
        height, width = (int(side) for side in text.split(","))
        return height, width
    raise argparse.ArgumentTypeError(f"expected height,width such as 480,640, got {text}")


def _import_weights(options: argparse.Namespace) -> int:
    from rmpe_jax.files import check_writable
    from rmpe_jax.pretrained import save_weights

    weights = _imported(options)
    out = weights_file(options.out or f"{weights.experiment.name}.safetensors")
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
