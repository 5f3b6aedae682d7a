import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_gradients, assert_same_under_jit_and_vmap
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rmpe_jax.geometry.affine import (
    compose,
    identity_affine,
    image_from_crop,
    image_from_person,
    invert_affine,
    pixels_from_unit,
    pixels_of_resized,
    transform_points,
    unit_from_pixels,
)

POINTS = arrays(np.float32, (5, 2), elements=st.floats(-40, 40, width=32))
SIZES = st.tuples(st.integers(2, 300), st.integers(2, 300))


@st.composite
def affines(draw):
    """Turned, unequally scaled, mirrored and shifted: well away from singular."""
    angle, x, y = draw(st.floats(-4, 4)), draw(st.floats(-30, 30)), draw(st.floats(-30, 30))
    scale = np.diag([draw(st.floats(0.3, 3)), draw(st.floats(0.3, 3)) * draw(st.sampled_from([-1, 1]))])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return jnp.array(np.concatenate([turn @ scale, [[x], [y]]], 1), jnp.float32)


def random_affines(seed, count):
    rng = np.random.default_rng(seed)
    return jnp.array(rng.normal(size=(count, 2, 3)), jnp.float32) + 2 * identity_affine()[None]


def test_points_move_by_hand():
    quarter_turn = jnp.array([[0.0, -1.0, 10.0], [1.0, 0.0, 20.0]])
    assert_close(transform_points(quarter_turn, jnp.array([[3.0, 0.0], [0.0, 4.0]])), [[10, 23], [6, 20]])


@given(affines(), affines(), POINTS)
def test_composition_applies_the_inner_map_first(outer, inner, points):
    points = jnp.array(points)
    one_by_one = transform_points(outer, transform_points(inner, points))
    assert_close(transform_points(compose(outer, inner), points), one_by_one, atol=5e-3)


@given(affines(), affines(), affines())
def test_composition_is_associative(a, b, c):
    assert_close(compose(compose(a, b), c), compose(a, compose(b, c)), rtol=1e-4, atol=5e-3)


@given(affines(), POINTS)
def test_the_inverse_brings_points_back(matrix, points):
    moved = transform_points(matrix, jnp.array(points))
    assert_close(transform_points(invert_affine(matrix), moved), points, atol=2e-3)


@given(affines())
def test_the_inverse_is_that_of_linear_algebra(matrix):
    full = np.vstack([np.asarray(matrix, float), [0, 0, 1]])
    assert_close(invert_affine(matrix), np.linalg.inv(full)[:2], rtol=1e-4, atol=1e-3)


def test_gamma_is_theta_inverted_as_in_equations_3_and_4():
    theta = jnp.array([[0.5, 0.1, 0.2], [-0.2, 0.8, -0.3]])
    gamma = invert_affine(theta)
    assert_close(gamma[:, :2] @ theta[:, :2], np.eye(2), atol=1e-6)
    assert_close(gamma[:, 2], -gamma[:, :2] @ theta[:, 2], atol=1e-6)


@pytest.mark.parametrize(
    "matrix", [np.zeros((2, 3)), [[1.0, 2, 3], [2, 4, 5]], [[1e-6, 0, 1], [0, 1e-6, 1]], [[-1e-6, 0, 1], [0, 1e-6, 1]]]
)
def test_the_inverse_of_a_singular_map_is_finite(matrix):
    assert np.isfinite(invert_affine(jnp.array(matrix, jnp.float32))).all()


def test_a_tiny_determinant_keeps_its_sign():
    tiny = jnp.array([[1e-6, 0.0, 0.0], [0.0, 1e-6, 0.0]])
    mirrored = tiny.at[0, 0].multiply(-1)
    assert_close(invert_affine(tiny)[:, :2], np.diag([100, 100]))
    assert_close(invert_affine(mirrored)[:, :2], np.diag([-100, 100]))


@pytest.mark.parametrize("rotation", [0.0, 0.7])
def test_the_corners_of_the_crop_fall_on_the_corners_of_the_turned_box(rotation):
    box, (height, width) = np.array([2.0, 5.0, 14.0, 29.0]), (8, 6)
    corners = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
    centre, half = np.array([8.0, 17.0]), np.array([6.0, 12.0])
    turn = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    expected = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ turn.T + centre
    matrix = image_from_crop(jnp.array(box, jnp.float32), (height, width), rotation=rotation)
    assert_close(transform_points(matrix, jnp.array(corners, jnp.float32)), expected)


