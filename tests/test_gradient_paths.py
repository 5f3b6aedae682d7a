import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tiny
from checks import assert_close, assert_gradients

from rmpe_jax.config import LocalizationConfig
from rmpe_jax.geometry.affine import compose, invert_affine, transform_points
from rmpe_jax.geometry.remapping import crop_from_stn, stn
from rmpe_jax.geometry.sampling import crop_image, pixel_grid
from rmpe_jax.models import rmpe
from rmpe_jax.models.hourglass import init_hourglass
from rmpe_jax.models.localization import init_localization
from rmpe_jax.models.rmpe import join_parts
from rmpe_jax.train import gradient_paths as module
from rmpe_jax.train.gradient_paths import PATHS, ByPath, Scene, gradient_paths, remapping_loss
from rmpe_jax.train.losses import heatmap_loss

EXPERIMENT = dataclasses.replace(tiny.EXPERIMENT, localization=LocalizationConfig(kind="small", parallel_weight=0.5))
PLAIN = dataclasses.replace(EXPERIMENT, localization=LocalizationConfig(parallel_weight=0.5))
SIZE, MAP, JOINTS = EXPERIMENT.model.input_size, EXPERIMENT.model.output_size, tiny.JOINTS
THETA = [[0.67, 0.23, 0.16], [-0.32, 0.89, -0.12]]
# Bilinear sampling reads a plane without kinks; only the SDTN's samples of the maps have some, and these are far off.
MARGIN = 0.1


