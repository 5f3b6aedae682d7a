import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmpe_jax.config import LocalizationConfig
from rmpe_jax.models.localization import theta_directions, theta_from_change
from rmpe_jax.train.differences import by_differences

SIX = theta_directions(LocalizationConfig(kind="small"))
THREE = theta_directions(LocalizationConfig(kind="small", theta="scale_translation"))


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def wave(theta):
    """Smooth, and not of any degree."""
    weight = jnp.array([[0.3, -1.0, 0.5], [2.0, 0.7, -0.4]])
    return jnp.sin(theta * jnp.broadcast_to(weight, theta.shape)).sum((-2, -1)) ** 2


def thetas(count=3):
    return jax.random.normal(jax.random.key(0), (count, 2, 3))


def gradient(loss, theta, **settings):
    return jax.grad(lambda theta: by_differences(loss, theta, **settings).sum())(theta)


def test_the_value_is_the_loss_and_the_slope_that_of_the_whole_step_by_hand():
    # |x| between -0.25 and 0.75: the slope of a chord across the kink.
    def loss(theta):
        return jnp.abs(theta[..., 0, 2])

    theta = jnp.zeros((2, 3)).at[0, 2].set(0.25)
    assert by_differences(loss, theta, step=0.5, directions=SIX) == 0.25
    np.testing.assert_allclose(gradient(loss, theta, step=0.5, directions=SIX), [[0, 0, 0.5], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("step", [0.01, 0.3])
def test_the_gradient_is_that_of_a_loop_of_differences(step, double):
    theta = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 3)))
    expected = np.zeros((3, 2, 3))
    for number, i, j in np.ndindex(3, 2, 3):
        up, down = np.array(theta[number]), np.array(theta[number])
        up[i, j] += step
        down[i, j] -= step
        expected[number, i, j] = (wave(jnp.array(up)) - wave(jnp.array(down))) / (2 * step)
    np.testing.assert_allclose(gradient(wave, theta, step=step, directions=SIX), expected, rtol=1e-9)


def test_of_a_small_step_it_is_the_exact_gradient(double):
    theta = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 3)))
    exact = jax.grad(lambda theta: wave(theta).sum())(theta)
    np.testing.assert_allclose(gradient(wave, theta, step=1e-5, directions=SIX), exact, rtol=1e-7, atol=1e-8)


def test_of_a_quadratic_it_is_exact_for_any_step():
    def loss(theta):
        return (theta**2).sum((-2, -1))

    np.testing.assert_allclose(gradient(loss, thetas(), step=0.7, directions=SIX), 2 * thetas(), rtol=1e-4)


def test_along_three_directions_a_network_of_three_numbers_has_its_exact_gradient(double):
    config = LocalizationConfig(kind="small", theta="scale_translation")
    change = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)))

    def of_change(change, loss):
        return loss(theta_from_change(change, config)).sum()

    exact = jax.grad(of_change)(change, wave)
    found = jax.grad(of_change)(change, lambda theta: by_differences(wave, theta, step=1e-5, directions=THREE))
    np.testing.assert_allclose(found, exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("theta", ["affine", "scale_translation"])
def test_the_directions_are_what_each_output_of_the_network_changes(theta):
    config = LocalizationConfig(kind="small", theta=theta)
    directions = theta_directions(config)
    each = theta_from_change(jnp.eye(len(directions)), config) - jnp.eye(2, 3)[None]
    np.testing.assert_array_equal(each, directions)
    products = np.tensordot(directions, directions, ((1, 2), (1, 2)))
    np.testing.assert_array_equal(products, np.diag(np.diag(products)))


@pytest.mark.parametrize("step", [0.0, -0.1, float("nan")])
def test_a_step_that_goes_nowhere_is_refused(step):
    with pytest.raises(ValueError, match="expected a step greater than 0, got"):
        by_differences(wave, thetas(), step=step, directions=SIX)


def test_each_example_has_its_own_slope_under_vmap_and_jit():
    settings = {"step": 0.2, "directions": SIX}
    together = gradient(wave, thetas(), **settings)
    apart = jax.vmap(lambda theta: gradient(wave, theta, **settings))(thetas())
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)
    compiled = jax.jit(lambda theta: gradient(wave, theta, **settings))(thetas())
    np.testing.assert_allclose(together, compiled, rtol=1e-5, atol=1e-6)


def test_a_trembling_loss_leads_down_only_by_differences():
    # A parabola with a fine ripple: its exact gradient is the ripple's, the chord's is the parabola's.
    def loss(theta):
        x = theta[..., 0, 2]
        return x**2 + 0.01 * jnp.sin(500 * x)

    theta = jnp.zeros((50, 2, 3)).at[:, 0, 2].set(jnp.linspace(0.2, 0.5, 50))
    exact = jax.grad(lambda theta: loss(theta).sum())(theta)[:, 0, 2]
    chord = gradient(loss, theta, step=0.1, directions=SIX)[:, 0, 2]
    assert (exact < 0).mean() > 0.3 and (chord > 0).all()
