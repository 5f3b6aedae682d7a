"""Weights as one file that runs without this package: StableHLO for JAX, or ONNX for everything else.

There are two programs, of hourglass and DeepPose weights alike; the weights are inside, as float32.

* ``poses``: a picture of a fixed size and people's boxes in, joints in the picture and their scores out. It is
  ``estimate_poses`` without the pose NMS: crop, STN (if the weights have one), SPPE, decoding.
* ``sppe``: crops in, the last stack's heat maps out; of DeepPose, joints in the crop and their scores. The STN is left
  out; later stages of DeepPose look at the crop, which is all they are given.

A file of StableHLO is a zip archive of ``metadata.json`` and ``program``, the bytes of ``jax.export``, stored as they
are: ``jax.export.deserialize(bytearray(zipfile.ZipFile(path).read("program"))).call`` runs it where only JAX is
installed. It holds code for CPUs, CUDA and TPUs. JAX promises to read what it wrote up to six months before, and mostly
reads older files; an older JAX than the one that wrote a file may refuse it. Tried: 0.10.2's in 0.10.2, 0.11.2 and
0.12.0.1; 0.12.0.1's in 0.11.2, but not in 0.10.2. ``metadata.json`` names the version.
"""

import contextlib
import dataclasses
import importlib.util
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from rmpe_jax.config import DeepPoseConfig
from rmpe_jax.errors import MissingExtraError, RmpeError
from rmpe_jax.files import replacing
from rmpe_jax.geometry.affine import identity_affine
from rmpe_jax.models.single_person import estimate_heatmaps, estimate_joints
from rmpe_jax.onnx_graph import onnx_from_function
from rmpe_jax.predict.estimator import estimate_poses
from rmpe_jax.pretrained import Weights
from rmpe_jax.records import Boxes

FORMAT = "rmpe_jax.exported.1"
FORMATS, PROGRAMS, PICTURE_DTYPES = ("stablehlo", "onnx"), ("poses", "sppe"), ("uint8", "float32")
PLATFORMS = ("cpu", "cuda", "tpu")
#: (height, width): a picture of COCO fits, with zeros to the right and below.
PICTURE_SIZE = (640, 640)
# Positions in a larger picture do not fit float32.
_LONGEST_SIDE = 2**15
_METADATA, _PROGRAM = "metadata.json", "program"
# What is said of each input and output; `poses` and `sppe` share names only where they mean the same.
_MEANING = {
    "picture": "RGB, 0 to 255, upright; a smaller one with zeros to the right and below",
    "boxes": "x0 y0 x1 y1 of each person, pixels of the picture, pixel centres at integers, not extended",
    "crops": "RGB in [0, 1], one person each",
    "heatmaps": "of the last stack: height, width, joints; {lie} of map and crop lie on each other",
    "points": "x, y of each joint, pixels of the {frame}",
    "score": "of each joint, in [0, 1]: the probability that it is right if the weights are calibrated{where}",
    "valid": "False for a box that is not finite, inverted, or outside the picture",
}


class ExportError(RmpeError, ValueError):
    """A program that cannot be written as wanted, or a file that holds none; the message names the file."""


@dataclasses.dataclass(frozen=True)
class ExportedProgram:
    """A program read from a file; called with its inputs in order, it gives its outputs by name."""

    metadata: dict[str, Any]  # see ``export_weights``
    function: Callable[..., dict[str, Array]]  # of JAX arrays

    def __call__(self, *arrays: Any) -> dict[str, Array]:
        """Runs the program.

        Raises:
            ValueError: an array has another shape or type than it takes.
            ExportError: the program is of a newer JAX than this one can compile.
        """
        inputs = self.metadata["inputs"]
        if len(arrays) != len(inputs):
            raise ValueError(f"expected {len(inputs)} arrays ({', '.join(inputs)}), got {len(arrays)}")
        given = [_checked(array, *item) for array, item in zip(arrays, inputs.items(), strict=True)]
        try:
            return self.function(*given)
        except jax.errors.JaxRuntimeError as error:
            if "deserialize" not in str(error):
                raise
            raise ExportError(_not_read("the program", self.metadata, error)) from None


