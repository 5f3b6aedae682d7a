import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_gradients, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rmpe_jax.config import Experiment, HourglassConfig
from rmpe_jax.geometry.affine import invert_affine, pixels_of_resized, transform_points
from rmpe_jax.geometry.remapping import crop_from_stn
from rmpe_jax.heatmaps import (
    decode_dark,
    decode_heatmaps,
    decode_soft_argmax,
    encode_heatmaps,
    flip_heatmaps,
    points_inside,
)
from rmpe_jax.models import single_person
from rmpe_jax.train.augment import heatmap_targets

SIZE = (9, 12)
encode = jax.jit(encode_heatmaps, static_argnames=("size", "sigma"))
decode = jax.jit(decode_heatmaps)
POINTS = arrays(np.float32, (4, 2), elements=st.floats(-3, 14, width=32))
# Few different values, so that equal maxima and equal neighbours happen.
MAPS = arrays(np.float32, (5, 6, 3), elements=st.integers(-2, 5).map(lambda n: n / 4))


def one_map(rows):
    return jnp.array(rows, jnp.float32)[..., None]


def test_a_gaussian_drawn_by_hand():
    maps = encode(jnp.array([[2.0, 1.0]]), jnp.array([True]), (3, 4), sigma=1.0)
    assert maps.shape == (3, 4, 1)
    assert maps[1, 2, 0] == 1.0
    assert_close(maps[1, :, 0], np.exp([-2.0, -0.5, 0.0, -0.5]))
    assert_close(maps[0, 0, 0], np.exp(-2.5))


@given(POINTS, arrays(bool, 4), st.sampled_from([0.5, 1.0, 2.0]))
def test_targets_are_those_of_a_loop(points, present, sigma):
    maps = encode(jnp.array(points), jnp.array(present), SIZE, sigma=sigma)
    assert_close(maps, oracles.encode(points, present, SIZE, sigma))


def test_absent_joints_and_points_that_are_not_finite_get_zero_maps():
    points = jnp.array([[3.0, 3.0], [jnp.nan, 3.0], [3.0, jnp.inf], [3.0, 3.0], [jnp.nan, jnp.nan]])
    maps = encode(points, jnp.array([True, True, True, False, False]), SIZE, sigma=1.0)
    assert maps[3, 3, 0] == 1.0
    np.testing.assert_array_equal(maps[..., 1:], 0.0)


@given(st.integers(0, 11), st.integers(0, 8))
def test_whole_positions_are_decoded_exactly(x, y):
    maps = encode(jnp.array([[x, y]], jnp.float32), jnp.array([True]), SIZE, sigma=1.0)
    points, score = decode(maps)
    np.testing.assert_array_equal(points, [[x, y]])
    np.testing.assert_array_equal(score, 1.0)


@given(st.floats(1, 10, width=32), st.floats(1, 7, width=32), st.sampled_from([1.0, 2.0]))
def test_encode_then_decode_returns_the_point_within_a_quarter_pixel(x, y, sigma):
    points, _ = decode(encode(jnp.array([[x, y]]), jnp.array([True]), SIZE, sigma=sigma))
    assert np.abs(np.asarray(points) - [x, y]).max() <= 0.25 + 1e-3


def test_the_maximum_moves_a_quarter_towards_the_higher_neighbour():
    points, score = decode(one_map([[0, 0.3, 0, 0], [0.1, 0.8, 0.2, 0], [0, 0.1, 0, 0], [0, 0, 0, 0]]))
    np.testing.assert_array_equal(points, [[1.25, 0.75]])
    assert score == jnp.float32(0.8)


def test_on_the_border_the_maximum_moves_along_the_other_axis_only():
    points, _ = decode(one_map([[0, 0, 0], [0.9, 0.5, 0], [0.2, 0, 0]]))
    np.testing.assert_array_equal(points, [[0.0, 1.25]])


