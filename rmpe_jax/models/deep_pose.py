"""DeepPose: joints by regression, and the cascade that refines each joint on a crop around its last estimate.

Frame: outputs are positions normalised by the picture's sides, (x + 0.5) / width - 0.5, so that it spans [-0.5, 0.5]:
the paper's eq. 1, and half the unit frame of ``geometry``.

Reference: Toshev and Szegedy, "DeepPose", CVPR 2014, section 3. Differs in that batch norm stands where the paper has
local response normalisation, which lets it train from scratch; in the ResNet backbones; and in a third number for each
joint, its confidence, trained beside the positions without changing them. Parameters at 14 joints: 58.5 M with the
AlexNet-like network at 220 pixels (the paper says about 40 M), 11.2 M with ResNet-18, 23.6 M with ResNet-50.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from rmpe_jax.config import DeepPoseConfig
from rmpe_jax.geometry.affine import compose, image_from_crop, pixels_from_unit, transform_points, unit_from_pixels
from rmpe_jax.geometry.sampling import crop_image
from rmpe_jax.metrics.pck import torso_length
from rmpe_jax.models.layers import Norm, centred, fill_variables
from rmpe_jax.skeleton import Skeleton

Variables = dict[str, Any]
# The AlexNet-like network (section 3.1): features, kernel, stride, and whether a 3x3 pooling of stride 2 follows.
_ALEXNET = ((96, 11, 4, True), (256, 5, 1, True), (384, 3, 1, False), (384, 3, 1, False), (256, 3, 1, True))
_HIDDEN = 4096
# Residual blocks in each of the four stages (He et al., CVPR 2016, table 1).
_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


class _ConvNorm(nn.Module):
    """Convolution without bias, and batch norm."""

    features: int
    kernel: int
    stride: int
    train: bool
    axis_name: str | None
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        pad, dtype = (self.kernel // 2, self.kernel // 2), jnp.dtype(self.dtype)
        sides, strides = (self.kernel, self.kernel), (self.stride, self.stride)
        x = nn.Conv(self.features, sides, strides, padding=(pad, pad), use_bias=False, dtype=dtype)(x)
        return Norm(self.train, self.axis_name, self.dtype)(x)


class _Block(nn.Module):
    """ResNet's block: two 3x3 convolutions, or with ``bottleneck`` 1x1, 3x3 and 1x1 to four times the features."""

    features: int
    stride: int
    bottleneck: bool
    train: bool
    axis_name: str | None
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        layer = partial(_ConvNorm, train=self.train, axis_name=self.axis_name, dtype=self.dtype)
        out = self.features * (4 if self.bottleneck else 1)
        if self.bottleneck:
            y = nn.relu(layer(self.features, 1, 1)(x))
            y = nn.relu(layer(self.features, 3, self.stride)(y))
            y = layer(out, 1, 1)(y)
        else:
            y = nn.relu(layer(self.features, 3, self.stride)(x))
            y = layer(out, 3, 1)(y)
        if x.shape[-1] != out or self.stride != 1:
            x = layer(out, 1, self.stride, name="shortcut")(x)
        return nn.relu(x + y)


class Regressor(nn.Module):
    """A picture in, for each of k joints x, y, normalised, and the logit of its confidence out."""

    config: DeepPoseConfig
    joints: int
    train: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W 3"], kept: Float[Array, "b 2 f"] | None = None
    ) -> tuple[Float[Array, "b k 2"], Float[Array, "b k"]]:
        """Positions and logits; ``kept`` multiplies the two hidden layers of the AlexNet-like network (dropout)."""
        x = centred(images, self.config)
        x = self._alexnet(x, kept) if self.config.backbone == "alexnet" else self._resnet(x)
        # Named so that ``fill_variables`` leaves it at zero: at first every joint is in the middle.
        positions = nn.Dense(2 * self.joints, name="positions_zero")(x.astype(jnp.float32))
        # What the confidence learns must not reach the positions, whose loss is the paper's.
        logits = nn.Dense(self.joints, name="confidence")(jax.lax.stop_gradient(x.astype(jnp.float32)))
        return positions.reshape(-1, self.joints, 2), logits

    def _layer(self):
        config = self.config
        return partial(_ConvNorm, train=self.train, axis_name=self.axis_name, dtype=config.dtype)

    def _alexnet(self, x, kept):
        layer, width = self._layer(), self.config.width
        for features, kernel, stride, pool in _ALEXNET:
            x = nn.relu(layer(round(features * width), kernel, stride)(x))
            if pool:
                x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for number in range(2):
            x = nn.relu(nn.Dense(round(_HIDDEN * width), dtype=jnp.dtype(self.config.dtype))(x))
            if kept is not None:
                x = x * kept[:, number].astype(x.dtype)
        return x

    def _resnet(self, x):
        layer, config = self._layer(), self.config
        bottleneck = config.backbone == "resnet50"
        common = {"train": self.train, "axis_name": self.axis_name, "dtype": config.dtype}
        x = nn.relu(layer(round(64 * config.width), 7, 2)(x))
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for stage, blocks in enumerate(_BLOCKS[config.backbone]):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = _Block(round(64 * config.width) * 2**stage, stride, bottleneck, **common)(x)
        return x.mean((1, 2))