def export_weights(
    weights: Weights,
    path: str | Path,
    format: str,
    *,
    program: str = "poses",
    picture_size: tuple[int, int] = PICTURE_SIZE,
    picture_dtype: str = "uint8",
    batch: int | None = None,
    flip_test: bool = False,
) -> dict[str, Any]:
    """Writes a program with its weights, complete or not at all.

    A box that is not finite, inverted or outside the picture gives an entry that is finite, not ``valid``, and of score
    zero; what stands in the picture beyond the photograph counts as picture.

    Args:
        weights: a trained network.
        path: of the file; a folder that is missing is made.
        format: "stablehlo" or "onnx".
        program: "poses" or "sppe".
        picture_size: (height, width) of the pictures that ``poses`` takes.
        picture_dtype: of these pictures, "uint8" or "float32"; 0 to 255 either way.
        batch: boxes or crops in a call; None for any number from 1.
        flip_test: average with the mirrored crop (twice the work).

    Returns:
        The metadata, which the file holds too: ``inputs`` and ``outputs`` by name, each with its ``shape`` ("b" where
        any number will do), ``dtype`` and ``meaning``; ``joints`` in order, ``skeleton``, ``weights`` (their name),
        ``program``, ``flip_test``, ``format``, and the versions ``rmpe_jax`` and ``jax``. In ONNX they are the
        ``metadata_props``, as JSON where they are not text.

    Raises:
        ExportError: an option that is not known or out of range.
        MissingExtraError: flatbuffers (StableHLO) or onnx is not installed.

    Example::

        rmpe_jax.export_weights(rmpe_jax.load_weights(), "poses.onnx", "onnx", picture_size=(480, 640))
    """
    _check_choices(format=(format, FORMATS), program=(program, PROGRAMS), picture_dtype=(picture_dtype, PICTURE_DTYPES))
    if any(side not in range(1, _LONGEST_SIDE + 1) for side in picture_size) or len(picture_size) != 2:
        raise ExportError(f"expected a picture size of two numbers from 1 to {_LONGEST_SIDE}, got {picture_size}")
    if batch is not None and batch < 1:
        raise ExportError(f"expected a batch of at least 1, got {batch}")
    picture = jax.ShapeDtypeStruct((*picture_size, 3), jnp.dtype(picture_dtype))
    count = jax.export.symbolic_shape("b")[0] if batch is None else batch
    if format == "onnx":
        weights = _in_float32(weights)
    if program == "poses":
        function, inputs = _poses(weights, flip_test), {"picture": picture, "boxes": _floats(count, 4)}
    else:
        function = _sppe(weights, flip_test)
        inputs = {"crops": _floats(count, *weights.experiment.model.input_size, 3)}
    metadata = _described(weights, program, flip_test, inputs, jax.eval_shape(jax.jit(function), *inputs.values()))
    if format == "onnx":
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        content = onnx_from_function(function, inputs, metadata=texts)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    else:
        _write_archive(path, metadata, _stablehlo(function, inputs))
    return metadata


