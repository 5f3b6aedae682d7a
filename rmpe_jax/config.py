"""Settings of an experiment: nested frozen dataclasses, typed overrides, and JSON both ways.

A setting is named by its path, ``model.stacks``; an override is ``model.stacks=4`` and takes the type of the field.
Unknown names, wrong types and values out of range raise ConfigError that names the setting.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from rmpe_jax.errors import RmpeError
from rmpe_jax.skeleton import Skeleton, skeleton_named

T = TypeVar("T")

#: How joints are read from heat maps.
DECODERS = ("quarter", "dark", "soft_argmax")


class ConfigError(RmpeError, ValueError):
    """A setting that does not exist, has the wrong type, or is out of range."""


def _check(config: Any, **ranges: tuple[int | float, int | float | None]) -> None:
    """Raises ConfigError for a setting below the first or above the second number of its range, or NaN."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not value >= low or (high is not None and value > high):
            wanted = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ConfigError(f"{name} must be {wanted}, got {value}")


def _check_choices(config: Any, **choices: tuple[str, ...]) -> None:
    """Raises ConfigError for a setting that is not one of its choices."""
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(config, name)!r}")


def _check_kind(config: Any, kind: str) -> None:
    if config.kind != kind:
        raise ConfigError(f"kind is {kind}, and cannot be changed to {config.kind!r}: say model={config.kind}")


