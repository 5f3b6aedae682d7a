"""Every proposals generator through the one function that draws from them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_identical, assert_same_under_jit_and_vmap
from made_data import figure

from rmpe_jax.proposals import generators, mixtures, scored
from rmpe_jax.proposals.generators import LAWS, Law, cut_patch, in_skeleton, patch_share, sample_boxes, whole_boxes
from rmpe_jax.proposals.mixtures import OffsetMixtures, offsets_of
from rmpe_jax.proposals.offsets import moved_box, propose
from rmpe_jax.proposals.scored import ScoredProposals
from rmpe_jax.skeleton import COCO_17, LSP_14

BOX = jnp.array([10.0, -20.0, 50.0, 140.0])
STANDING = jnp.array(figure(LSP_14.joints, np.asarray(BOX)), jnp.float32)
TURNED = STANDING * jnp.array([[1.0, -1.0]])
ALL = jnp.ones(14, bool)
COUNT = 4000


@functools.cache
def pgpg():
    """Boxes of standing people miss the feet, those of people upside down are wide; all vary little."""
    atoms = np.array(figure(LSP_14.joints, (-0.65, -1.2, 0.65, 2.0)))[None] * [[[1.0, 1]], [[1, -1]]]
    mean = np.array([[0, 0, 0, -0.3], [-0.2, 0, 0.2, 0], [0, 0, 0, 0]])[:, None]
    factor = np.tile(0.01 * np.eye(4), (3, 1, 1, 1))
    arrays = (np.asarray(array, np.float32) for array in (atoms, np.ones((3, 1)), mean, factor))
    return OffsetMixtures(*arrays, skeleton="lsp_14")


def likes_tall(variables, image, rows, columns):
    """A half for boxes as tall as the own one, where that is upright."""
    return variables["weight"] * (rows.sum(-1) - 8)


def dpg():
    """Boxes that are taller than the own one."""
    order = tuple(range(14))
    return ScoredProposals({"weight": np.float32(0.5)}, likes_tall, "lsp_14", order, candidates=1024)


def generator_named(name):
    return {"pgpg": pgpg, "dpg": dpg}.get(name, lambda: Law(name))()


NAMES = (*LAWS, "pgpg", "dpg")
every = pytest.mark.parametrize("name", NAMES)


@functools.cache
def drawer(name, num):
    generator = generator_named(name)
    return jax.jit(lambda key, box, points, known: sample_boxes(key, box, points, known, generator=generator, num=num))


@functools.cache
def boxes_of(name):
    return np.asarray(drawer(name, COUNT)(jax.random.key(1), BOX, STANDING, ALL)[0])


def iou(boxes, box):
    """A loop over intersections and unions."""
    result = []
    for x0, y0, x1, y1 in np.asarray(boxes, float):
        a, b, c, d = np.asarray(box, float)
        overlap = max(min(x1, c) - max(x0, a), 0) * max(min(y1, d) - max(y0, b), 0)
        result.append(overlap / ((x1 - x0) * (y1 - y0) + (c - a) * (d - b) - overlap))
    return np.array(result)


# All of them


@every
@pytest.mark.parametrize("num", [1, 7])
def test_a_generator_gives_so_many_boxes_and_weights_that_sum_to_one(name, num):
    boxes, weights = drawer(name, num)(jax.random.key(0), BOX, STANDING, ALL)
    assert boxes.shape == (num, 4) and weights.shape == (num,)
    assert np.isfinite(boxes).all() and (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)


@every
def test_boxes_differ_from_each_other_and_between_keys_but_not_for_one(name):
    draw = drawer(name, 7)
    first, again, other = (np.asarray(draw(jax.random.key(seed), BOX, STANDING, ALL)[0]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.concatenate([first, other]), axis=0)) == (1 if name == "exact" else 14)


@every
def test_no_side_is_less_than_a_tenth(name):
    law = generator_named(name)
    if isinstance(law, OffsetMixtures):
        # Most corners change places.
        law = OffsetMixtures(law.atoms, law.weight, law.mean, 200 * law.factor, skeleton="lsp_14")
    draw = jax.jit(lambda key: sample_boxes(key, BOX, STANDING, ALL, generator=law, num=200)[0])
    boxes = np.asarray(draw(jax.random.key(0)))
    share = (boxes[:, 2:] - boxes[:, :2]) / [40, 160]
    assert share.min() > 0.1 - 1e-4
    assert ((share < 0.1 + 1e-4).mean() > 0.2) == (name == "pgpg")


@every
@pytest.mark.parametrize(
    "box",
    [
        [np.nan, 0, 9, 9],
        [0, 0, np.inf, 9],
        [9, 0, 3, 9],  # inverted
        [0, 9, 9, 3],
        [5, 5, 5, 9],  # without area
        [0, 0, 0, 0],
        [-3e38, -3e38, 3e38, 3e38],  # its size overflows
        [0, -3e38, 9, 3e38],
    ],
)
def test_a_broken_box_gives_itself(name, box):
    box = jnp.array(box, jnp.float32)
    boxes, weights = drawer(name, 7)(jax.random.key(0), box, STANDING, ALL)
    np.testing.assert_array_equal(boxes, np.tile(box, (7, 1)))
    np.testing.assert_allclose(weights, 1 / 7, rtol=1e-6)


@every
@pytest.mark.parametrize("num", [0, -1])
@pytest.mark.parametrize("draw", [sample_boxes, whole_boxes])
def test_no_boxes_at_all_are_refused(name, num, draw):
    with pytest.raises(ValueError, match=f"expected num >= 1, got {num}"):
        draw(jax.random.key(0), BOX, STANDING, ALL, generator=generator_named(name), num=num)


@every
def test_a_broken_pose_gives_no_nan(name):
    for points, known in ((STANDING * jnp.nan, ALL), (STANDING, ~ALL), (jnp.zeros((14, 2)), ALL)):
        assert np.isfinite(drawer(name, 7)(jax.random.key(0), BOX, points, known)[0]).all()


@every
def test_a_box_elsewhere_and_larger_gets_the_same_offsets(name):
    there = BOX * 3 + jnp.array([100.0, -50, 100, -50])
    (boxes, _), (others, _) = (drawer(name, 7)(jax.random.key(2), box, STANDING, ALL) for box in (BOX, there))
    offsets = [offsets_of(found, jnp.tile(box, (7, 1))) for found, box in ((boxes, BOX), (others, there))]
    np.testing.assert_allclose(*offsets, atol=1e-4)


@every
def test_transformations_change_nothing(name):
    keys, boxes = jax.random.split(jax.random.key(3), 3), jnp.array([[0.0, 0, 4, 6], [9, 2, 1, 3], [-5, 5, 6, 60]])
    points, known = jnp.stack([STANDING, TURNED, STANDING]), jnp.stack([ALL, ALL, ~ALL])
    draw = functools.partial(sample_boxes, generator=generator_named(name), num=3)
    assert_same_under_jit_and_vmap(draw, keys, boxes, points, known)


# Each of them


@pytest.mark.parametrize("name", ["exact", "alphapose_global", "harsh"])
def test_the_laws_for_all_poses_are_those_of_the_offsets(name):
    keys = jax.random.split(jax.random.key(0), 7)
    expected = jax.jit(jax.vmap(lambda key: propose(key, BOX, name)))(keys)
    np.testing.assert_allclose(drawer(name, 7)(jax.random.key(0), BOX, STANDING, ALL)[0], expected, rtol=1e-5)


def test_an_exact_box_is_the_own():
    np.testing.assert_array_equal(boxes_of("exact"), np.tile(BOX, (COUNT, 1)))


def test_uniform_boxes_keep_an_iou_above_a_half():
    overlap = iou(boxes_of("uniform"), BOX)
    assert 0.5 < overlap.min() < 0.51 and overlap.max() > 0.85


def test_uniform_boxes_are_those_of_many_that_keep_the_iou():
    rng = np.random.default_rng(0)
    offsets = rng.uniform(-0.5, 0.5, (40_000, 4))
    # Offsets from a unit box, whose corners are then where the offsets say.
    corners = offsets + [0, 0, 1, 1]
    kept = (
        iou(np.concatenate([corners[:, :2], np.maximum(corners[:, 2:], corners[:, :2] + 0.1)], 1), [0, 0, 1, 1]) > 0.5
    )
    # One in five; so 64 tries are enough.
    assert 0.18 < kept.mean() < 0.22
    wanted = offsets[kept]
    found = np.asarray(offsets_of(jnp.array(boxes_of("uniform")), jnp.tile(BOX, (COUNT, 1))))
    error = 4 * wanted.std(0) * np.sqrt(1 / COUNT + 1 / kept.sum())
    assert (np.abs(found.mean(0) - wanted.mean(0)) < error).all()
    np.testing.assert_allclose(found.std(0), wanted.std(0), rtol=0.06)
    # Outwards by half a side.
    np.testing.assert_allclose([*found[:, :2].min(0), *found[:, 2:].max(0)], [-0.5, -0.5, 0.5, 0.5], atol=0.02)


def test_where_no_uniform_box_keeps_the_iou_the_own_is_given(monkeypatch):
    monkeypatch.setattr(generators, "_SMALLEST_IOU", 1.0)
    boxes, _ = sample_boxes(jax.random.key(0), BOX, STANDING, ALL, generator=Law("uniform"), num=3)
    np.testing.assert_array_equal(boxes, np.tile(BOX, (3, 1)))


@pytest.mark.parametrize(
    ("points", "known", "mean"),
    [
        (STANDING, ALL, [0, 0, 0, -0.3]),
        (STANDING, ALL.at[:2].set(False), [0, 0, 0, -0.3]),
        (TURNED, ALL, [-0.2, 0, 0.2, 0]),
        (STANDING, ~ALL, [0, 0, 0, 0]),
    ],
)
def test_pgpg_follows_the_mixture_of_the_atomic_pose(points, known, mean):
    boxes, _ = drawer("pgpg", COUNT)(jax.random.key(4), BOX, points, known)
    offsets = np.asarray(offsets_of(boxes, jnp.tile(BOX, (COUNT, 1))))
    np.testing.assert_allclose(offsets.mean(0), mean, atol=4 * 0.01 / np.sqrt(COUNT))
    np.testing.assert_allclose(offsets.std(0), 0.01, rtol=0.05)


def test_dpg_follows_its_scores():
    boxes = boxes_of("dpg")
    assert (boxes[:, 3] - boxes[:, 1]).min() >= 160 - 1e-3
    own, _ = drawer("dpg", 7)(jax.random.key(0), BOX, STANDING, ~ALL)
    np.testing.assert_array_equal(own, np.tile(BOX, (7, 1)))


@pytest.mark.parametrize(("name", "share"), [("patch_15", 0.15), ("patch_30", 0.3)])
def test_so_many_boxes_are_parts_of_the_person_and_the_others_follow_the_gaussians(name, share):
    boxes, scale = boxes_of(name), (boxes_of(name)[:, 2:] - boxes_of(name)[:, :2]) / [40, 160]
    # A part has the shape of the own box, which no Gaussian offset keeps to a thousandth.
    part = (np.abs(scale[:, 0] - scale[:, 1]) < 1e-4) & (scale[:, 0] <= 1)
    assert part.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / COUNT))
    assert 1 - share - 1e-4 < scale[part].min() < 1 - share + 0.01 and scale[part].max() > 0.99
    beyond = (boxes[part] - np.asarray(BOX)) * [-1, -1, 1, 1]
    assert beyond.max() < 1e-3
    whole = boxes_of("alphapose_global")
    np.testing.assert_allclose(boxes[~part], whole[~part], rtol=1e-5)


@every
def test_whole_boxes_are_those_before_the_cut(name):
    law = generator_named(name)
    draw = jax.jit(lambda key: whole_boxes(key, BOX, STANDING, ALL, generator=law, num=COUNT))
    whole, boxes = np.asarray(draw(jax.random.key(1))), boxes_of(name)
    assert patch_share(law) == {"patch_15": 0.15, "patch_30": 0.3}.get(name, 0.0)
    changed = np.abs(whole - boxes).max(1) > 1e-3
    assert changed.mean() == pytest.approx(patch_share(law), abs=0.03) and changed.any() == (patch_share(law) > 0)


def test_a_share_of_zero_cuts_nothing_and_one_of_one_everything():
    other = BOX + jnp.array([1.0, 2, 3, 4])
    box, is_patch = cut_patch(jax.random.key(0), other, BOX, 0.0)
    np.testing.assert_array_equal(box, other)
    assert not is_patch
    keys = jax.random.split(jax.random.key(0), 2000)
    boxes, are_patches = jax.jit(jax.vmap(lambda key: cut_patch(key, other, BOX, 1.0)))(keys)
    scale = (boxes[:, 2] - boxes[:, 0]) / 40
    assert are_patches.all() and scale.min() < 0.01 and scale.max() > 0.99


@pytest.mark.parametrize("box", [[np.nan, 0, 9, 9], [9, 0, 3, 9], [5, 5, 5, 9], [-3e38, 0, 3e38, 9]])
def test_of_a_broken_box_there_is_no_part(box):
    box, is_patch = cut_patch(jax.random.key(0), BOX, jnp.array(box, jnp.float32), 1.0)
    np.testing.assert_array_equal(box, BOX)
    assert not is_patch


def test_each_generator_goes_to_another_skeleton_by_its_own_rule():
    assert in_skeleton(Law("harsh"), COCO_17) == Law("harsh")
    there, expected = in_skeleton(pgpg(), COCO_17), mixtures.in_skeleton(pgpg(), COCO_17)
    assert there.skeleton == "coco_17"
    assert_identical(there, expected)
    assert in_skeleton(dpg(), COCO_17) == scored.in_skeleton(dpg(), COCO_17) != dpg()


def test_a_moved_box_keeps_its_lower_corner_where_it_would_be_turned_over():
    np.testing.assert_allclose(moved_box(BOX, jnp.array([0.75, 0.5, -0.75, 0.0])), [40, 60, 44, 140])


@pytest.mark.parametrize("name", ["jitter", "pgpg", "dpg", "", "gaussian", "PATCH_15"])
def test_an_unknown_law_is_refused(name):
    with pytest.raises(ValueError, match=f"expected one of {', '.join(LAWS)}, got '{name}'"):
        Law(name)