def test_of_equal_maxima_the_first_in_reading_order_wins():
    points, _ = decode(one_map([[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]))
    assert points[0].round().tolist() == [2.0, 1.0]


def test_a_flat_map_gives_its_first_pixel():
    points, score = decode(jnp.full((4, 4, 1), 0.5))
    assert points.tolist() == [[0.0, 0.0]] and score == 0.5


@pytest.mark.parametrize(("value", "score"), [(1.7, 1.0), (-0.5, 0.0), (0.25, 0.25)])
def test_scores_are_clipped_to_the_unit_interval(value, score):
    assert decode_heatmaps(jnp.full((3, 3, 1), value))[1] == score


def test_nan_counts_as_lowest():
    nan = np.nan
    found = decode(one_map([[nan, nan, nan], [nan, 0.5, 0.2], [nan, nan, nan]]))
    np.testing.assert_array_equal(found[0], [[1.25, 1.0]])
    assert found[1] == 0.5


def test_a_map_of_nan_gives_a_finite_point_of_no_confidence():
    points, score = decode(jnp.full((4, 4, 2), jnp.nan))
    np.testing.assert_array_equal(points, 0.0)
    np.testing.assert_array_equal(score, 0.0)


@given(MAPS)
def test_points_are_those_of_a_loop(maps):
    points, score = oracles.decode(maps)
    found = decode(jnp.array(maps))
    np.testing.assert_array_equal(found[0], points)
    np.testing.assert_array_equal(found[1], score)


@given(MAPS, st.permutations(range(3)))
def test_joints_are_decoded_independently(maps, order):
    points, score = decode(jnp.array(maps))
    again = decode(jnp.array(maps[..., list(order)]))
    np.testing.assert_array_equal(again[0], points[np.array(order)])
    np.testing.assert_array_equal(again[1], score[np.array(order)])


def test_flipping_mirrors_the_columns_and_exchanges_the_joints():
    maps = jnp.arange(12.0).reshape(2, 3, 2)
    flipped = flip_heatmaps(maps, (1, 0))
    np.testing.assert_array_equal(flipped[:, :, 0], maps[:, ::-1, 1])
    np.testing.assert_array_equal(flip_heatmaps(flipped, (1, 0)), maps)


@given(arrays(np.float32, (3, 2), elements=st.floats(1, 7, width=32)))
def test_flipped_targets_are_the_targets_of_mirrored_points(points):
    order, width = np.array([1, 0, 2]), SIZE[1]
    mirrored = (np.float32([width - 1, 0]) + np.float32([-1, 1]) * points)[order]
    present = jnp.array([True, False, True])
    flipped = flip_heatmaps(encode(jnp.array(points), present, SIZE, sigma=1.5), (1, 0, 2))
    assert_close(flipped, encode(jnp.array(mirrored), present[order], SIZE, sigma=1.5))


def test_a_map_ends_half_a_pixel_beyond_its_outermost_centres():
    points = jnp.array([[-0.5, -0.5], [11.49, 8.49], [11.5, 4.0], [4.0, 8.5], [-0.51, 4.0], [jnp.nan, 4.0]])
    assert points_inside(points, SIZE).tolist() == [True, True, False, False, False, False]


def test_targets_have_the_gradients_of_finite_differences():
    present = jnp.array([True, False, True])
    assert_gradients(lambda points: encode_heatmaps(points, present, (4, 5), sigma=1.3), [[1.2, 2.1], [0, 0], [9, -2]])


def test_transformations_do_not_change_targets_and_points(key):
    points = jax.random.uniform(key, (3, 4, 2), maxval=9.0)
    present = jnp.ones((3, 4), bool).at[1, 2].set(False)
    assert_same_under_jit_and_vmap(lambda p, v: encode_heatmaps(p, v, SIZE, sigma=1.0), points, present)
    assert_same_under_jit_and_vmap(decode_heatmaps, jax.random.normal(key, (3, 5, 6, 4)))


# The other decoders

dark = jax.jit(decode_dark, static_argnames="blur")
soft = jax.jit(decode_soft_argmax, static_argnames="sharpness")
DECODERS = {"quarter": decode, "dark": dark, "soft_argmax": soft}


def random_points(count, size, margin):
    rng = np.random.default_rng(0)
    return jnp.array(rng.uniform(margin, size - 1 - margin, (count, 2)), jnp.float32)


@pytest.mark.parametrize(
    ("name", "sigma", "expected"),
    [
        # A quarter's error is uniform within a quarter on both axes: the mean distance is 0.765 times a quarter.
        ("quarter", 1.0, 0.191),
        ("quarter", 2.0, 0.191),
        # What remains is the smoothing's cut at three standard deviations, and rounding.
        ("dark", 1.0, 0.001),
        ("dark", 2.0, 0.001),
        # Half a pixel wide after the power: the sum over pixels is off by up to 2 pi 0.25 2 exp(-2 pi^2 0.25) = 0.023.
        ("soft_argmax", 1.0, 0.0216),
        ("soft_argmax", 2.0, 0.0),
    ],
)
def test_the_error_on_gaussians_at_random_positions(name, sigma, expected):
    points = random_points(400, 64, 12)
    found, score = DECODERS[name](encode(points, jnp.ones(400, bool), (64, 64), sigma=sigma))
    error = np.linalg.norm(found - points, axis=-1).mean()
    assert error == pytest.approx(expected, abs=0.002)
    assert (score > 0.77).all()


SCALES = (0.9, 1.0, 1.1)


def flip_tested(points, experiment):
    """The mean with the maps of the mirrored crop, mirrored back."""
    mirrored = jnp.stack([63 - points[:, 0], points[:, 1]], -1)
    maps, other = (encode(p, jnp.ones(len(p), bool), (64, 64), sigma=2.0) for p in (points, mirrored))
    return (maps + flip_heatmaps(other, tuple(range(len(points))))) / 2


def at_three_scales(points, experiment):
    """The mean of maps of crops that are wider and narrower, put back."""
    frames = [invert_affine(crop_from_stn(single_person._zoom(scale), (64, 64))) for scale in SCALES]
    maps = [encode(transform_points(m, points), jnp.ones(len(points), bool), (64, 64), sigma=2.0)[None] for m in frames]
    return single_person._mean_over_scales(maps, SCALES, experiment)[0]


def of_corners(points, experiment):
    """Maps whose corners lie on the crop's, of joints in the crop: UDP."""
    crop = transform_points(pixels_of_resized((64, 64), (256, 256)), points)
    frames = {"size": (256, 256), "output_size": (64, 64), "sigma": 2.0}
    return heatmap_targets(crop, jnp.ones(len(points), bool), **frames, align_corners=True)


@pytest.mark.parametrize(
    ("make", "decoder", "corners", "expected"),
    [
        # Mirrored maps agree to the last bit; sampled ones are wider and flatter by the interpolation.
        (flip_tested, "quarter", False, 0.19),
        (flip_tested, "dark", False, 0.0),
        (flip_tested, "soft_argmax", False, 0.0),
        (at_three_scales, "quarter", False, 0.19),
        (at_three_scales, "dark", False, 0.002),
        (at_three_scales, "soft_argmax", False, 0.0056),
        (of_corners, "dark", True, 0.0),
        # Read in the other frame, joints are off by 0.375 at the edges: by 0.765 of 0.23 in this square.
        (of_corners, "dark", False, 0.175),
    ],
)
def test_the_error_of_what_is_averaged_or_lies_otherwise(make, decoder, corners, expected):
    points = random_points(400, 64, 12)
    experiment = Experiment(model=HourglassConfig(decoder=decoder, align_corners=corners))
    found, _ = single_person.read_poses(make(points, experiment)[None], jnp.eye(2, 3)[None], experiment=experiment)
    found = transform_points(pixels_of_resized((256, 256), (64, 64)), found[0])
    assert np.linalg.norm(found - points, axis=-1).mean() == pytest.approx(expected, abs=0.004)


def test_dark_finds_the_top_of_a_parabola_drawn_by_hand():
    # log map = -(x - 2.3)^2 - (y - 1.8)^2 - 0.5 (x - 2.3) (y - 1.8): the top is found from nine pixels.
    y, x = np.mgrid[:5, :6]
    maps = np.exp(-((x - 2.3) ** 2) - (y - 1.8) ** 2 - 0.5 * (x - 2.3) * (y - 1.8))
    found, _ = dark(one_map(maps), blur=0.0)
    assert_close(found, [[2.3, 1.8]], atol=1e-5)


def test_dark_leaves_the_border_and_what_is_no_peak_alone():
    edge = encode(jnp.array([[0.2, 5.0]]), jnp.array([True]), SIZE, sigma=1.0)
    assert dark(edge)[0].tolist() == [[0.0, 5.0]]
    flat, ridge = jnp.full((5, 6), 0.5), jnp.zeros((5, 6)).at[:, 3].set(1.0)
    found, score = dark(jnp.stack([flat, ridge], -1), blur=0.0)
    assert found.tolist() == [[0.0, 0.0], [3.0, 0.0]] and score.tolist() == [0.5, 1.0]


def test_a_soft_argmax_by_hand():
    maps = jnp.zeros((3, 4)).at[1, 0].set(0.5).at[1, 3].set(1.0)
    found, score = soft(maps[..., None], sharpness=1.0)
    assert_close(found, [[2.0, 1.0]])
    # Sixteen to one.
    assert_close(soft(maps[..., None])[0], [[3 * 16 / 17, 1.0]])
    assert score.tolist() == [1.0]


def test_soft_argmax_is_the_expectation_under_a_softmax_of_logarithms():
    rng = np.random.default_rng(1)
    maps = rng.uniform(0.05, 1, (5, 7, 2)).astype(np.float32)
    weight = jax.nn.softmax(3.0 * jnp.log(maps).reshape(-1, 2), 0)
    place = np.stack(np.mgrid[:5, :7][::-1], -1).reshape(-1, 2)
    assert_close(soft(jnp.array(maps), sharpness=3.0)[0], weight.T @ place, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
@pytest.mark.parametrize(("name", "middle"), [("dark", [0.0, 0.0]), ("soft_argmax", [2.5, 2.0])])
def test_a_map_without_a_positive_value_gives_a_finite_point_of_no_confidence(name, middle, value):
    found, score = DECODERS[name](jnp.full((5, 6, 1), value))
    assert found.tolist() == [middle] and score.tolist() == [0.0]


@given(MAPS)
def test_every_decoder_stays_on_the_map_and_agrees_on_the_score(maps):
    score = decode(jnp.array(maps))[1]
    for name in ("dark", "soft_argmax"):
        found, again = DECODERS[name](jnp.array(maps))
        assert (np.asarray(found) >= -1).all() and (np.asarray(found) <= [6, 5]).all()
        np.testing.assert_array_equal(again, score)


def test_soft_argmax_has_the_gradient_of_its_formula():
    maps = jnp.array(np.random.default_rng(2).uniform(0.1, 1, (4, 5, 2)))
    assert_gradients(lambda maps: decode_soft_argmax(maps)[0], maps)


@pytest.mark.parametrize("decoder", [decode_dark, decode_soft_argmax])
def test_decoders_are_the_same_under_jit_and_vmap(decoder):
    maps = jnp.array(np.random.default_rng(3).uniform(0, 1, (3, 5, 6, 2)), jnp.float32)
    assert_same_under_jit_and_vmap(decoder, maps)


@pytest.mark.parametrize("decoder", [decode_dark, decode_soft_argmax])
def test_an_empty_map_has_a_zero_gradient_and_no_nan(decoder):
    gradient = jax.grad(lambda maps: decoder(maps)[0].sum())(jnp.zeros((5, 6, 2)))
    np.testing.assert_array_equal(gradient, 0.0)
