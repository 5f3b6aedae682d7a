import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_gradients, assert_same_under_jit_and_vmap
from scipy.ndimage import affine_transform

from rmpe_jax.geometry.affine import (
    compose,
    identity_affine,
    image_from_crop,
    invert_affine,
    pixels_from_unit,
    pixels_of_resized,
    transform_points,
)
from rmpe_jax.geometry.remapping import crop_from_stn, sdtn, sdtn_points, stn
from rmpe_jax.geometry.sampling import affine_grid, crop_image, pixel_grid
from rmpe_jax.heatmaps import decode_heatmaps, encode_heatmaps

RAMP = jnp.arange(16.0).reshape(4, 4, 1)  # value 4 y + x
IDENTITY, MIRROR = [[1.0, 0, 0], [0, 1, 0]], [[-1.0, 0, 0], [0, 1, 0]]
SMALLER, SHIFTED = [[0.5, 0, 0], [0, 0.5, 0]], [[1.0, 0, 0.5], [0, 1, 0]]
CONVENTIONS = pytest.mark.parametrize("align_corners", [False, True])
PADDINGS = pytest.mark.parametrize("padding", ["zeros", "border"])
# None of their samples, nor of their inverses', lies within 0.02 pixels of a kink of bilinear sampling.
MARGIN = 0.02
THETA = [[0.88, 0.26, 0.05], [-0.3, 0.79, 0.0]]
SINGULAR = {
    "zero": [[0.0, 0, 0], [0, 0, 0]],
    "line": [[1.0, 2, 0.3], [0.5, 1, 0.1]],
    "almost": [[1e-9, 0, 0.2], [0, 1, -0.1]],
    "almost mirrored": [[-1e-9, 0, 0.2], [0, 1, -0.1]],
    "just inverted": [[1.2e-8, 0, 0.2], [0, 1, -0.1]],
    "tiny": [[1e-5, 0, 0.5], [0, 1e-5, 0.5]],
    "mirrored": [[-1.0, 0.2, 0.1], [0.1, 1, 0]],
}
# Compiled, a function costs these tests a fraction of its operations compiled one by one.
resample = jax.jit(stn, static_argnames=("size", "padding", "align_corners"))
put_back = jax.jit(sdtn, static_argnames=("padding", "align_corners"))
points_back = jax.jit(sdtn_points, static_argnames=("size", "align_corners"))
crop = jax.jit(crop_image, static_argnames="size")
find = jax.jit(decode_heatmaps)


def random_thetas(seed, count, *, angle=0.6, scale=0.25, shift=0.15):
    """Turned, scaled, sheared a little and shifted."""
    rng = np.random.default_rng(seed)
    turn, sizes = rng.uniform(-angle, angle, count), rng.uniform(1 - scale, 1 + scale, (count, 2))
    cos, sin = np.cos(turn), np.sin(turn)
    linear = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], 1) * sizes[:, None]
    return np.concatenate([linear, rng.uniform(-shift, shift, (count, 2, 1))], 2)


def smooth_picture(height, width, channels=2):
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    return jnp.array(np.sin(5 * x / width + 0.4 * c) + np.cos(4 * y / height - 2 * x / width), jnp.float32)


# The STN


@CONVENTIONS
@PADDINGS
def test_the_identity_and_the_mirror_by_hand(padding, align_corners):
    options = {"size": (4, 4), "padding": padding, "align_corners": align_corners}
    assert_close(resample(RAMP, jnp.array(IDENTITY), **options), RAMP)
    assert_close(resample(RAMP, jnp.array(MIRROR), **options), RAMP[:, ::-1])


@CONVENTIONS
@PADDINGS
def test_half_the_frame_is_read_by_hand(padding, align_corners):
    # Positions 0.75, 1.25, 1.75, 2.25 on both axes, in both conventions: the frame shrinks about its centre.
    found = resample(RAMP, jnp.array(SMALLER), size=(4, 4), padding=padding, align_corners=align_corners)
    at = np.array([0.75, 1.25, 1.75, 2.25])
    assert_close(found[..., 0], 4 * at[:, None] + at)


