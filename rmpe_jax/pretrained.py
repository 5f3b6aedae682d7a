"""What was learned, in files: weights (safetensors with the experiment in the metadata), parameters of pose NMS (JSON).

Named ones come with the package. Nothing is unpickled: a safetensors file holds raw arrays and text.
"""

import dataclasses
import json
import math
import zipfile
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from rmpe_jax.config import ConfigError, DataConfig, Experiment, from_json, from_value, to_json
from rmpe_jax.errors import RmpeError
from rmpe_jax.files import replacing, write_json
from rmpe_jax.models.proposal_scorer import apply_scorer, scorer_shapes
from rmpe_jax.models.rmpe import estimator_shapes
from rmpe_jax.nms.pose import PRESETS, PoseNMSParameters
from rmpe_jax.proposals.atoms import FEWEST_JOINTS
from rmpe_jax.proposals.generators import LAWS, Generator, Law
from rmpe_jax.proposals.mixtures import OffsetMixtures
from rmpe_jax.proposals.scored import ScoredProposals
from rmpe_jax.skeleton import SKELETONS

FORMAT = "rmpe_jax.hourglass.1"
NMS_FORMAT = "rmpe_jax.pose_nms.1"
PROPOSALS_FORMAT = "rmpe_jax.proposals.1"
SCORER_FORMAT = "rmpe_jax.scored_proposals.1"
DEFAULT = "hourglass-lspet-coco"
DEFAULT_DETECTOR = "person-detector"


class WeightsError(RmpeError, ValueError):
    """A weight file that is missing, damaged, or of another network; the message names the file and the array."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A trained network: the experiment that made it and its variables (nested dicts of NumPy arrays)."""

    experiment: Experiment
    variables: dict[str, Any]


def shipped_weights() -> list[str]:
    """Names of the weights that come with the package."""
    return _shipped(".safetensors")


def _shipped(suffix: str) -> list[str]:
    folder = _weights_folder()
    return sorted(file.stem for file in folder.iterdir() if file.suffix == suffix) if folder.is_dir() else []


def _weights_folder() -> Path:
    return Path(str(resources.files("rmpe_jax"))) / "weights"


def weights_path(name: str | Path) -> Path:
    """The file of a shipped name, or the path itself; raises WeightsError that lists the names."""
    path = Path(name)
    if path.suffix != ".safetensors" and str(name) in shipped_weights():
        return _weights_folder() / f"{name}.safetensors"
    if not path.is_file():
        raise WeightsError(f"{name}: no such file, and not one of the shipped weights: {', '.join(shipped_weights())}")
    return path


def without_paths(experiment: Experiment) -> Experiment:
    """The settings as a file of weights keeps them: of other files the names, of data nothing.

    Where these lay says something about the machine only.
    """
    data, start = experiment.data.with_folders_of(DataConfig()), Path(experiment.start).name
    localization = dataclasses.replace(experiment.localization, parallel=Path(experiment.localization.parallel).name)
    augment = dataclasses.replace(experiment.augment, proposals=Path(experiment.augment.proposals).name)
    return dataclasses.replace(experiment, data=data, start=start, localization=localization, augment=augment)


def save_weights(path: str | Path, weights: Weights) -> None:
    """Writes weights and their experiment (``without_paths``), complete or not at all."""
    metadata = {"format": FORMAT, "experiment": to_json(without_paths(weights.experiment))}
    # safetensors writes memory as it lies, whatever the order of axes in it.
    arrays = {name: np.ascontiguousarray(array) for name, array in flatten_variables(weights.variables).items()}
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata=metadata)


def load_weights(name: str | Path = DEFAULT) -> Weights:
    """Reads weights by shipped name or path, and checks every array against the architecture.

    Raises:
        WeightsError: naming the file, and the missing, unknown or mis-shaped array.
    """
    path = weights_path(name)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: damaged, or not a safetensors file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path}: expected format {FORMAT!r} in the metadata, got {metadata.get('format')!r}")
    try:
        experiment = from_json(Experiment, metadata["experiment"])
    except (KeyError, ConfigError) as error:
        raise WeightsError(f"{path}: metadata: experiment: {error}") from None
    try:
        _check_arrays(arrays, flatten_variables(estimator_shapes(experiment)))
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    return Weights(experiment, unflatten_variables(arrays))


