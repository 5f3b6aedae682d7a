"""Other people's hourglasses and localization networks as weights of this package.

Layouts are named after their repositories: ``bearpaw`` (pytorch-pose; ``anibali`` has the same arrays), whose stem is
wider, and ``princeton`` (pytorch_stacked_hourglass), whose network is that of Newell and of RMPE. Both are
pre-activation throughout and compute what ``models.hourglass`` computes, so arrays are copied one by one: kernels from
(out, in, height, width) to (height, width, in, out), 1x1 convolutions to matrices.

``resnet18`` is the STN's localization network under torchvision's names, see ``import_localization``.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmpe_jax.config import ConfigError, Experiment, HourglassConfig, LocalizationConfig, OptimConfig
from rmpe_jax.models.hourglass import hourglass_shapes, init_hourglass
from rmpe_jax.models.localization import localization_shapes
from rmpe_jax.models.rmpe import join_parts, sppe_of
from rmpe_jax.pretrained import Weights, WeightsError, flatten_variables, unflatten_variables
from rmpe_jax.skeleton import skeleton_named
from rmpe_jax.torch_files import read_tensors

LAYOUTS = ("bearpaw", "anibali", "princeton")
# Mean colour of MPII, which pytorch-pose subtracts (it computes a standard deviation too, and does not use it).
_BEARPAW_MEAN = (0.4404, 0.4440, 0.4327)
# What frameworks wrap around the names of a network's arrays.
_WRAPPERS = re.compile(r"^(module\.|model\.)+")
# Mean and standard deviation of ImageNet's colours, by which torchvision's networks see pictures.
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: One layer: conv, dense, linear or norm; its name there; its path here.
Layer = tuple[str, str, str]


def import_weights(path: str | Path, layout: str, *, skeleton: str = "mpii_16", new_head: bool = False) -> Weights:
    """Reads a checkpoint of PyTorch, or a .safetensors file, in one of ``LAYOUTS``.

    Stacks, features and residual blocks are those of the file. Half precision becomes float32, and what DataParallel
    puts before names is dropped. Nothing in the file is run, see ``torch_files``.

    Args:
        path: of the file.
        layout: whose network it is.
        skeleton: of its maps, by name.
        new_head: the file's maps are of other joints: leave their layers out, and begin with fresh ones, which have to
            be trained (``start`` of an experiment).

    Returns:
        Weights with an experiment that says how crops are made: 256 pixels, and the mean colour of the layout.

    Raises:
        TorchFileError: the file cannot be read.
        WeightsError: it has another layout, with the arrays that are missing, unknown, or of another shape; or another
            number of joints than the skeleton.
    """
    if layout not in LAYOUTS:
        raise WeightsError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    tensors = {_WRAPPERS.sub("", name): array for name, array in read_tensors(path).items()}
    family = "princeton" if layout == "princeton" else "bearpaw"
    config, joints = _architecture(tensors, family, path)
    try:
        wanted = skeleton_named(skeleton)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if joints != wanted.size and not new_head:
        raise WeightsError(
            f"{path}: its maps are of {joints} joints, {skeleton} has {wanted.size}: name their skeleton, or leave the "
            "layers of the maps out (new_head, --new-head) and train with these weights as start"
        )
    layers = list(_princeton(config) if family == "princeton" else _bearpaw(config))
    expected = flatten_variables(hourglass_shapes(config, joints=joints))
    arrays = _converted(tensors, layers, expected, family, path)
    if new_head:
        fresh = flatten_variables(init_hourglass(jax.random.key(0), config, joints=wanted.size))
        arrays |= {name: array for name, array in fresh.items() if "heatmaps" in name}
    name = re.sub(r"\.(pth|pt|tar|safetensors)\b", "", Path(path).name)
    # Both were trained on Gaussians of this deviation, by which DARK smooths.
    experiment = Experiment(name=name, skeleton=skeleton, model=config, optim=OptimConfig(sigma=1.0))
    return Weights(experiment, unflatten_variables(arrays))


def import_localization(path: str | Path, sppe: Weights) -> Weights:
    """Reads a ResNet-18 of torchvision's key names as the STN's localization network in front of an estimator.

    Shortcuts have a batch norm there and none here: with its running statistics it goes into their convolution, so
    that prediction is the same. A head of six outputs is theta, as ``affine_grid`` takes it, of a network that sees RGB
    in [0, 1]. Any other head is left out, and theta begins as the identity; such a network was trained on normalised
    colours, and that goes into its first layer (outside the picture, where a convolution sees zeros, they are black
    then instead of grey).

    Args:
        path: of the checkpoint, see ``import_weights``.
        sppe: the hourglass behind it; an STN that it has already is replaced.

    Returns:
        Weights of both, to train from (``start`` of an experiment with ``localization.kind=resnet18``).

    Raises:
        TorchFileError: the file cannot be read.
        WeightsError: it has another layout, or the estimator is no hourglass.
    """
    if not isinstance(sppe.experiment.model, HourglassConfig):
        raise WeightsError(
            f"{sppe.experiment.name}: an STN needs an hourglass behind it, not {sppe.experiment.model.kind}"
        )
    tensors = {_WRAPPERS.sub("", name): array for name, array in read_tensors(path).items()}
    config = LocalizationConfig(kind="resnet18")
    expected = flatten_variables(localization_shapes(config, sppe.experiment.model.input_size))
    tensors, problems = _for_localization(tensors)
    arrays = _converted(tensors, list(_resnet18()), expected, "resnet18", path, problems)
    experiment = dataclasses.replace(sppe.experiment, localization=config)
    both = join_parts(sppe_of(sppe.variables, sppe.experiment), unflatten_variables(arrays))
    return Weights(experiment, both)


def _for_localization(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays of torchvision's ResNet-18 as those of a network whose convolutions have biases and whose end is theta.

    Besides, what is wrong with those that are not handed on.
    """
    tensors, problems = dict(tensors), []
    for name in [name for name, array in tensors.items() if array.ndim == 4 and "downsample" not in name]:
        tensors.setdefault(name.replace(".weight", ".bias"), np.zeros(len(tensors[name]), np.float32))
    for stage in (2, 3, 4):
        problems += _fold_norm(tensors, f"layer{stage}.0.downsample", 64 * 2 ** (stage - 1))
    if tensors.get("fc.weight", np.zeros(0)).shape[:1] == (6,):
        if tensors.get("fc.bias", np.zeros(0)).shape == (6,):
            tensors["fc.bias"] = tensors["fc.bias"] - np.eye(2, 3).ravel()
        return tensors, problems
    tensors |= {"fc.weight": np.zeros((6, 512), np.float32), "fc.bias": np.zeros(6, np.float32)}
    if tensors.get("conv1.weight", np.zeros(0)).shape == (64, 3, 7, 7):
        kernel = tensors["conv1.weight"] / np.array(_IMAGENET_DEVIATION)[:, None, None]
        shift = (kernel * np.array(_IMAGENET_MEAN)[:, None, None]).sum((1, 2, 3))
        tensors |= {"conv1.weight": kernel, "conv1.bias": tensors["conv1.bias"] - shift}
    return tensors, problems