@PADDINGS
def test_a_smaller_output_reads_edges_or_outermost_centres(padding):
    found = [
        resample(RAMP, jnp.array(IDENTITY), size=(2, 2), padding=padding, align_corners=corners)[..., 0]
        for corners in (False, True)
    ]
    assert_close(found[0], [[2.5, 4.5], [10.5, 12.5]])
    assert_close(found[1], [[0, 3], [12, 15]])


@pytest.mark.parametrize(
    ("align_corners", "padding", "row"),
    [
        (False, "zeros", [1, 2, 3, 0]),  # by one pixel: 0.5 x 4 / 2
        (False, "border", [1, 2, 3, 3]),
        (True, "zeros", [0.75, 1.75, 2.75, 0.75]),  # by 0.75 pixels: 0.5 x 3 / 2; the last fades to a quarter
        (True, "border", [0.75, 1.75, 2.75, 3]),
    ],
)
def test_a_shift_by_hand(align_corners, padding, row):
    found = resample(RAMP, jnp.array(SHIFTED), size=(4, 4), padding=padding, align_corners=align_corners)
    assert_close(found[0, :, 0], row)


@CONVENTIONS
@PADDINGS
def test_the_stn_is_that_of_a_loop(padding, align_corners):
    rng = np.random.default_rng(0)
    for theta in random_thetas(1, 5, scale=0.6, shift=0.8):
        image = rng.normal(size=(5, 7, 2))
        options = {"size": (4, 6), "padding": padding, "align_corners": align_corners}
        found = resample(jnp.array(image, jnp.float32), jnp.array(theta, jnp.float32), **options)
        assert_close(found, oracles.stn(image, theta, **options), atol=1e-4)


@pytest.mark.parametrize(("padding", "mode"), [("zeros", "grid-constant"), ("border", "nearest")])
def test_the_stn_is_that_of_scipy(padding, mode):
    image = np.random.default_rng(0).normal(size=(6, 8))
    for theta in random_thetas(2, 5, scale=0.6, shift=0.8):
        # SciPy wants rows before columns, and pixels: unit = (pixel + 0.5) / half - 1.
        linear, shift, half = theta[::-1, 1::-1], theta[::-1, 2], np.array([3.0, 4.0])
        matrix = half[:, None] * linear / half
        offset = half * (linear @ (0.5 / half - 1) + shift + 1) - 0.5
        expected = affine_transform(image, matrix, offset, order=1, mode=mode)
        found = resample(
            jnp.array(image[..., None], jnp.float32), jnp.array(theta, jnp.float32), size=(6, 8), padding=padding
        )
        assert_close(found[..., 0], expected, atol=1e-4)


# The SDTN


@CONVENTIONS
def test_the_sdtn_undoes_the_stn_inside_the_frame(align_corners):
    image = smooth_picture(40, 48)
    for theta in jnp.array(random_thetas(3, 6), jnp.float32):
        there = resample(image, theta, size=(40, 48), align_corners=align_corners)
        back = put_back(there, theta, align_corners=align_corners)
        # Two pixels away from the edges of the crop, and from what the STN cut off.
        place = transform_points(pixels_from_unit((40, 48)), affine_grid(invert_affine(theta), (40, 48)))
        place = jnp.concatenate([place, pixel_grid((40, 48))], -1)
        inside = ((place > 2) & (place < jnp.array([[[45.0, 37.0] * 2]]))).all(-1)
        assert inside.mean() > 0.5
        # Two bilinear readings: at most h^2 / 4 times the curvature of 0.02 per squared pixel.
        assert_close(np.asarray(back)[inside], np.asarray(image)[inside], rtol=0, atol=0.01)