def stage_name(number: int) -> str:
    """The name of a stage's variables, from 0."""
    return f"stage_{number}"


def error_name(number: int) -> str:
    """The name of the mean and variance of a stage's errors."""
    return f"error_{number}"


def dropout_masks(key: Array, config: DeepPoseConfig) -> Float[Array, "2 f"]:
    """What multiplies the hidden layers of one example: 0, or 1 / (1 - dropout)."""
    kept = jax.random.bernoulli(key, 1 - config.dropout, (2, round(_HIDDEN * config.width)))
    return kept / (1 - config.dropout)


def deep_pose_shapes(config: DeepPoseConfig, *, joints: int) -> Variables:
    """The shapes and dtypes of all stages' variables: ``{"params": {"stage_0": ...}, "batch_stats": {...}}``.

    Besides, ``batch_stats`` holds for each stage but the last the mean and variance of its errors, from which the
    displacements that the next stage trains on are drawn.
    """
    images = jax.ShapeDtypeStruct((1, *config.input_size, 3), jnp.float32)
    one = jax.eval_shape(Regressor(config, joints).init, jax.random.key(0), images)
    found: Variables = {
        collection: {stage_name(number): content for number in range(config.stages)}
        for collection, content in one.items()
    }
    error = jax.ShapeDtypeStruct((joints, 2), jnp.float32)
    for number in range(config.stages - 1):
        found["batch_stats"][error_name(number)] = {"mean": error, "var": error}
    return found


def init_deep_pose(key: Array, config: DeepPoseConfig, *, joints: int) -> Variables:
    """Fresh variables of all stages, see ``fill_variables``.

    Args:
        key: a concrete JAX PRNG key.
        config: the architecture.
        joints: positions that each stage gives.
    """
    return fill_variables(key, deep_pose_shapes(config, joints=joints))


def stage_of(variables: Variables, number: int) -> Variables:
    """The variables of one stage's network."""
    return {collection: content[stage_name(number)] for collection, content in variables.items()}


def apply_stage(
    variables: Variables, images: Float[Array, "b H W 3"], config: DeepPoseConfig, *, joints: int
) -> tuple[Float[Array, "b k 2"], Float[Array, "b k"]]:
    """Normalised positions and logits of one stage, with the running statistics of batch norm.

    Args:
        variables: of the stage, see ``stage_of``.
        images: RGB in [0, 1] at ``config.input_size``.
        config: the architecture.
        joints: positions that it gives.
    """
    found: Any = Regressor(config, joints).apply(variables, images)
    return found


def apply_stage_training(
    variables: Variables,
    images: Float[Array, "b H W 3"],
    config: DeepPoseConfig,
    *,
    joints: int,
    kept: Float[Array, "b 2 f"] | None = None,
    axis_name: str | None = None,
) -> tuple[tuple[Float[Array, "b k 2"], Float[Array, "b k"]], Variables]:
    """The same with the batch's own statistics, and the updated running statistics.

    Args:
        variables: of the stage.
        images: RGB in [0, 1].
        config: the architecture.
        joints: positions that it gives.
        kept: masks of dropout, see ``dropout_masks``; None for none.
        axis_name: mapped axis over which the statistics are averaged.
    """
    module = Regressor(config, joints, train=True, axis_name=axis_name)
    found, updates = module.apply(variables, images, kept, mutable=["batch_stats"])
    return found, dict(updates)["batch_stats"]


def points_from_normalised(positions: Float[Array, "*n 2"], size: tuple[int, int]) -> Float[Array, "*n 2"]:
    """Pixels of a picture of ``size`` (height, width) from normalised positions: -0.5 and 0.5 are its edges."""
    return transform_points(pixels_from_unit(size), 2 * positions)