def _check_arrays(arrays: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    """Raises ValueError that names the first array that is missing, unknown, mis-shaped or not finite."""
    for key in sorted(expected.keys() | arrays.keys()):
        if key not in arrays or key not in expected:
            raise ValueError(f"{'missing' if key not in arrays else 'unknown'} array {key}")
        if arrays[key].shape != expected[key].shape:
            raise ValueError(f"{key} has shape {arrays[key].shape}, expected {expected[key].shape}")
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{key} holds values that are not finite")


def flatten_variables(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, by paths with slashes: the names of arrays in weight files."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten_variables(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return flat


def unflatten_variables(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """The opposite of ``flatten_variables``."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return tree


def save_nms(path: str | Path, parameters: PoseNMSParameters, *, about: dict[str, Any] | None = None) -> None:
    """Writes parameters of the pose NMS as JSON, complete or not at all.

    Args:
        path: of the file.
        parameters: to be read by ``load_nms``; infinite ones, which JSON cannot hold, only if that is the
            default.
        about: how they were learned, written beside them.

    Raises:
        ValueError: another setting is infinite.
    """
    defaults, values = PoseNMSParameters(), dataclasses.asdict(parameters)
    infinite = {name for name, value in values.items() if isinstance(value, float) and math.isinf(value)}
    for name in infinite:
        if values.pop(name) != getattr(defaults, name):
            raise ValueError(f"{name} is infinite: a file of parameters cannot hold it")
    write_json(path, {"format": NMS_FORMAT, "parameters": values, **(about or {})})


def load_nms(name: str | Path) -> PoseNMSParameters | None:
    """Parameters of the pose NMS: one of ``PRESETS`` by name, those of a file, or None for "none" (no NMS).

    Raises:
        ConfigError: naming the file and the setting that is unknown, of the wrong type or out of range.
    """
    if name == "none":
        return None
    if name in PRESETS:
        return PRESETS[str(name)]
    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{name}: no such file, and not one of none, {', '.join(PRESETS)}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{name}: malformed JSON at {where}: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{name}: JSON that cannot be held: {error}") from None
    if not isinstance(content, dict) or content.get("format") != NMS_FORMAT:
        raise ConfigError(f"{name}: not parameters of the pose NMS (format {NMS_FORMAT!r})")
    try:
        return from_value(PoseNMSParameters, content.get("parameters"), "parameters")
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def shipped_proposals() -> list[str]:
    """Names of the proposals generators that come with the package."""
    return _shipped(".npz")


def save_proposals(
    path: str | Path, generator: OffsetMixtures | ScoredProposals, *, about: dict[str, Any] | None = None
) -> None:
    """Writes what PGPG or DPG learned as an .npz of plain arrays, complete or not at all.

    Args:
        path: of the file; it should end in .npz.
        generator: to be read by ``load_proposals``.
        about: how it was fitted, kept as JSON text.
    """
    texts = {"skeleton": generator.skeleton, "about": json.dumps(about or {})}
    if isinstance(generator, OffsetMixtures):
        texts["format"] = PROPOSALS_FORMAT
        content: dict[str, Any] = {name: np.asarray(getattr(generator, name)) for name in _PROPOSAL_ARRAYS}
    else:
        texts |= {"format": SCORER_FORMAT, "draw": generator.draw}
        content = {_SCORER + key: np.asarray(array) for key, array in flatten_variables(generator.variables).items()}
        content |= {"candidates": np.array(generator.candidates), "threshold": np.array(generator.threshold)}
    content |= {name: np.array(text) for name, text in texts.items()}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **content)


# Of means and deviations of boxes' corners, over the sides.
_LARGEST_OFFSET = 10
# What precedes the names of a scorer's variables in a file.
_SCORER = "scorer/"
_MOST_CANDIDATES = 2**20
# The arrays of a file of PGPG, and how many axes each has.
_PROPOSAL_ARRAYS = {"atoms": 3, "weight": 2, "mean": 3, "factor": 4}


def load_proposals(name: str | Path) -> Generator:
    """A proposals generator: one of ``LAWS`` or a shipped one by name, or PGPG's or DPG's of an .npz file.

    Nothing is unpickled: the file holds plain arrays and text.

    Raises:
        ConfigError: naming the file, and what is missing or wrong in it.
    """
    if name in LAWS:
        return Law(str(name))
    shipped = shipped_proposals()
    try:
        content = read_arrays(_weights_folder() / f"{name}.npz" if name in shipped else name)
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{name}: no such file, and not one of {', '.join([*LAWS, *shipped])}") from None
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    read = {PROPOSALS_FORMAT: _checked_mixtures, SCORER_FORMAT: _checked_scorer}.get(str(content.get("format")))
    if read is None:
        raise ConfigError(f"{name}: not a file of proposals (format {PROPOSALS_FORMAT!r} or {SCORER_FORMAT!r})")
    try:
        return read(content)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; nothing is unpickled.

    Raises:
        ValueError: the file is damaged, or is not an .npz file of plain arrays.
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        # What NumPy and zipfile raise about broken bytes; TypeError: one array, an .npy file, has no `with`.
        except (ValueError, OSError, EOFError, RuntimeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"damaged, or not an .npz file of plain arrays: {error}") from None


def _checked_scorer(content: dict[str, Any]) -> ScoredProposals:
    skeleton = _known_skeleton(content)
    arrays = {key.removeprefix(_SCORER): array for key, array in content.items() if key.startswith(_SCORER)}
    for key, array in arrays.items():
        if array.dtype.kind != "f":
            raise ValueError(f"{key}: expected an array of floats")
        arrays[key] = array.astype(np.float32)
    _check_arrays(arrays, flatten_variables(scorer_shapes()))
    for key, kinds in {"candidates": "iu", "threshold": "f"}.items():
        if key not in content or content[key].dtype.kind not in kinds or content[key].ndim:
            raise ValueError(f"{key}: expected a {'whole number' if kinds == 'iu' else 'number'}")
    draw: Any = str(content.get("draw"))
    if draw not in ("odds", "score"):
        raise ValueError(f"draw: expected odds or score, got {draw!r}")
    numbers = int(content["candidates"]), float(content["threshold"])
    if numbers[0] > _MOST_CANDIDATES:
        raise ValueError(f"candidates: expected at most {_MOST_CANDIDATES}, got {numbers[0]}")
    order = tuple(range(SKELETONS[skeleton].size))
    return ScoredProposals(unflatten_variables(arrays), apply_scorer, skeleton, order, *numbers, draw)


def _known_skeleton(content: dict[str, Any]) -> str:
    skeleton = str(content.get("skeleton"))
    if skeleton not in SKELETONS:
        raise ValueError(f"skeleton: unknown: {skeleton!r}")
    return skeleton


def _checked_mixtures(content: dict[str, Any]) -> OffsetMixtures:
    skeleton = _known_skeleton(content)
    arrays = {}
    for key, axes in _PROPOSAL_ARRAYS.items():
        if key not in content or content[key].dtype.kind != "f" or content[key].ndim != axes:
            raise ValueError(f"{key}: expected an array of floats with {axes} axes")
        with np.errstate(over="ignore"):  # what is too large is infinite, and refused below
            arrays[key] = content[key].astype(np.float32)
    (rows, components), joints = arrays["weight"].shape, SKELETONS[skeleton].size
    if rows < 2:
        raise ValueError("weight: expected a row for each atomic pose and one for everybody else")
    shapes = {"atoms": (rows - 1, joints, 2), "mean": (rows, components, 4), "factor": (rows, components, 4, 4)}
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise ValueError(f"{key}: has shape {arrays[key].shape}, expected {shape}")
    for key in ("weight", "mean", "factor"):
        # Boxes that are ten sides away are no person's.
        if not (np.abs(arrays[key]) <= _LARGEST_OFFSET).all():
            raise ValueError(f"{key}: holds values that are not finite, or larger than {_LARGEST_OFFSET}")
    if np.triu(arrays["factor"], 1).any() or not (np.diagonal(arrays["factor"], axis1=2, axis2=3) > 0).all():
        raise ValueError("factor: expected lower triangular matrices with a positive diagonal")
    if np.isinf(arrays["atoms"]).any() or np.isfinite(arrays["atoms"]).all((0, 2)).sum() < FEWEST_JOINTS:
        raise ValueError(f"atoms: expected finite places of at least {FEWEST_JOINTS} joints, the same of every pose")
    if (arrays["weight"] < 0).any() or not np.allclose(arrays["weight"].sum(1), 1, atol=1e-4):
        raise ValueError("weight: expected rows of shares that sum to one")
    return OffsetMixtures(**arrays, skeleton=skeleton)