@dataclasses.dataclass(frozen=True)
class HourglassConfig:
    """A stacked hourglass (Newell et al. 2016, in the layout of RMPE's Torch code)."""

    kind: str = "hourglass"
    stacks: int = 8  # hourglasses in a row; each gives heat maps and is supervised
    features: int = 256  # channels between residual blocks
    layout: str = "rmpe"  # or bearpaw (pytorch-pose: a wider stem), or hg-stacked (the authors' first, of two stacks)
    depth: int = 4  # times that one hourglass halves the resolution
    residuals: int = 1  # residual blocks at each place of the hourglass
    input_size: tuple[int, int] = (256, 256)  # (height, width) of the crop, pixels
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # subtracted from RGB in [0, 1]
    align_corners: bool = (
        False  # maps' corner pixels lie on the crop's, as in UDP and in RMPE's STN; else edges on edges
    )
    decoder: str = "quarter"  # how joints are read from maps: quarter, dark or soft_argmax (see ``heatmaps``)
    calibration: tuple[float, float] = (1.0, 0.0)  # slope and shift of joints' log odds of being right, see ``scores``
    remat: bool = False  # recompute each stack in the backward pass: less memory, more time
    scan: bool = False  # train in one loop over stacks: 8 compile like 1, for short runs; slower steps, more memory
    dtype: str = "float32"  # of activations: float32 or bfloat16; parameters and outputs are float32

    def __post_init__(self):
        _check_kind(self, "hourglass")
        if min(self.stacks, self.features, self.depth, self.residuals) < 1 or self.features % 4:
            raise ConfigError("stacks, depth and residuals must be at least 1, features a positive multiple of 4")
        step = 4 * 2**self.depth
        if any(side < step or side % step for side in self.input_size):
            raise ConfigError(f"input_size must be multiples of {step} at depth {self.depth}, got {self.input_size}")
        layouts = ("rmpe", "bearpaw", "hg-stacked")
        _check_choices(self, layout=layouts, decoder=DECODERS, dtype=("float32", "bfloat16"))
        if not (0 < self.calibration[0] < math.inf and math.isfinite(self.calibration[1])):
            raise ConfigError(f"calibration must be a positive slope and a finite shift, got {self.calibration}")
        if self.layout == "hg-stacked" and (self.stacks != 2 or self.features % 16 or self.scan):
            raise ConfigError(
                "layout hg-stacked: stacks must be 2, features a multiple of 16 (theirs: 512, with residuals=3), and "
                f"scan false, got {self.stacks}, {self.features}, {self.scan}"
            )

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the heat maps: a quarter of the input."""
        return self.input_size[0] // 4, self.input_size[1] // 4


@dataclasses.dataclass(frozen=True)
class DeepPoseConfig:
    """DeepPose (Toshev and Szegedy 2014): joints by regression, refined by a cascade. ``--set model=deep_pose``."""

    kind: str = "deep_pose"
    backbone: str = "resnet18"  # or resnet50, or alexnet, that of the paper (with input_size=220,220)
    width: float = 1.0  # features of every layer, over those of the published networks
    stages: int = 3  # the first sees the person, each other one a joint's surroundings; 1 for no cascade
    side: float = 1.0  # of the square around a joint, over the length of the torso's diagonal (the paper's sigma)
    displacements: int = 8  # simulated errors that each later stage sees in a step, for each person, over random joints
    dropout: float = 0.0  # of the AlexNet-like network's hidden layers (the paper: 0.6)
    input_size: tuple[int, int] = (224, 224)  # (height, width) of what every stage sees, pixels
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # subtracted from RGB in [0, 1]
    dtype: str = "float32"  # of activations: float32 or bfloat16; parameters and outputs are float32

    def __post_init__(self):
        _check_kind(self, "deep_pose")
        _check_choices(self, backbone=("alexnet", "resnet18", "resnet50"), dtype=("float32", "bfloat16"))
        if min(self.input_size) < 32 or (self.backbone == "alexnet" and min(self.input_size) < 67):
            raise ConfigError(f"input_size must be at least 32, for alexnet 67 pixels, got {self.input_size}")
        _check(
            self, width=(1 / 64, None), stages=(1, None), side=(1e-2, None), displacements=(1, None), dropout=(0, 0.99)
        )


@dataclasses.dataclass(frozen=True)
class PersonDetectorConfig:
    """A person detector on the hourglass, after CenterNet (Zhou et al. 2019). ``--set model=person_detector``."""

    kind: str = "person_detector"
    stacks: int = 2  # hourglasses in a row; each is supervised
    features: int = 64  # channels between residual blocks
    depth: int = 4  # times that one hourglass halves the resolution
    residuals: int = 1  # residual blocks at each place of the hourglass
    input_size: tuple[int, int] = (256, 256)  # (height, width) of what training sees, pixels
    sides: tuple[int, ...] = (512, 256)  # the whole picture is searched with its longer side as long as each of these
    lengths: tuple[float, float] = (20.0, 256.0)  # of the longer sides of boxes that training sees, input's pixels
    overlap: float = 0.6  # of two found boxes with a larger intersection over union the one of lower score goes
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # subtracted from RGB in [0, 1]
    remat: bool = False  # recompute each stack in the backward pass: less memory, more time
    dtype: str = "float32"  # of activations: float32 or bfloat16; parameters and outputs are float32

    def __post_init__(self):
        _check_kind(self, "person_detector")
        step = 4 * 2**self.depth
        if not self.sides or any(side < step or side % step for side in self.sides):
            raise ConfigError(f"sides must be one or more multiples of {step} at depth {self.depth}, got {self.sides}")
        if not 0 < self.lengths[0] < self.lengths[1] < math.inf:
            raise ConfigError(f"lengths must be two rising positive numbers, got {self.lengths}")
        _check(self, overlap=(0, 1))
        _ = self.hourglass  # checks what they share

    @property
    def hourglass(self) -> HourglassConfig:
        """The hourglass that gives the detector's maps."""
        names = ("stacks", "features", "depth", "residuals", "input_size", "mean", "remat", "dtype")
        return HourglassConfig(**{name: getattr(self, name) for name in names})


#: Where theta acts: STN -> SPPE, SDTN, STN -> parallel SPPE.
PATHS = ("sampling", "inverse", "parallel")