def test_all_stacks_go_back_at_once():
    maps, theta = smooth_picture(6, 7, 2 * 3 * 4).reshape(6, 7, 2, 3, 4).transpose(2, 3, 0, 1, 4), jnp.array(THETA)
    assert_close(put_back(maps[0, 0], theta), resample(maps[0, 0], invert_affine(theta), size=(6, 7)))
    for stack in range(2):
        assert_close(put_back(maps[stack], theta), put_back(maps, theta)[stack])
        for picture in range(3):
            assert_close(put_back(maps[stack, picture], theta), put_back(maps, theta)[stack, picture])


def test_the_padding_of_the_sdtn_is_that_of_its_samples():
    theta = jnp.array([[1.0, 0, -0.5], [0, 1, 0]])
    assert_close(put_back(RAMP, theta)[0, :, 0], [1, 2, 3, 0])
    assert_close(put_back(RAMP, theta, padding="border")[0, :, 0], [1, 2, 3, 3])


def test_maxima_of_maps_and_of_points_go_back_alike():
    size, rng = (64, 48), np.random.default_rng(4)
    for theta in jnp.array(random_thetas(5, 12), jnp.float32):
        points = jnp.array(rng.uniform([16, 20], [32, 44], (5, 2)), jnp.float32)
        maps = encode_heatmaps(points, jnp.ones(5, bool), size, sigma=2.0)
        from_maps, score = find(put_back(maps, theta))
        from_points = points_back(find(maps)[0], theta, size=size)
        assert score.min() > 0.8
        assert np.abs(from_maps - from_points).max() < 1.0


def test_points_go_back_by_hand():
    # Half the frame is read: a pixel of the output is half as far from the centre of the crop.
    found = points_back(jnp.array([[1.5, 1.5], [3.5, -0.5], [0.0, 1.0]]), jnp.array(SMALLER), size=(4, 4))
    assert_close(found, [[1.5, 1.5], [2.5, 0.5], [0.75, 1.25]])


@CONVENTIONS
def test_points_go_to_where_the_stn_read_them(align_corners):
    theta, size = jnp.array(THETA), (5, 7)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(7.0), jnp.arange(5.0)), -1)
    read = affine_grid(theta, size, align_corners=align_corners)
    expected = transform_points(pixels_from_unit(size, align_corners=align_corners), read)
    assert_close(points_back(grid, theta, size=size, align_corners=align_corners), expected, atol=1e-4)


def test_one_sample_along_both_maps_is_two_samples_one_after_the_other():
    picture, size = smooth_picture(90, 100) * 100, (32, 32)
    outer = image_from_crop(jnp.array([20.0, 15.0, 75.0, 70.0]), size, rotation=0.2)
    # Smaller frames, well inside the crop: nothing outside of it is read.
    for theta in jnp.array(random_thetas(6, 5, angle=0.3, scale=0.1), jnp.float32) * jnp.array([[[0.6, 0.6, 1.0]]]):
        once = crop(picture, compose(outer, crop_from_stn(theta, size)), size=size)
        twice = resample(crop(picture, outer, size=size), theta, size=size)
        # 1 % of the range of 400: the crop is coarser than the picture and is read between its pixels.
        assert_close(once, twice, rtol=0, atol=4)
        assert np.abs(once - twice).mean() < 0.5


def test_one_theta_serves_the_crop_and_its_heat_map():
    crop_size, map_size = (256, 192), (64, 48)
    points = jnp.array(np.random.default_rng(7).uniform(0, 190, (9, 2)), jnp.float32)
    to_map = pixels_of_resized(crop_size, map_size)
    for theta in jnp.array(random_thetas(8, 5), jnp.float32):
        at_crop = transform_points(to_map, points_back(points, theta, size=crop_size))
        at_map = points_back(transform_points(to_map, points), theta, size=map_size)
        assert_close(at_map, at_crop, atol=1e-3)


