from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from checks import assert_close, assert_identical
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rmpe_jax.metrics.intervals import bootstrap, difference_interval, interval, resampling_weights

VALUES = jnp.array([0.5, -1.0, 2.0, 3.5, -2.5, 1.25])
draw = jax.jit(resampling_weights, static_argnums=(1, 2))


def mean_of(values):
    return lambda weight: (weight * values).sum() / weight.sum()


@partial(jax.jit, static_argnames=("replicates", "chunk"))
def means(key, values, replicates=60, chunk=30):
    return bootstrap(key, mean_of(values), len(values), replicates=replicates, chunk=chunk)


def test_every_replicate_draws_as_many_pictures_as_there_are(key):
    weights = np.asarray(draw(key, 6, 8000))
    assert weights.shape == (8000, 6) and (weights >= 0).all() and (weights.sum(1) == 6).all()
    # Of the 462 ways to draw six pictures of six the rare ones are missing.
    assert len(np.unique(weights, axis=0)) > 400


def test_draws_are_multinomial(key):
    # A picture counts k times with the binomial chances of n draws at 1 / n.
    weights = np.asarray(draw(key, 6, 8000))
    expected = scipy.stats.binom.pmf(np.arange(4), 6, 1 / 6)
    found = np.array([(weights == times).mean(0) for times in range(4)])
    assert np.abs(found - expected[:, None]).max() < 0.02
    assert abs(np.corrcoef(weights[:, 0], weights[:, 1])[0, 1] + 1 / 5) < 0.05


def test_the_values_are_those_of_a_loop_over_the_weights(key):
    found = means(key, VALUES)
    weights = draw(key, 6, 8000)[:60]
    assert_close(found, [(np.asarray(row) * np.asarray(VALUES)).sum() / 6 for row in weights])


def test_neither_chunk_nor_number_changes_a_replicate(key):
    whole = means(key, VALUES)
    assert_identical(means(key, VALUES, chunk=1000), whole)
    assert_identical(means(key, VALUES, replicates=20, chunk=7), whole[:20])


def test_the_same_key_gives_the_same_values_under_jit_and_another_key_others(key):
    first = means(key, VALUES)
    assert_close(bootstrap(key, mean_of(VALUES), 6, replicates=60, chunk=30), first)
    assert (means(jax.random.fold_in(key, 1), VALUES) != first).any()


def test_a_tree_of_statistics_is_resampled_together(key):
    found = bootstrap(key, lambda weight: {"all": weight, "sum": weight.sum()}, 6, replicates=60)
    assert_identical(found["all"], draw(key, 6, 8000)[:60].astype(jnp.float32))
    assert found["sum"].tolist() == [6.0] * 60


def test_a_constant_statistic_has_an_interval_without_width(key):
    low, high = interval(means(key, jnp.full(6, 0.5)))
    assert low == high == 0.5


@given(arrays(np.float32, (30, 2), elements=st.floats(-9, 9, width=32)), st.floats(0.1, 0.99))
def test_an_interval_is_made_of_quantiles(values, level):
    low, high = interval(jnp.array(values), level=level)
    expected = np.quantile(values.astype(float), [(1 - level) / 2, (1 + level) / 2], axis=0)
    np.testing.assert_allclose(np.stack([low, high]), expected, atol=1e-4)


def test_nan_replicates_are_left_out_each_entry_by_itself():
    values = jnp.array([[1.0, jnp.nan, jnp.nan], [jnp.nan, 2.0, jnp.nan], [3.0, 4.0, jnp.nan]])
    low, high = interval(values, level=0.5)
    np.testing.assert_allclose(low, [1.5, 2.5, np.nan])
    np.testing.assert_allclose(high, [2.5, 3.5, np.nan])


def test_the_interval_is_about_that_of_scipy(key):
    values = np.random.default_rng(0).exponential(size=60)
    ours = interval(means(key, jnp.array(values, jnp.float32), replicates=4000))
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=0)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.06 * width)


def test_the_interval_covers_the_mean_of_normals_about_as_often_as_it_says(key):
    def covers(key):
        sample, draws = jax.random.split(key)
        low, high = interval(means(draws, jax.random.normal(sample, (40,)), replicates=100, chunk=100))
        return (low <= 0) & (high >= 0)

    covered = jax.jit(jax.vmap(covers))(jax.random.split(key, 200)).mean()
    assert 0.87 < covered < 0.99


def test_a_paired_difference_is_narrower_than_what_the_systems_share(key):
    rng = np.random.default_rng(0)
    hard = rng.normal(size=60)
    better = hard + 0.1 + 0.05 * rng.normal(size=60)
    a, b = (means(key, jnp.array(values, jnp.float32), replicates=4000) for values in (better, hard))
    low, high = difference_interval(a, b)
    assert 0 < low < 0.1 < high < 0.2
    alone = interval(a)
    assert high - low < (alone[1] - alone[0]) / 4
    assert_close(difference_interval(a, a, level=0.5), (0.0, 0.0))


def test_a_difference_needs_both_replicates():
    a, b = jnp.array([1.0, jnp.nan, 5.0]), jnp.array([0.0, 0.0, jnp.nan])
    assert_close(difference_interval(a, b), (1.0, 1.0))


def test_wrong_numbers_are_refused(key):
    with pytest.raises(ValueError, match="expected positive numbers, got pictures=0"):
        bootstrap(key, lambda weight: weight, 0)
    with pytest.raises(ValueError, match=r"expected level in \(0, 1\), got 95.0"):
        interval(jnp.zeros(3), level=95.0)
    with pytest.raises(ValueError, match=r"expected paired replicates of one shape, got \(3,\) and \(2,\)"):
        difference_interval(jnp.zeros(3), jnp.zeros(2))
