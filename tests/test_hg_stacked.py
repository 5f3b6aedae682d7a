import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_identical

from rmpe_jax.config import ConfigError, Experiment, HourglassConfig, override
from rmpe_jax.models.hourglass import (
    apply_hourglass,
    apply_hourglass_training,
    hourglass_shapes,
    init_hourglass,
)

FULL = HourglassConfig(layout="hg-stacked", stacks=2, features=512, residuals=3)
TINY = dataclasses.replace(FULL, features=16, depth=1, residuals=2, input_size=(8, 16))
JOINTS = 3


@functools.cache
def variables():
    return init_hourglass(jax.random.key(1), TINY, joints=JOINTS)


def images(count=2):
    return jax.random.uniform(jax.random.key(0), (count, *TINY.input_size, 3))


def test_the_network_of_the_paper_has_the_published_size():
    shapes = hourglass_shapes(FULL, joints=16)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 26_353_824


def test_the_network_of_the_paper_takes_the_published_multiplications():
    pictures = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    lowered = jax.jit(functools.partial(apply_hourglass, config=FULL, joints=16)).lower(
        hourglass_shapes(FULL, joints=16), pictures
    )
    # Two operations for each product; batch norm and the like take some more.
    costs: Any = lowered.cost_analysis()
    assert costs["flops"] / 2 == pytest.approx(26.2e9, rel=0.02)


def test_maps_of_both_stacks_come_out_at_a_quarter_of_the_size():
    maps = apply_hourglass(variables(), images(3), TINY, joints=JOINTS)
    assert maps.shape == (2, 3, 2, 4, JOINTS) and maps.dtype == jnp.float32
    assert not np.allclose(maps[0], maps[1])


@pytest.mark.slow
def test_every_parameter_gets_a_gradient():
    def loss_of(params):
        maps, _ = apply_hourglass_training(variables() | {"params": params}, images(), TINY, joints=JOINTS)
        return (maps**2).mean()

    gradient = jax.jit(jax.grad(loss_of))(variables()["params"])
    size = {
        jax.tree_util.keystr(path): np.abs(leaf).max() for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }
    # A bias in front of a batch norm is removed by it; all else must move the loss.
    assert [name for name, value in size.items() if value < 1e-7 and "bias" not in name] == []


def test_recomputing_changes_neither_variables_nor_maps():
    remat = dataclasses.replace(TINY, remat=True)
    assert_identical(init_hourglass(jax.random.key(1), remat, joints=JOINTS), variables())
    assert_close(*(apply_hourglass(variables(), images(), config, joints=JOINTS) for config in (remat, TINY)))


@pytest.mark.parametrize(
    "assignment", ["model.stacks=8", "model.features=24", "model.scan=true", "model.layout=newell"]
)
def test_settings_that_the_network_cannot_have_are_refused(assignment):
    with pytest.raises(ConfigError, match="layout"):
        override(Experiment(model=TINY), [assignment])