@dataclasses.dataclass(frozen=True)
class LocalizationConfig:
    """The STN in front of the estimator, the SDTN behind it, and the frozen parallel SPPE that trains them."""

    kind: str = "none"  # localization network: none (no STN), small, or resnet18 (the original's, 11.2 M parameters)
    theta: str = "affine"  # what it may change: affine (six numbers) or scale_translation (three)
    source: str = "picture"  # what the STN samples: picture (one sample along both maps) or crop (as in the paper)
    parallel: str = ""  # weights of the frozen parallel SPPE, by name or path; empty for none
    parallel_weight: float = 1.0  # of each of its outputs; 1 as in the original, where each main output has 1
    parallel_step: float = 0.0  # theta's gradient through it: 0 exact; else central differences of this step of theta
    paths: str = "sampling,inverse,parallel"  # through which the loss reaches theta; some of these, with commas
    rate: float = 1.0  # learning rate of the localization network, over that of the estimator

    def __post_init__(self):
        known = {"theta": ("affine", "scale_translation"), "source": ("picture", "crop")}
        _check_choices(self, kind=("none", "small", "resnet18"), **known)
        if self.parallel and self.kind == "none":
            raise ConfigError("parallel: the parallel SPPE trains a localization network, but kind is none")
        paths = self.paths.split(",")
        if len(set(paths)) < len(paths) or not set(paths) <= set(PATHS):
            raise ConfigError(f"paths must be some of {','.join(PATHS)}, got {self.paths!r}")
        _check(self, parallel_weight=(0, None), parallel_step=(0, None), rate=(0, None))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the pictures are and how a person is cut out of one. An empty path leaves a data set out.

    A folder holds the official files of the set, or what ``rmpe data prepare`` made of them.
    """

    lspet: str = ""  # Leeds Sports Pose Extended, training split
    lsp: str = ""  # Leeds Sports Pose, training split
    mpii: str = ""  # MPII Human Pose, training split of the hourglass authors
    crowdpose: str = ""  # CrowdPose, training split
    flic: str = ""  # FLIC, training split
    coco: str = ""  # COCO keypoints, the split below
    negatives: str = ""  # pictures without people, for a person detector
    synthetic: int = 0  # number of drawn pictures; needs no folder
    coco_split: str = "train2017"
    coco_repeat: int = 1  # how often COCO's people appear in an epoch
    negatives_repeat: int = 1  # how often the pictures without people do
    min_joints: int = 5  # people with fewer labelled joints are left out
    extension: float = 0.3  # the box grows by this fraction of each side (0.2 in the arXiv text, 0.3 at ICCV)
    canvas: int = 256  # side in pixels of the square that the loader cuts around a person
    canvas_margin: float = 1.5  # side of that square over the side of the extended box: room for augmentation

    def __post_init__(self):
        _check(self, canvas=(2, None), canvas_margin=(1, None), extension=(0, None), coco_repeat=(1, None))
        _check(self, synthetic=(0, None), negatives_repeat=(1, None))

    def with_folders_of(self, other: "DataConfig") -> "DataConfig":
        """The same settings with another's folders: where data lies does not decide a run."""
        return dataclasses.replace(self, **{name: getattr(other, name) for name in FOLDERS})


