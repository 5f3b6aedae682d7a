import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_gradients, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import map_coordinates

from rmpe_jax.geometry.affine import identity_affine, image_from_crop, invert_affine, transform_points
from rmpe_jax.geometry.sampling import (
    affine_grid,
    crop_aligned,
    crop_image,
    crop_images,
    grid_sample,
    halve_image,
    pixel_grid,
    sample_image,
)

HEIGHT, WIDTH = 5, 7
RAMP = np.arange(16.0, dtype=np.float32).reshape(4, 4, 1)  # value 4 y + x
PICTURES = arrays(np.float32, (HEIGHT, WIDTH, 2), elements=st.floats(-8, 8, width=32))
# Inside, on the ring where zeros fade in, and far outside; whole numbers and halves are drawn often.
POINTS = arrays(np.float32, (6, 2), elements=st.floats(-3, 10, width=32) | st.integers(-4, 20).map(lambda n: n / 2))
PADDINGS = pytest.mark.parametrize("padding", ["zeros", "border"])
# Compiled, a function costs these tests a fraction of its operations compiled one by one; the last test compares both.
sample = jax.jit(sample_image, static_argnames="padding")
crop = jax.jit(crop_image, static_argnames=("size", "padding", "levels"))
box_map = jax.jit(image_from_crop, static_argnames="size")


def smooth_picture(height=6, width=7, channels=2):
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    return jnp.array(np.sin(0.7 * x + 0.4 * c) + np.cos(0.5 * y - 0.3 * x), jnp.float32)


def test_grids_hold_x_before_y():
    np.testing.assert_array_equal(pixel_grid((2, 3))[1, 2], [2, 1])
    np.testing.assert_array_equal(pixel_grid((2, 3))[:, :, 0], [[0, 1, 2], [0, 1, 2]])


def test_a_ramp_is_read_between_its_pixels():
    points = jnp.array([[0.0, 0.0], [3.0, 3.0], [1.5, 2.0], [0.25, 0.75], [2.0, 1.5]])
    assert_close(sample(jnp.array(RAMP), points)[:, 0], [0, 15, 9.5, 3.25, 8])


def test_zeros_fade_in_within_one_pixel_and_the_border_goes_on():
    points = jnp.array([[3.5, 3.0], [4.0, 3.0], [9.0, 9.0], [3.5, 3.5], [-0.25, 1.0]])
    assert_close(sample(jnp.array(RAMP), points)[:, 0], [7.5, 0, 0, 3.75, 3])
    assert_close(sample(jnp.array(RAMP), points, padding="border")[:, 0], [15, 15, 15, 15, 4])


@PADDINGS
@given(image=PICTURES, points=POINTS)
def test_samples_are_those_of_a_loop(image, points, padding):
    found = sample(jnp.array(image), jnp.array(points), padding=padding)
    assert_close(found, oracles.sample_all(image, points, padding), atol=1e-4)


@pytest.mark.parametrize(("padding", "mode"), [("zeros", "grid-constant"), ("border", "nearest")])
def test_samples_are_those_of_scipy(padding, mode):
    rng = np.random.default_rng(0)
    image, points = rng.normal(size=(HEIGHT, WIDTH, 2)), rng.uniform(-3, 10, (200, 2))
    expected = [map_coordinates(image[..., c], points[:, ::-1].T, order=1, mode=mode) for c in range(2)]
    found = sample(jnp.array(image, jnp.float32), jnp.array(points, jnp.float32), padding=padding)
    assert_close(found, np.stack(expected, -1))


@PADDINGS
def test_pixel_centres_return_the_picture_itself(padding):
    image = smooth_picture()
    np.testing.assert_array_equal(sample(image, pixel_grid((6, 7)), padding=padding), image)


@given(PICTURES, PICTURES, POINTS, st.floats(-2, 2, width=32))
def test_sampling_is_linear_in_the_picture(a, b, points, factor):
    points = jnp.array(points)
    together = sample(jnp.array(a + np.float32(factor) * b), points)
    assert_close(together, sample(jnp.array(a), points) + factor * sample(jnp.array(b), points), atol=1e-4)