def _fold_norm(tensors: dict[str, np.ndarray], name: str, features: int) -> list[str]:
    """Makes one convolution of ``name.0`` and the batch norm ``name.1``; returns what is wrong with their arrays."""
    shapes = {f"{name}.0.weight": (features, features // 2, 1, 1)}
    shapes |= {f"{name}.1.{part}": (features,) for part in ("weight", "bias", "running_mean", "running_var")}
    problems = [f"missing {key}" for key in shapes if key not in tensors]
    for key, shape in shapes.items():
        found = tensors.setdefault(key, np.ones(shape, np.float32))
        if found.shape != shape:
            problems.append(f"{key} has the shape {found.shape}, expected {shape}")
            tensors[key] = np.ones(shape, np.float32)
    kernel, scale, bias, mean, variance = (tensors.pop(key) for key in shapes)
    factor = scale / np.sqrt(variance + 1e-5)
    tensors[f"{name}.weight"], tensors[f"{name}.bias"] = kernel * factor[:, None, None, None], bias - mean * factor
    tensors.pop(f"{name}.1.num_batches_tracked", None)
    return problems


def _resnet18() -> Iterator[Layer]:
    yield from [("conv", "conv1", "_ConvNorm_0/Conv_0"), ("norm", "bn1", "_ConvNorm_0/Norm_0")]
    for block in range(8):
        there, here = f"layer{block // 2 + 1}.{block % 2}", f"_BasicBlock_{block}"
        for number in range(2):
            yield "conv", f"{there}.conv{number + 1}", f"{here}/_ConvNorm_{number}/Conv_0"
            yield "norm", f"{there}.bn{number + 1}", f"{here}/_ConvNorm_{number}/Norm_0"
        if block in (2, 4, 6):
            yield "conv", f"{there}.downsample", f"{here}/shortcut"
    yield "linear", "fc", "theta_zero"


def _architecture(tensors: dict[str, np.ndarray], family: str, path: str | Path) -> tuple[HourglassConfig, int]:
    """The network that the names of a file belong to, and its number of joints."""
    output, first = ("outs.{}.conv", "hgs.0.0.up1.conv1.conv") if family == "princeton" else ("score.{}", "fc.0.0")
    stacks = sum(output.format(number) + ".weight" in tensors for number in range(100))
    if not stacks or f"{first}.weight" not in tensors:
        some = ", ".join(list(tensors)[:3])
        raise WeightsError(
            f"{path}: not of layout {family}, which has {output.format(0)}.weight; it begins with {some}"
        )
    head, block = (tensors[f"{name}.weight"] for name in (output.format(0), first))
    for name, array in ((output.format(0), head), (first, block)):
        if array.ndim != 4:
            raise WeightsError(
                f"{path}: not of layout {family}: {name}.weight has the shape {array.shape}, expected four axes"
            )
    settings: dict[str, Any] = {"stacks": stacks, "features": block.shape[1]}
    if family != "princeton":
        residuals = sum(f"res.0.{number}.conv1.weight" in tensors for number in range(100))
        settings |= {"residuals": residuals, "mean": _BEARPAW_MEAN, "layout": "bearpaw"}
    try:
        return HourglassConfig(**settings), len(head)
    except ConfigError as error:
        raise WeightsError(f"{path}: not of layout {family}: {error}") from None


def _princeton(config: HourglassConfig) -> Iterator[Layer]:
    yield from [("conv", "pre.0.conv", "Conv_0"), ("norm", "pre.0.bn", "Norm_0")]
    for number, name in enumerate((1, 3, 4)):
        yield from _residual_of_princeton(f"pre.{name}", f"Residual_{number}")
    for number in range(config.stacks):
        stack = f"stack_{number}"
        yield from _hourglass_of_princeton(f"hgs.{number}.0", f"{stack}/Hourglass_0", config.depth)
        yield from _residual_of_princeton(f"features.{number}.0", f"{stack}/Residual_0")
        yield "dense", f"features.{number}.1.conv", f"{stack}/Dense_0"
        yield "norm", f"features.{number}.1.bn", f"{stack}/Norm_0"
        yield "dense", f"outs.{number}.conv", f"{stack}/heatmaps"
        if number < config.stacks - 1:
            yield "dense", f"merge_features.{number}.conv.conv", f"{stack}/merge_features"
            yield "dense", f"merge_preds.{number}.conv.conv", f"{stack}/merge_heatmaps"


def _hourglass_of_princeton(there: str, here: str, depth: int) -> Iterator[Layer]:
    yield from _residual_of_princeton(f"{there}.up1", f"{here}/Residual_0")
    yield from _residual_of_princeton(f"{there}.low1", f"{here}/Residual_1")
    if depth > 1:
        yield from _hourglass_of_princeton(f"{there}.low2", f"{here}/Hourglass_0", depth - 1)
    else:
        yield from _residual_of_princeton(f"{there}.low2", f"{here}/Residual_2")
    yield from _residual_of_princeton(f"{there}.low3", f"{here}/Residual_{2 if depth > 1 else 3}")


def _residual_of_princeton(there: str, here: str) -> Iterator[Layer]:
    yield from _residual(there, here, ".conv")
    yield "dense", f"{there}.skip_layer.conv", f"{here}/shortcut"


def _bearpaw(config: HourglassConfig) -> Iterator[Layer]:
    yield from [("conv", "conv1", "Conv_0"), ("norm", "bn1", "Norm_0")]
    for number in range(3):
        yield from _residual_of_bearpaw(f"layer{number + 1}.0", f"Residual_{number}")
    blocks = range(config.residuals)
    for number in range(config.stacks):
        stack = f"stack_{number}"
        yield from _hourglass_of_bearpaw(f"hg.{number}.hg", f"{stack}/Hourglass_0", config.depth, config.residuals)
        for block in blocks:
            yield from _residual_of_bearpaw(f"res.{number}.{block}", f"{stack}/Residual_{block}")
        yield "dense", f"fc.{number}.0", f"{stack}/Dense_0"
        yield "norm", f"fc.{number}.1", f"{stack}/Norm_0"
        yield "dense", f"score.{number}", f"{stack}/heatmaps"
        if number < config.stacks - 1:
            yield "dense", f"fc_.{number}", f"{stack}/merge_features"
            yield "dense", f"score_.{number}", f"{stack}/merge_heatmaps"


def _hourglass_of_bearpaw(there: str, here: str, depth: int, residuals: int) -> Iterator[Layer]:
    # Levels are numbered from the innermost; of each: 0 beside it, 1 below, 2 after what is below; innermost 3 as well.
    level, places = f"{there}.{depth - 1}", (0, 1, 2) if depth > 1 else (0, 1, 3, 2)
    for number, place in enumerate(places):
        for block in range(residuals):
            yield from _residual_of_bearpaw(f"{level}.{place}.{block}", f"{here}/Residual_{number * residuals + block}")
    if depth > 1:
        yield from _hourglass_of_bearpaw(there, f"{here}/Hourglass_0", depth - 1, residuals)


def _residual_of_bearpaw(there: str, here: str) -> Iterator[Layer]:
    yield from _residual(there, here, "")
    yield "dense", f"{there}.downsample.0", f"{here}/shortcut"


def _residual(there: str, here: str, suffix: str) -> Iterator[Layer]:
    for number, (kind, layer) in enumerate((("dense", "Dense_0"), ("conv", "Conv_0"), ("dense", "Dense_1"))):
        yield "norm", f"{there}.bn{number + 1}", f"{here}/Norm_{number}"
        yield kind, f"{there}.conv{number + 1}{suffix}", f"{here}/{layer}"


def _converted(
    tensors: dict[str, np.ndarray],
    layers: list[Layer],
    expected: dict[str, jax.ShapeDtypeStruct],
    family: str,
    path: str | Path,
    problems: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """The arrays under the names of this package; WeightsError lists all that do not fit, besides known problems."""
    left, arrays, problems = dict(tensors), {}, list(problems)
    for kind, there, here in layers:
        # princeton has a shortcut in every block, and uses it where the number of features changes.
        unused = here.endswith("/shortcut") and f"params/{here}/kernel" not in expected
        for theirs, ours in _arrays_of(kind, there, here):
            found = left.pop(theirs, None)
            if unused and (found is None or family == "princeton"):
                continue
            if found is None:
                problems.append(f"missing {theirs}")
                continue
            with np.errstate(over="ignore"):  # what is too large is infinite, and refused below
                array = _turned(kind, found).astype(np.float32)
            if ours not in expected or array.shape != expected[ours].shape:
                shape = expected[ours].shape if ours in expected else "none"
                problems.append(f"{theirs} has the shape {found.shape}, turned {array.shape}, expected {shape}")
            elif not np.isfinite(array).all():
                problems.append(f"{theirs} holds values that are not finite")
            arrays[ours] = array
    problems += [f"unknown {name}" for name in left if not name.endswith("num_batches_tracked")]
    problems += [f"nothing for {name}" for name in expected if name not in arrays and not problems]
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise WeightsError(f"{path}: not of layout {family}: {shown}")
    return arrays


def _arrays_of(kind: str, there: str, here: str) -> list[tuple[str, str]]:
    """Each array of a layer by its name there and here."""
    if kind != "norm":
        return [(f"{there}.weight", f"params/{here}/kernel"), (f"{there}.bias", f"params/{here}/bias")]
    params, statistics = f"params/{here}/BatchNorm_0", f"batch_stats/{here}/BatchNorm_0"
    return [
        (f"{there}.weight", f"{params}/scale"),
        (f"{there}.bias", f"{params}/bias"),
        (f"{there}.running_mean", f"{statistics}/mean"),
        (f"{there}.running_var", f"{statistics}/var"),
    ]


def _turned(kind: str, array: np.ndarray) -> np.ndarray:
    """A kernel in the order of this package; anything else as it is."""
    if array.ndim != 4:
        return array.T if kind == "linear" else array
    turned = array.transpose(2, 3, 1, 0)
    return turned[0, 0] if kind == "dense" and turned.shape[:2] == (1, 1) else turned