def test_a_positive_rotation_turns_clockwise_on_the_screen():
    # The crop's right (+x) points down (+y) in a picture whose y axis points down.
    matrix = image_from_crop(jnp.array([0.0, 0.0, 8.0, 8.0]), (8, 8), rotation=np.pi / 2)
    assert_close(matrix[:, :2] @ jnp.array([1.0, 0.0]), [0, 1])


@pytest.mark.parametrize(("align_corners", "edge"), [(False, -0.5), (True, 0.0)])
def test_the_unit_frame_ends_at_edges_or_at_outermost_centres(align_corners, edge):
    matrix = pixels_from_unit((4, 6), align_corners=align_corners)
    ends = transform_points(matrix, jnp.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]))
    assert_close(ends, [[edge, edge], [2.5, 1.5], [5 - edge, 3 - edge]])


@given(SIZES, st.booleans(), arrays(np.float32, (4, 2), elements=st.floats(-1.5, 1.5, width=32)))
def test_unit_to_pixels_and_back_returns_the_points(size, align_corners, points):
    pixels = transform_points(pixels_from_unit(size, align_corners=align_corners), jnp.array(points))
    back = transform_points(unit_from_pixels(size, align_corners=align_corners), pixels)
    assert_close(back, points, atol=1e-4)


def test_a_quarter_of_the_size_maps_as_the_docstring_says():
    x = jnp.array([[0.0, 0.0], [255.0, 255.0], [-0.5, 127.5]])
    assert_close(transform_points(pixels_of_resized((256, 256), (64, 64)), x), (np.asarray(x) + 0.5) / 4 - 0.5)


@given(SIZES, SIZES)
def test_resizing_there_and_back_is_the_identity(size, other):
    assert_close(compose(pixels_of_resized(other, size), pixels_of_resized(size, other)), np.eye(2, 3), atol=2e-3)


def test_a_persons_crop_is_the_extended_box_at_the_crops_aspect():
    # 8 x 20 grows to 12 x 30 about (14, 30), and in width to 30 for a square crop.
    matrix = image_from_person(jnp.array([10.0, 20.0, 18.0, 40.0]), (16, 16), extension=0.5)
    corners = transform_points(matrix, jnp.array([[-0.5, -0.5], [15.5, 15.5]]))
    assert_close(corners, [[-1, 15], [29, 45]])


def test_a_persons_crop_is_not_distorted():
    matrix = image_from_person(jnp.array([0.0, 0.0, 9.0, 5.0]), (16, 12), extension=0.2, rotation=0.4)
    assert_close(matrix[:, :2].T @ matrix[:, :2], np.eye(2) * (9 * 1.2 / 12) ** 2)


@given(affines(), POINTS)
def test_crop_then_uncrop_returns_the_points(matrix, points):
    cropped = transform_points(invert_affine(matrix), jnp.array(points))
    assert_close(transform_points(matrix, cropped), points, atol=2e-3)


def test_maps_have_the_gradients_of_finite_differences():
    def maps(matrix, box, angle, points):
        turned = image_from_person(box, (8, 6), extension=0.3, rotation=angle)
        return compose(matrix, turned), invert_affine(matrix), transform_points(turned, points)

    matrix, points = [[2.0, 0.3, 1.0], [-0.4, 1.5, 2.0]], [[1.0, 2.0], [-3.0, 4.0]]
    assert_gradients(maps, matrix, [2.0, 3.0, 9.0, 12.0], 0.3, points)


def test_the_gradient_of_a_singular_inverse_is_finite():
    gradient = jax.jit(jax.grad(lambda matrix: invert_affine(matrix).sum()))(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()


def test_transformations_do_not_change_the_maps(key):
    matrices, others, points = random_affines(0, 3), random_affines(1, 3), jax.random.normal(key, (3, 5, 2))
    assert_same_under_jit_and_vmap(compose, matrices, others)
    assert_same_under_jit_and_vmap(invert_affine, matrices)
    assert_same_under_jit_and_vmap(transform_points, matrices, points)
    boxes = jnp.array([[0.0, 0, 4, 6], [1.0, 2, 9, 3], [5.0, 5, 6, 6]])
    assert_same_under_jit_and_vmap(
        lambda b, angle: image_from_person(b, (8, 6), extension=0.3, rotation=angle), boxes, jnp.array([0.0, 0.5, -2.0])
    )