@given(PICTURES, POINTS)
def test_border_samples_stay_within_the_range_of_the_picture(image, points):
    found = np.asarray(sample(jnp.array(image), jnp.array(points), padding="border"))
    assert (found >= image.min((0, 1)) - 1e-4).all() and (found <= image.max((0, 1)) + 1e-4).all()


@PADDINGS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_positions_that_are_not_finite_read_zeros_without_gradient(bad, padding):
    image, points = jnp.ones((3, 3, 1)), jnp.array([[bad, 1.0], [1.0, bad], [1.0, 1.25]])

    def total(image, points):
        values = sample(image, points, padding=padding)
        return values.sum(), values

    (by_image, by_points), values = jax.grad(total, (0, 1), has_aux=True)(image, points)
    np.testing.assert_array_equal(values[:, 0], [0, 0, 1])
    np.testing.assert_array_equal(by_points[:2], 0)
    assert np.isfinite(by_points).all() and by_image.sum() == 1.0


def test_points_may_have_any_leading_axes():
    image = smooth_picture()
    grid = pixel_grid((6, 7)) * 0.8
    assert_close(sample(image, grid), sample(image, grid.reshape(-1, 2)).reshape(6, 7, 2))
    assert_close(sample(image, grid[2, 3]), sample(image, grid)[2, 3])


def test_integer_pictures_are_read_without_wrapping():
    image = jnp.array([[[0], [255]]], jnp.uint8)
    found = sample(image, jnp.array([[0.5, 0.0], [1.0, 0.0]]))
    assert found.dtype == jnp.float32
    assert_close(found[:, 0], [127.5, 255])


def test_a_picture_of_one_pixel_can_be_read():
    image = jnp.full((1, 1, 1), 8.0)
    assert_close(sample(image, jnp.array([[0.5, 0.5], [0.0, 0.0]]))[:, 0], [2, 8])
    assert_close(sample(image, jnp.array([[5.0, -5.0]]), padding="border")[:, 0], [8])


def test_an_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="zeros or border, got 'wrap'"):
        getattr(sample_image, "__wrapped__", sample_image)(jnp.ones((2, 2, 1)), jnp.zeros(2), padding="wrap")