def scene():
    """A person on a picture whose channels are planes; the crop and what is near it lie inside."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :70]
    image = np.stack([2.0 * x + y, 150 - x + 1.5 * y, 200 - 2.0 * y - 0.5 * x], -1)
    targets, centred = (oracles.encode(rng.uniform(0, 3, (JOINTS, 2)), [True] * JOINTS, MAP, 1.0) for _ in range(2))
    # The box from (22, 18) to (47, 43).
    side = 25 / SIZE[0]
    image_from_crop = np.array([[side, 0, 22 + side / 2], [0, side, 18 + side / 2]])
    return Scene(
        *(jnp.array(array, float) for array in (image, image_from_crop, targets, centred)),
        jnp.array(rng.random(JOINTS) < 0.8),
    )


def smooth_network(variables, images, config, *, joints):
    """A stand-in for the hourglass, without kinks and in the precision of its arguments: means of 4 x 4 pixels."""
    count, height, width, _ = images.shape
    means = images.reshape(count, height // 4, 4, width // 4, 4, 3).mean((2, 4))
    return jnp.tanh(means @ variables["mix"])[None]


@pytest.fixture
def smooth(monkeypatch):
    """Two stand-in networks: variables, frozen."""
    for home in (module, rmpe):
        monkeypatch.setattr(home, "apply_hourglass", smooth_network)
    rng = np.random.default_rng(1)
    return [{"mix": rng.normal(size=(3, JOINTS))} for _ in range(2)]


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@functools.cache
def compiled(network, experiment, paths):
    """``gradient_paths`` through a network, which is in the module when it is traced."""
    return jax.jit(functools.partial(gradient_paths, experiment=experiment, paths=paths))


def split(variables, frozen, experiment=PLAIN, paths=PATHS, at=None):
    """The loss and its gradient by paths."""
    run = compiled(module.apply_hourglass, experiment, paths)
    return run(jnp.array(THETA, float), variables, at or scene(), frozen=frozen)


def seen():
    """What the STN samples of the picture."""
    at = scene()
    run = jax.jit(lambda theta: crop_image(at.image, compose(at.image_from_crop, crop_from_stn(theta, SIZE)), SIZE))
    return run(jnp.array(THETA, float))[None] / 255


def whole(variables, frozen, experiment=PLAIN):
    """The gradient in the one theta."""

    def loss(theta):
        alike = ByPath(theta, theta, theta)
        return remapping_loss(alike, variables, scene(), experiment=experiment, frozen=frozen)

    return jax.jit(jax.grad(loss))(jnp.array(THETA, float))


def test_the_theta_of_these_tests_is_off_the_kinks():
    places = jax.jit(lambda theta: transform_points(crop_from_stn(invert_affine(theta), MAP), pixel_grid(MAP)))
    place = np.asarray(places(jnp.array(THETA)))
    assert np.abs(place - np.round(place)).min() > MARGIN
    assert ((place > 0) & (place < 3)).any()


@pytest.mark.slow
@pytest.mark.parametrize("beside", [True, False])
def test_the_parts_are_the_whole_gradient(smooth, double, beside):
    variables, frozen = smooth[0], smooth[1] if beside else None
    _, parts = split(variables, frozen)
    assert parts.whole.dtype == jnp.float64
    np.testing.assert_allclose(parts.whole, whole(variables, frozen), rtol=1e-12, atol=1e-14)
    sizes = [np.abs(getattr(parts, path)).max() for path in PATHS]
    assert min(sizes[:2]) > 1e-3 and (sizes[2] > 1e-3 if beside else sizes[2] == 0)


def test_each_part_is_the_gradient_with_the_other_thetas_held(smooth, double):
    variables, frozen = smooth

    def alone(theta):
        def loss(moving, path):
            held = ByPath(*[jax.lax.stop_gradient(theta)] * 3)
            places = dataclasses.replace(held, **{path: moving})
            return remapping_loss(places, variables, scene(), experiment=PLAIN, frozen=frozen)

        return [jax.grad(loss)(theta, path) for path in PATHS]

    parts, expected = split(variables, frozen)[1], jax.jit(alone)(jnp.array(THETA))
    for path, gradient in zip(PATHS, expected, strict=True):
        np.testing.assert_allclose(getattr(parts, path), gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_each_part_is_that_of_finite_differences(smooth):
    def loss(sampling, inverse, parallel):
        variables, frozen = smooth
        return remapping_loss(ByPath(sampling, inverse, parallel), variables, scene(), experiment=PLAIN, frozen=frozen)

    assert_gradients(loss, THETA, THETA, THETA)


def test_the_part_through_the_inverse_is_the_closed_form_of_the_paper(smooth, double):
    variables, at, theta = smooth[0], scene(), jnp.array(THETA)
    maps = smooth_network(variables, seen(), PLAIN.model, joints=JOINTS)[0, 0]

    def loss(gamma):
        back = stn(maps, gamma, MAP)[None]
        weight = PLAIN.optim.positive_weight
        return heatmap_loss(back, at.targets, at.labelled, positive_weight=weight) / at.labelled.sum()

    by_gamma = jax.jit(jax.grad(loss))(invert_affine(theta))
    expected = oracles.gradient_of_inverse(np.array(THETA), np.asarray(by_gamma))
    np.testing.assert_allclose(split(variables, None)[1].inverse, expected, rtol=1e-10)


@pytest.mark.slow
def test_a_path_that_is_switched_off_is_exactly_zero(smooth):
    loss, parts = split(*smooth)
    same, found = split(*smooth, paths=("inverse",))
    assert_close([same, found.inverse], [loss, parts.inverse])
    np.testing.assert_array_equal([found.sampling, found.parallel], 0)


def test_an_unknown_path_is_refused(smooth):
    with pytest.raises(ValueError, match="expected paths of sampling, inverse, parallel, got 'sdtn'"):
        split(*smooth, paths=("sampling", "sdtn"))


def test_the_weight_of_the_parallel_sppe_multiplies_its_part_alone(smooth):
    heavier = dataclasses.replace(PLAIN, localization=LocalizationConfig(parallel_weight=1.5))
    (loss, parts), (larger, found) = split(*smooth), split(*smooth, heavier)
    assert larger > loss
    assert_close(jax.tree.leaves(found), [parts.sampling, parts.inverse, 3 * parts.parallel])


def test_at_equal_thetas_the_loss_is_that_of_the_maps_by_a_loop(smooth):
    (variables, frozen), at = smooth, scene()
    maps, beside = (
        np.asarray(smooth_network(one, seen(), PLAIN.model, joints=JOINTS)[0, 0], float) for one in (variables, frozen)
    )
    back = oracles.stn(maps, invert_affine(jnp.array(THETA)), MAP, "zeros", False)
    total = oracles.heatmap_loss(back[None], np.asarray(at.targets), at.labelled, 10.0)
    total += 0.5 * oracles.heatmap_loss(beside[None], np.asarray(at.centred), at.labelled, 10.0)
    assert_close(split(variables, frozen)[0], total / at.labelled.sum(), rtol=1e-4)


def test_a_person_without_labels_gives_no_gradient(smooth):
    nobody = dataclasses.replace(scene(), labelled=jnp.zeros(JOINTS, bool))
    loss, parts = split(*smooth, at=nobody)
    assert loss == 0 and not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(parts))


def test_vmap_over_thetas_is_a_loop(smooth):
    run = functools.partial(gradient_paths, variables=smooth[0], scene=scene(), frozen=smooth[1], experiment=PLAIN)
    thetas = jnp.stack([jnp.array(THETA), jnp.eye(2, 3) + 0.05])
    losses, parts = jax.jit(jax.vmap(run))(thetas)
    loss, first = split(*smooth)
    assert_close(losses[0], loss)
    assert_close([leaf[0] for leaf in jax.tree.leaves(parts)], jax.tree.leaves(first))
    assert parts.whole.shape == (2, 2, 3)


@pytest.mark.slow
def test_the_hourglass_has_the_parts_of_finite_differences():
    # Its activations are float32, with kinks in every ReLU and max pooling: a step of 1e-3 and 5 % are what a
    # difference of two losses can tell. The stand-in above is held to float64.
    hourglass = init_hourglass(jax.random.key(0), EXPERIMENT.model, joints=JOINTS)
    frozen = init_hourglass(jax.random.key(5), EXPERIMENT.model, joints=JOINTS)
    variables = join_parts(hourglass, init_localization(jax.random.key(1), EXPERIMENT.localization, SIZE))
    _, parts = split(variables, frozen, EXPERIMENT)
    assert_close(parts.whole, whole(variables, frozen, EXPERIMENT), rtol=1e-3, atol=1e-3)

    @jax.jit
    @jax.vmap
    def loss(theta):
        return remapping_loss(theta, variables, scene(), experiment=EXPERIMENT, frozen=frozen)

    step = 1e-3
    for path in PATHS:
        part = getattr(parts, path)
        along = part / jnp.linalg.norm(part)
        alike = jnp.stack([jnp.array(THETA)] * 2)
        moved = alike + step * jnp.stack([along, -along])
        up, down = loss(dataclasses.replace(ByPath(alike, alike, alike), **{path: moved}))
        assert (up - down) / (2 * step) == pytest.approx(float(jnp.linalg.norm(part)), rel=0.05)