#: The settings of ``DataConfig`` that are folders of data sets, and all that are folders.
SET_FOLDERS = ("lspet", "lsp", "mpii", "crowdpose", "flic", "coco")
FOLDERS = (*SET_FOLDERS, "negatives")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training crop, made on the device."""

    flip: float = 0.5  # probability of mirroring
    scale: float = 0.25  # box side times U(1 - scale, 1 + scale)
    shift: float = 0.05  # centre moves by U(-shift, shift) of the side
    rotation: float = 30.0  # degrees, standard deviation; cut at twice that
    rotation_probability: float = 0.6
    proposals: str = "jitter"  # jitter (scale and shift above), a law of PGPG or DPG, or another
    patch: float = 0.0  # share of boxes cut down to a part of the person instead; 0: as many as the law has
    mosaic: float = 0.0  # probability that a person detector sees four pictures put together instead of one
    colour: float = 0.4  # each channel times U(1 - colour, 1 + colour) (RMPE: 0.6 to 1.4)

    def __post_init__(self):
        _check(self, flip=(0, 1), scale=(0, 0.9), shift=(0, None), rotation=(0, None), rotation_probability=(0, 1))
        _check(self, colour=(0, 1), patch=(0, 1), mosaic=(0, 1))
        known = ("jitter", "alphapose_global", "harsh", "exact", "uniform", "patch_15", "patch_30")
        learned = self.proposals.startswith(("pgpg-", "dpg-")) or self.proposals.endswith(".npz")
        if self.proposals not in known and not learned:
            names = f"one of {', '.join(known)}, pgpg-NAME, dpg-NAME"
            raise ConfigError(f"proposals must be {names} or an .npz file, got {self.proposals!r}")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser, its schedule and the loss."""

    steps: int = 100_000
    batch: int = 32  # people in a step, over all devices
    accumulate: int = 1  # parts of a batch, one after the other, before the weights change: less memory
    optimizer: str = "adamw"  # or rmsprop, that of RMPE and of the hourglass's authors
    learning_rate: float = 1e-3
    warmup: int = 500  # steps of linear rise
    schedule: str = "cosine"  # after it: down to zero; or steps, see drops; or constant
    drops: tuple[float, ...] = (2 / 3,)  # for steps: after these shares of the run the rate is multiplied by
    drop: float = 0.2  # this (RMPE: 20 epochs at 2.5e-4, then 10 at 0.5e-4)
    weight_decay: float = 0.0  # decoupled for adamw, an L2 penalty for rmsprop
    clip: float = 1.0  # largest global norm of the gradient
    average: float = 0.999  # decay of the running average of the weights, the copy that is evaluated
    sigma: float = 2.0  # of the target Gaussians, heat-map pixels
    positive_weight: float = 10.0  # squared error is weighted 1 + positive_weight * target

    def __post_init__(self):
        _check(self, steps=(1, None), batch=(1, None), learning_rate=(0, None), warmup=(0, None), average=(0, 1))
        _check(self, weight_decay=(0, None), clip=(1e-12, None), sigma=(1e-3, None), positive_weight=(0, None))
        _check(self, accumulate=(1, None), drop=(0, 1))
        _check_choices(self, optimizer=("adamw", "rmsprop"), schedule=("cosine", "steps", "constant"))
        if any(not 0 < share < 1 for share in self.drops) or list(self.drops) != sorted(set(self.drops)):
            raise ConfigError(f"drops must be rising shares between 0 and 1, got {self.drops}")
        if self.batch % self.accumulate:
            raise ConfigError(f"batch: {self.batch} people cannot be split evenly into {self.accumulate} parts")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How often the run reports, evaluates and saves."""

    log_every: int = 50
    evaluate_every: int = 2000
    save_every: int = 1000
    seed: int = 0

    def __post_init__(self):
        _check(self, log_every=(1, None), evaluate_every=(1, None), save_every=(1, None), seed=(0, None))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides a training run, besides the data itself."""

    name: str = "hourglass"
    skeleton: str = "coco_lsp_19"
    start: str = ""  # weights to start from, by name or path, for every part that they have; empty for fresh ones
    model: HourglassConfig | DeepPoseConfig | PersonDetectorConfig = dataclasses.field(default_factory=HourglassConfig)
    localization: LocalizationConfig = dataclasses.field(default_factory=LocalizationConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __post_init__(self):
        try:
            skeleton_named(self.skeleton)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.localization.kind != "none" and not isinstance(self.model, HourglassConfig):
            raise ConfigError(
                f"localization.kind: the STN and SDTN re-map heat maps, which {self.model.kind} has none of"
            )

    @property
    def hourglass(self) -> HourglassConfig:
        """The settings of ``model``, for what only an hourglass can do.

        Raises:
            ConfigError: it is another kind.
        """
        if not isinstance(self.model, HourglassConfig):
            raise ConfigError(f"{self.name}: the model is a {self.model.kind}, which has no heat maps")
        return self.model

    @property
    def joints(self) -> Skeleton:
        """The skeleton that the network predicts."""
        return skeleton_named(self.skeleton)


def override(config: Any, assignments: Iterable[str]) -> Any:
    """Returns a copy of ``config`` with each ``path=value`` applied.

    Args:
        config: a settings dataclass.
        assignments: such as ``"model.stacks=4"`` or ``"model.input_size=128,128"``.

    Raises:
        ConfigError: naming the assignment and what was expected.

    Example:
        >>> override(Experiment(), ["model.stacks=2", "optim.batch=64"]).model.stacks
        2
    """
    texts = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"expected name=value, got {assignment!r}")
        texts[path.strip()] = text.strip()
    return _with_texts(config, texts, "")