def test_grids_by_hand_for_both_conventions():
    found = affine_grid(identity_affine(), (2, 4))
    assert_close(found[0, :, 0], [-0.75, -0.25, 0.25, 0.75])
    assert_close(found[:, 0, 1], [-0.5, 0.5])
    found = affine_grid(identity_affine(), (2, 4), align_corners=True)
    assert_close(found[0, :, 0], [-1, -1 / 3, 1 / 3, 1])


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_identity_theta_returns_the_picture(align_corners):
    image = smooth_picture()
    grid = affine_grid(identity_affine(), (6, 7), align_corners=align_corners)
    assert_close(grid_sample(image, grid, align_corners=align_corners), image, atol=1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
def test_theta_pulls_from_the_source(align_corners):
    # Moving the reading position right moves the picture left; one pixel is 2 / width, or 2 / (width - 1).
    image = smooth_picture()
    step = 2 / (7 - align_corners)
    grid = affine_grid(jnp.array([[1.0, 0.0, step], [0.0, 1.0, 0.0]]), (6, 7), align_corners=align_corners)
    moved = grid_sample(image, grid, align_corners=align_corners)
    assert_close(moved[:, :-1], image[:, 1:], atol=1e-4)
    assert_close(moved[:, -1], np.zeros((6, 2)), atol=1e-4)


def test_a_crop_of_the_whole_picture_is_the_picture():
    image = smooth_picture()
    assert_close(crop(image, identity_affine(), (6, 7)), image)
    assert_close(crop(image, box_map(jnp.array([-0.5, -0.5, 6.5, 5.5]), (6, 7)), (6, 7)), image, atol=1e-4)


def test_an_aligned_crop_is_a_slice():
    image = smooth_picture()
    found = crop(image, box_map(jnp.array([1.5, 0.5, 5.5, 3.5]), (3, 4)), (3, 4))
    assert_close(found, image[1:4, 2:6])


def test_a_crop_outside_the_picture_or_of_a_broken_box_is_zero():
    image = jnp.ones((6, 7, 2))
    for box in ([50.0, 50.0, 60.0, 60.0], [np.nan, 0.0, 4.0, 4.0], [0.0, 0.0, np.inf, 4.0]):
        matrix = box_map(jnp.array(box), (4, 4))
        for levels in (1, 3):
            np.testing.assert_array_equal(crop(image, matrix, (4, 4), levels=levels), 0.0)


def test_a_turned_crop_shows_the_same_value_at_the_same_point():
    # A plane is read without error by bilinear interpolation, so each crop pixel equals the plane at its position.
    y, x = np.mgrid[:20, :20]
    plane = jnp.array((0.5 * x - 0.25 * y)[..., None], jnp.float32)
    matrix = box_map(jnp.array([6.0, 5.0, 14.0, 13.0]), (5, 5), rotation=0.6)
    position = transform_points(matrix, pixel_grid((5, 5)))
    assert_close(crop(plane, matrix, (5, 5))[..., 0], 0.5 * position[..., 0] - 0.25 * position[..., 1], atol=1e-4)


def test_a_crop_pasted_back_returns_a_smooth_picture():
    y, x = np.mgrid[:24, :24]
    image = jnp.array((np.sin(x / 4) + np.cos(y / 5))[..., None], jnp.float32)
    matrix = box_map(jnp.array([2.0, 2.0, 22.0, 22.0]), (40, 40), rotation=0.3)
    back = crop(crop(image, matrix, (40, 40)), invert_affine(matrix), (24, 24))
    assert_close(back[8:16, 8:16], image[8:16, 8:16], atol=0.03)


def test_halving_takes_means_and_pads_an_odd_edge():
    image = jnp.array([[0, 2, 10], [4, 6, 20], [8, 8, 32]], jnp.uint8)[..., None]
    assert_close(halve_image(image)[..., 0], [[3, 7.5], [4, 8]])
    assert_close(halve_image(image, padding="border")[..., 0], [[3, 15], [8, 32]])


def test_zeros_around_a_picture_of_odd_size_change_no_crop():
    image = jnp.arange(63.0).reshape(9, 7, 1)
    grown = jnp.pad(image, ((0, 7), (0, 9), (0, 0)))
    matrix = box_map(jnp.array([-0.5, -0.5, 15.5, 15.5]), (4, 4))
    assert_close(crop(image, matrix, (4, 4), levels=3), crop(grown, matrix, (4, 4), levels=3))


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_a_shrinking_crop_reads_means_of_blocks(shrink):
    image = jax.random.uniform(jax.random.key(1), (16, 16, 1))
    size = 16 // shrink
    found = crop(image, box_map(jnp.array([-0.5, -0.5, 15.5, 15.5]), (size, size)), (size, size), levels=4)
    assert_close(found, np.asarray(image).reshape(size, shrink, size, shrink, 1).mean((1, 3)))


def test_a_crop_never_enlarges_a_halved_copy():
    # Shrinking by 3 reads the copy halved once, not twice.
    image = smooth_picture(12, 12)
    matrix = box_map(jnp.array([-0.5, -0.5, 11.5, 11.5]), (4, 4))
    points = (transform_points(matrix, pixel_grid((4, 4))) + 0.5) / 2 - 0.5
    assert_close(crop(image, matrix, (4, 4), levels=4), sample(halve_image(image), points))


def test_an_enlarging_crop_does_not_use_the_levels():
    image = smooth_picture()
    matrix = box_map(jnp.array([1.0, 1.0, 4.0, 4.0]), (8, 8), rotation=0.2)
    assert_close(crop(image, matrix, (8, 8), levels=3), crop(image, matrix, (8, 8)))


@PADDINGS
def test_samples_have_the_gradients_of_finite_differences(padding):
    points = [[1.3, 2.2], [4.6, 3.7], [-0.4, 2.5], [6.3, 5.2], [20.0, 1.5]]
    assert_gradients(lambda image, points: sample(image, points, padding=padding), smooth_picture(), points)


def test_the_gradient_in_theta_is_that_of_finite_differences():
    def transformed(image, theta):
        grids = [affine_grid(theta, (3, 4), align_corners=corners) for corners in (False, True)]
        return grid_sample(image, grids[0]), grid_sample(image, grids[1], align_corners=True)

    assert_gradients(transformed, smooth_picture(), [[0.61, 0.13, 0.05], [-0.17, 0.57, 0.08]])


def test_transformations_do_not_change_the_samples(key):
    images = jax.random.normal(key, (3, 6, 7, 2))
    points = jax.random.uniform(key, (3, 5, 2), minval=-1.0, maxval=7.0)
    boxes = jnp.array([[0.0, 0, 5, 5], [1.0, -2, 16, 13], [3.0, 2, 4, 3]])
    assert_same_under_jit_and_vmap(sample_image, images, points)
    assert_same_under_jit_and_vmap(
        lambda image, box: crop_image(image, image_from_crop(box, (4, 4)), (4, 4), levels=2), images, boxes
    )
    assert_same_under_jit_and_vmap(halve_image, images)


def test_pixels_of_a_picture_beyond_16_megapixels_are_counted_exactly():
    # 2^24 + 1 is no float32: an index computed in floats would read the neighbour.
    image = jnp.zeros((4200, 4200, 1), jnp.uint8).at[4190, 4101::2].set(200)
    points = jnp.stack([jnp.arange(4100.0, 4110.0), jnp.full(10, 4190.0)], -1)
    assert sample(image, points)[:, 0].tolist() == [0, 200] * 5


def test_a_side_of_one_pixel_keeps_the_other_axis():
    grid = affine_grid(identity_affine(), (1, 5), align_corners=True)
    assert_close(grid[0, :, 0], [-1, -0.5, 0, 0.5, 1])
    assert_close(grid[0, :, 1], [0] * 5)


OFF_THE_KINKS = jnp.array([[1.3, 2.4], [-0.4, 3.3], [5.6, 4.7], [9.2, 1.1]])


@PADDINGS
def test_forward_and_reverse_mode_agree_in_the_picture_and_in_the_points(padding):
    def value(image, points):
        return sample_image(image, points, padding=padding)

    for argument in (0, 1):
        forward = jax.jit(jax.jacfwd(value, argument))(smooth_picture(), OFF_THE_KINKS)
        reverse = jax.jit(jax.jacrev(value, argument))(smooth_picture(), OFF_THE_KINKS)
        assert_close(forward, reverse)
        assert np.abs(forward).max() > 0.1


def test_the_second_derivative_is_that_of_the_bilinear_surface():
    # Value x y between pixels: only the mixed derivative is not zero.
    image = jnp.array([[[0.0], [0.0]], [[0.0], [1.0]]])
    found = jax.hessian(lambda point: sample_image(image, point)[0])(jnp.array([0.3, 0.6]))
    assert_close(found, [[0, 1], [1, 0]])


def test_a_picture_of_integers_has_the_gradient_of_the_same_in_floats():
    image = jnp.array(np.random.default_rng(0).integers(0, 255, (6, 7, 2)), jnp.uint8)

    def total(points, image):
        return (sample_image(image, points) ** 2).sum()

    found = jax.jit(jax.grad(total))(OFF_THE_KINKS, image)
    assert_close(found, jax.jit(jax.grad(total))(OFF_THE_KINKS, image.astype(jnp.float32)))
    assert np.abs(found).max() > 1


def batch_of_crops(count=3):
    images = jnp.stack([smooth_picture() * (n + 1) for n in range(count)])
    angles = jnp.linspace(0.1, 0.9, count)
    maps = jnp.stack([jnp.array([[jnp.cos(a), -jnp.sin(a), 2.3 + a], [jnp.sin(a), jnp.cos(a), -0.7]]) for a in angles])
    return images, maps


@PADDINGS
def test_crops_of_many_pictures_are_those_of_each_with_the_same_gradients(padding):
    images, maps = batch_of_crops()

    def total(crops, images, maps):
        return (crops(images, maps) ** 2).sum(), crops(images, maps)

    def together(images, maps):
        return crop_images(images, maps, (4, 3), padding=padding)

    def each(images, maps):
        return jax.vmap(lambda image, matrix: crop_image(image, matrix, (4, 3), padding=padding))(images, maps)

    for argument in (0, 1):
        found, expected = (
            jax.jit(jax.grad(lambda *given, way=way: total(way, *given), argument, has_aux=True))(images, maps)
            for way in (together, each)
        )
        assert_close(found, expected, atol=1e-4)
    assert_same_under_jit_and_vmap(together, jnp.stack([images, images + 1]), jnp.stack([maps, maps]))


def aligned_maps():
    return [[[0.7, 0, 1.2], [0, 1.9, -0.8]], [[-1.0, 0, 6], [0, 1, 0]], [[3.0, 0, -20], [0, 3, 40]]]


@PADDINGS
@pytest.mark.parametrize("matrix", aligned_maps(), ids=["stretched", "mirrored", "outside"])
def test_an_aligned_crop_is_the_crop_by_two_products(matrix, padding):
    image, matrix = smooth_picture(), jnp.array(matrix)
    found = jax.jit(crop_aligned, static_argnames=("size", "padding"))(image, matrix, (5, 6), padding=padding)
    assert_close(found, crop(image, matrix, (5, 6), padding=padding))


def test_an_aligned_crop_by_hand():
    matrix = jnp.array([[1.0, 0, 0.5], [0, 1, 1]])
    np.testing.assert_array_equal(
        crop_aligned(jnp.array(RAMP), matrix, (2, 4))[..., 0], [[4.5, 5.5, 6.5, 3.5], [8.5, 9.5, 10.5, 5.5]]
    )
    bright = jnp.full((2, 2, 1), 255, jnp.uint8)
    assert crop_aligned(bright, identity_affine(), (1, 2)).tolist() == [[[255.0], [255.0]]]


@PADDINGS
def test_an_aligned_crop_has_the_gradients_of_finite_differences(padding):
    def value(image, scale, shift):
        matrix = jnp.concatenate([jnp.diag(scale), shift[:, None]], 1)
        return crop_aligned(image, matrix, (4, 3), padding=padding)

    assert_gradients(value, smooth_picture(), np.array([0.83, 1.21]), np.array([0.37, -0.41]))


def test_an_aligned_crop_does_not_read_what_turns():
    def total(matrix, way):
        return (way(smooth_picture(), matrix, (4, 3)) ** 2).sum()

    matrix = jnp.array([[0.83, 0.0, 0.37], [0.0, 1.21, 0.41]])
    found, expected = jax.grad(total)(matrix, crop_aligned), jax.grad(total)(matrix, crop_image)
    turning = np.array([[0, 1, 0], [1, 0, 0]], bool)
    assert_close(found[~turning], expected[~turning], rtol=1e-4)
    np.testing.assert_array_equal(found[turning], 0)
    assert np.abs(expected[turning]).min() > 0.01


@PADDINGS
def test_an_aligned_crop_along_a_broken_map_is_zero_without_gradient(padding):
    def total(matrix):
        return crop_aligned(smooth_picture(), matrix, (2, 2), padding=padding).sum()

    value, gradient = jax.value_and_grad(total)(jnp.full((2, 3), jnp.nan))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_transformations_do_not_change_an_aligned_crop():
    maps = jnp.array([aligned_maps()[0], aligned_maps()[1]])
    assert_same_under_jit_and_vmap(lambda matrix: crop_aligned(smooth_picture(), matrix, (3, 4)), maps)


def test_an_unknown_padding_of_an_aligned_crop_is_refused():
    plain = getattr(crop_aligned, "__wrapped__", crop_aligned)
    with pytest.raises(ValueError, match="zeros or border, got 'wrap'"):
        plain(jnp.ones((2, 2, 1)), identity_affine(), (2, 2), padding="wrap")