def load_exported(path: str | Path) -> ExportedProgram:
    """Reads a program that ``export_weights`` wrote as StableHLO; JAX compiles it when it is called.

    Nothing is unpickled or evaluated; checksums tell a damaged file.

    Args:
        path: of the file.

    Raises:
        ExportError: the file is missing, damaged, of another kind, or of a JAX that this one cannot read.
        MissingExtraError: flatbuffers is not installed.
    """
    _need_flatbuffers("reading StableHLO")
    try:
        with zipfile.ZipFile(path) as archive:
            metadata, program = json.loads(archive.read(_METADATA)), archive.read(_PROGRAM)
    except (OSError, KeyError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ExportError(f"{path}: cannot be read: {error.strerror}") from None
        raise ExportError(f"{path}: damaged, or not a StableHLO file of rmpe export: {error}") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ExportError(f"{path}: not a StableHLO file of rmpe export (format {FORMAT!r})")
    try:
        exported = jax.export.deserialize(bytearray(program))
    except Exception as error:  # flatbuffers reads bytes of another layout as whatever they may mean
        raise ExportError(_not_read(path, metadata, error)) from None
    return ExportedProgram(metadata, jax.jit(exported.call))


def _not_read(what: Any, metadata: dict[str, Any], error: Exception) -> str:
    versions = f"written with jax {metadata.get('jax')}, read with {jax.__version__}"
    return f"{what}: not a program that this JAX reads ({versions}): {error}"


def _check_choices(**choices: tuple[str, tuple[str, ...]]) -> None:
    for name, (given, known) in choices.items():
        if given not in known:
            raise ExportError(f"expected a {name} of {', '.join(known)}, got {given!r}")


def _in_float32(weights: Weights) -> Weights:
    """The same weights with activations of float32: ONNX Runtime has no convolution of bfloat16 on CPUs."""
    model = dataclasses.replace(weights.experiment.model, dtype="float32")
    return dataclasses.replace(weights, experiment=dataclasses.replace(weights.experiment, model=model))


def _floats(*shape: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _poses(weights: Weights, flip_test: bool) -> Callable[..., dict[str, Array]]:
    def poses(picture: Num[Array, "H W 3"], boxes: Float[Array, "b 4"]) -> dict[str, Array]:
        count = boxes.shape[0]
        given = Boxes(boxes, jnp.ones(count), jnp.ones(count, bool))
        settings: Any = {"experiment": weights.experiment, "flip_test": flip_test, "nms": None}
        found = estimate_poses(weights.variables, picture, given, **settings)
        score = jnp.where(found.valid[:, None], found.score, 0.0)
        return {"points": found.points, "score": score, "valid": found.valid}

    return poses


def _sppe(weights: Weights, flip_test: bool) -> Callable[..., dict[str, Array]]:
    settings: Any = {"experiment": weights.experiment, "flip_test": flip_test}

    def heatmaps(crops: Float[Array, "b h w 3"]) -> dict[str, Array]:
        return {"heatmaps": estimate_heatmaps(weights.variables, crops, **settings)}

    def joints(crops: Float[Array, "b h w 3"]) -> dict[str, Array]:
        # Each crop is the picture of its one person.
        def one(crop):
            return estimate_joints(weights.variables, crop * 255, crop[None], identity_affine()[None], **settings)

        points, score = jax.vmap(one)(crops)
        return {"points": points[:, 0], "score": score[:, 0]}

    return joints if isinstance(weights.experiment.model, DeepPoseConfig) else heatmaps


def _described(
    weights: Weights, program: str, flip_test: bool, inputs: dict[str, Any], outputs: dict[str, Any]
) -> dict[str, Any]:
    """The metadata of a program."""
    skeleton, package = weights.experiment.joints, sys.modules[__name__.partition(".")[0]]
    poses = program == "poses"
    words = {"frame": "picture" if poses else "crop", "where": "; 0 where not valid" if poses else ""}
    words["lie"] = "corner pixels" if getattr(weights.experiment.model, "align_corners", False) else "edges"

    def each(specs: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {
                "shape": [size if isinstance(size, int) else str(size) for size in spec.shape],
                "dtype": spec.dtype.name,
                "meaning": _MEANING[name].format(**words),
            }
            for name, spec in specs.items()
        }

    return {
        "format": FORMAT,
        "program": program,
        "inputs": each(inputs),
        "outputs": each(outputs),
        "flip_test": flip_test,
        "weights": weights.experiment.name,
        "skeleton": skeleton.name,
        "joints": list(skeleton.joints),
        "rmpe_jax": package.__version__,
        "jax": jax.__version__,
    }


def _need_flatbuffers(purpose: str) -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise MissingExtraError("flatbuffers", "export", purpose)


def _stablehlo(function: Callable[..., Any], inputs: dict[str, jax.ShapeDtypeStruct]) -> bytes:
    _need_flatbuffers("writing StableHLO")
    with _without_source_lines():
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*inputs.values())
    return bytes(exported.serialize())


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """By default a program tells of each operation which line of which file called it, folders included."""
    setting = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, setting)
    jax.config.update(setting, 0)
    try:
        yield
    finally:
        jax.config.update(setting, before)


def _write_archive(path: str | Path, metadata: dict[str, Any], program: bytes) -> None:
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        # Named so, members carry no time of the day: the same weights give the same file.
        archive.writestr(zipfile.ZipInfo(_METADATA), json.dumps(metadata))
        archive.writestr(zipfile.ZipInfo(_PROGRAM), program)


def _checked(array: Any, name: str, wanted: dict[str, Any]) -> np.ndarray:
    """An input as the program takes it; whole numbers become floats, but floats never whole numbers."""
    found = np.asarray(array)
    shape, dtype = wanted["shape"], np.dtype(wanted["dtype"])
    fits = len(shape) == found.ndim and all(b in ("b", a) for a, b in zip(found.shape, shape, strict=True))
    if not fits or not np.can_cast(found.dtype, dtype, "same_kind"):
        described = f"{dtype} {name} of shape ({', '.join(map(str, shape))})"
        raise ValueError(f"expected {described}, got {found.dtype} {found.shape}")
    return found.astype(dtype)