def _with_texts(config: Any, texts: dict[str, str], prefix: str) -> Any:
    """Applies all texts of one group at once, so that settings that depend on each other may come in any order."""
    hints = typing.get_type_hints(type(config))
    groups: dict[str, dict[str, str]] = {}
    for path, text in texts.items():
        name, _, rest = path.partition(".")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            meant = f", did you mean {near[0]!r}?" if near else ";"
            raise ConfigError(
                f"{prefix}{path}: no setting {name!r}{meant} {type(config).__name__} has {', '.join(hints)}"
            )
        nested = dataclasses.is_dataclass(getattr(config, name))
        if nested != bool(rest) and not _kinds(hints[name]):
            raise ConfigError(f"{prefix}{path}: {name!r} is {'a group of settings' if nested else 'a single setting'}")
        groups.setdefault(name, {})[rest] = text
    changes = {}
    for name, inner in groups.items():
        now = getattr(config, name)
        if _kinds(hints[name]) and "" in inner:
            # Another kind begins with its own settings.
            kind = _kind_named(hints[name], inner.pop(""), f"{prefix}{name}")
            now = now if isinstance(now, kind) else kind()
        if "" in inner:
            changes[name] = _parse(inner[""], hints[name], f"{prefix}{name}={inner['']}")
        else:
            changes[name] = _with_texts(now, inner, f"{prefix}{name}.")
    try:
        return dataclasses.replace(config, **changes)
    except ConfigError as error:
        raise ConfigError(f"{prefix.rstrip('.') or 'experiment'}: {error}") from None


def _kinds(hint: Any) -> tuple[type, ...]:
    """The dataclasses between which a setting chooses by their ``kind``; none for any other setting."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else ()


def _kind_named(hint: Any, name: Any, where: str) -> Any:
    """The dataclass of a kind; that of ``kind`` is the default of its field."""
    found = {kind.kind: kind for kind in _kinds(hint)}
    if name not in found:
        raise ConfigError(f"{where}: expected one of {', '.join(found)}, got {name!r}")
    return found[name]


def _parse(text: str, hint: Any, assignment: str) -> Any:
    if typing.get_origin(hint) is tuple:
        kinds, parts = typing.get_args(hint), [part for part in text.split(",") if text]
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(parts)
        if len(kinds) != len(parts):
            raise ConfigError(f"{assignment!r}: expected {len(kinds)} values separated by commas")
        return tuple(_parse(part, kind, assignment) for part, kind in zip(parts, kinds, strict=True))
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{assignment!r}: expected true or false")
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError:
        raise ConfigError(f"{assignment!r}: expected {hint.__name__}, got {text!r}") from None


def to_json(config: Any) -> str:
    """The settings as JSON text, readable by ``from_json``."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(kind: type[T], text: str) -> T:
    """Reads settings of the given dataclass from JSON text, checking every name and type.

    Raises:
        ConfigError: naming the line of malformed JSON, or the setting that is unknown or has the wrong type.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    return from_value(kind, values, kind.__name__)


def from_value(hint: Any, value: Any, name: str) -> Any:
    """A setting, or a dataclass of settings, from what JSON holds; ``name`` is how errors call it.

    Raises:
        ConfigError: naming the setting that is unknown or has the wrong type.
    """
    if kinds := _kinds(hint):
        # Files of versions that had one kind do not name it.
        named = value.get("kind", kinds[0].kind) if isinstance(value, dict) else None
        hint = _kind_named(hint, named, f"{name}.kind") if named is not None else kinds[0]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: expected an object, got {value!r}")
        for key in value:
            if key not in hints:
                raise ConfigError(f"{name}: no setting {key!r}; known: {', '.join(hints)}")
        return hint(**{key: from_value(hints[key], item, f"{name}.{key}") for key, item in value.items()})
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis and isinstance(value, list):
            kinds = kinds[:1] * len(value)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise ConfigError(f"{name}: expected a list of {len(kinds)} values, got {value!r}")
        return tuple(from_value(kind, item, name) for kind, item in zip(kinds, value, strict=True))
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{name}: expected one of {', '.join(typing.get_args(hint))}, got {value!r}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{name}: expected {hint.__name__}, got {value!r}")
    return value


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Names the settings in which two configurations of the same type differ, with both values.

    Example:
        >>> differences(HourglassConfig(stacks=2), HourglassConfig(stacks=4))
        ['stacks: 2 against 4']
    """
    if type(ours) is not type(theirs):
        return [f"{prefix}kind: {ours.kind} against {theirs.kind}"]
    found = []
    for field in dataclasses.fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if dataclasses.is_dataclass(a):
            found += differences(a, b, f"{prefix}{field.name}.")
        elif a != b:
            found.append(f"{prefix}{field.name}: {a} against {b}")
    return found