# Singular maps


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_singular_thetas_give_finite_values_and_gradients(dtype):
    with jax.enable_x64(dtype == "float64"):
        maps, points = jnp.array(smooth_picture(6, 7), dtype), jnp.array([[0.0, 1.0], [5.5, 2.0]], dtype)

        def everything(theta, maps):
            there = stn(maps, theta, (6, 7))
            return sdtn(there, theta), sdtn(maps, theta, padding="border"), sdtn_points(points, theta, (6, 7))

        def total(theta, maps):
            found = everything(theta, maps)
            return sum((values**2).sum() for values in found), found

        run = jax.jit(jax.vmap(jax.grad(total, (0, 1), has_aux=True), (0, None)))
        gradients, found = run(jnp.array([*SINGULAR.values()], dtype), maps)
        for leaf in (*found, *gradients):
            assert leaf.dtype == dtype
            finite = dict(zip(SINGULAR, np.isfinite(leaf).reshape(len(SINGULAR), -1).all(1), strict=True))
            assert all(finite.values()), finite


# Gradients


def pulled_back(theta, by_gamma):
    """Autodiff of the inverse, in float64."""
    with jax.enable_x64(True):
        theta, by_gamma = jnp.array(theta, jnp.float64), jnp.array(by_gamma, jnp.float64)
        return np.asarray(jax.vjp(invert_affine, theta)[1](by_gamma)[0])


@pytest.mark.parametrize("oracle", [oracles.gradient_of_inverse, oracles.gradient_of_inverse_by_chain_rule])
def test_the_gradient_through_the_inverse_is_that_of_the_paper(oracle):
    rng = np.random.default_rng(9)
    for theta in random_thetas(10, 20, angle=3.0, scale=0.6, shift=1.0):
        by_gamma = rng.normal(size=(2, 3))
        np.testing.assert_allclose(pulled_back(theta, by_gamma), oracle(theta, by_gamma), rtol=1e-11, atol=1e-12)


def test_the_gradient_through_the_inverse_is_that_of_finite_differences():
    for theta in random_thetas(11, 4, angle=3.0, shift=1.0):
        assert_gradients(invert_affine, theta)


def assert_off_the_kinks(theta, size):
    """No sample along theta or its inverse lies within the margin of a whole pixel, in both conventions."""
    for matrix in (np.asarray(theta), np.asarray(invert_affine(jnp.array(theta)))):
        for corners in (False, True):
            u, v = [np.array([oracles.unit_of(i, side, corners) for i in range(side)]) for side in (size[1], size[0])]
            unit = np.stack(np.meshgrid(u, v), -1) @ matrix[:, :2].T + matrix[:, 2]
            pixel = np.stack([oracles.pixel_of(unit[..., i], size[1 - i], corners) for i in range(2)])
            assert np.abs(pixel - np.round(pixel)).min() > MARGIN


@pytest.mark.slow
def test_stn_and_sdtn_have_the_gradients_of_finite_differences():
    def remapped(image, theta):
        return [
            found
            for corners in (False, True)
            for found in (
                stn(image, theta, (4, 5), align_corners=corners),
                sdtn(image, theta, align_corners=corners),
                sdtn(image, theta, padding="border", align_corners=corners),
            )
        ]

    assert_off_the_kinks(THETA, (4, 5))
    assert_gradients(remapped, smooth_picture(4, 5), THETA)


def test_points_have_the_gradients_of_finite_differences():
    assert_gradients(lambda points, theta: sdtn_points(points, theta, (4, 5)), [[1.0, 2.0], [-3.0, 0.5]], THETA)


# Transformations


@pytest.mark.slow
def test_transformations_do_not_change_the_remapping(key):
    thetas = jnp.array(random_thetas(12, 3), jnp.float32)
    pictures, points = jax.random.normal(key, (3, 5, 6, 2)), jax.random.normal(key, (3, 4, 2))
    # The SDTN is the STN along the inverse: its samples are compared in both.
    assert_same_under_jit_and_vmap(sdtn, pictures, thetas)
    assert_same_under_jit_and_vmap(lambda p, theta: sdtn_points(p, theta, (5, 6)), points, thetas)


def test_crop_from_stn_of_the_identity_is_the_identity():
    for size in ((4, 4), (7, 3)):
        assert_close(crop_from_stn(identity_affine(), size), IDENTITY)