def normalised_from_points(points: Float[Array, "*n 2"], size: tuple[int, int]) -> Float[Array, "*n 2"]:
    """The opposite of ``points_from_normalised``."""
    return transform_points(unit_from_pixels(size), points) / 2


def pose_diameter(
    points: Float[Array, "k 2"], labelled: Bool[Array, " k"], skeleton: Skeleton, *, size: tuple[int, int]
) -> Float[Array, ""]:
    """The length of the torso's diagonal in a crop, by which the cascade measures; at least a tenth of the crop's side.

    Where neither diagonal is known, a third of the side: about what a person's is in a crop of the person.
    """
    side = float(min(size))
    length = torso_length(points, labelled, skeleton)
    return jnp.where(length > 0, jnp.maximum(length, side / 10), side / 3)


def surroundings(
    points: Float[Array, "k 2"], diameter: Float[Array, ""], config: DeepPoseConfig
) -> Float[Array, "k 2 3"]:
    """``crop_from_joint``: the map from what a later stage sees of each joint to the person's crop.

    The square around a joint has sides of ``config.side`` diameters (section 3.2; its sigma).
    """
    half = config.side * diameter / 2
    boxes = jnp.concatenate([points - half, points + half], -1)
    return jax.vmap(lambda box: image_from_crop(box, config.input_size))(boxes)


def estimate_positions(
    variables: Variables,
    image: Num[Array, "H W 3"],
    crops: Float[Array, "p h w 3"],
    maps: Float[Array, "p 2 3"],
    config: DeepPoseConfig,
    *,
    skeleton: Skeleton,
    flip_test: bool,
    levels: int = 1,
) -> tuple[Float[Array, "p k 2"], Float[Array, "p k"]]:
    """The cascade at inference (section 3.2): joints in picture pixels, and how likely each is right.

    Args:
        variables: of all stages.
        image: RGB, 0 to 255; the later stages sample it.
        crops: of p people, RGB in [0, 1] at ``config.input_size``.
        maps: ``image_from_crop`` of each.
        config: the architecture.
        skeleton: of the joints.
        flip_test: average with mirrored crops at every stage.
        levels: see ``crop_image``.

    Returns:
        Points, and scores in [0, 1]: the last stage's probability that a joint is within a fifth of the torso's
        diagonal, which is what PCK@0.2 counts.
    """
    size, joints = config.input_size, skeleton.size
    look = partial(_look, variables, config=config, skeleton=skeleton, flip_test=flip_test)
    positions, logits = look(0, crops)
    points = points_from_normalised(positions, size)
    every = jnp.ones(joints, bool)
    for number in range(1, config.stages):
        diameter = jax.vmap(lambda pose: pose_diameter(pose, every, skeleton, size=size))(points)
        crop_from_joint = jax.vmap(partial(surroundings, config=config))(points, diameter)
        image_from_joint = jax.vmap(lambda outer, inner: jax.vmap(partial(compose, outer))(inner))(
            maps, crop_from_joint
        )
        flat = image_from_joint.reshape(-1, 2, 3)
        seen = jax.vmap(lambda matrix: crop_image(image, matrix, size, levels=levels) / 255)(flat)
        found, all_logits = look(number, seen)
        # Of all the joints that a stage gives, the one whose surroundings it saw.
        found, logits = (own_joint(array.reshape(crops.shape[0], joints, joints, -1)) for array in (found, all_logits))
        logits = logits[..., 0]
        points = jax.vmap(jax.vmap(transform_points))(crop_from_joint, points_from_normalised(found, size))
    return jax.vmap(transform_points)(maps, points), jax.nn.sigmoid(logits)


def own_joint(found: Float[Array, "p k k d"]) -> Float[Array, "p k d"]:
    """Of what was found in the surroundings of each joint, the part about that joint."""
    return jnp.diagonal(found, axis1=1, axis2=2).swapaxes(1, 2)


def _look(variables, number, images, *, config, skeleton, flip_test):
    """One stage's positions and logits; with the flip test the mean with those of the mirrored pictures."""
    stage, count = stage_of(variables, number), images.shape[0]
    if not flip_test:
        return apply_stage(stage, images, config, joints=skeleton.size)
    both = jnp.concatenate([images, images[:, :, ::-1]])
    positions, logits = apply_stage(stage, both, config, joints=skeleton.size)
    order, mirror = jnp.array(skeleton.flip_order), jnp.array([-1.0, 1.0])[None, None]
    positions = (positions[:count] + positions[count:][:, order] * mirror) / 2
    return positions, (logits[:count] + logits[count:][:, order]) / 2
