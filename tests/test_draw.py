from dataclasses import replace

import numpy as np
import pytest
from made_data import figure, picture

from rmpe_jax.draw import (
    caption,
    contact_sheet,
    draw_arrows,
    draw_boxes,
    draw_grid,
    draw_heatmaps,
    draw_poses,
    draw_suppressed,
    suppression_sheet,
)
from rmpe_jax.nms.pose import PRESETS, Suppressed, suppress_poses
from rmpe_jax.records import Poses
from rmpe_jax.skeleton import COCO_17, COCO_LSP_19

BLACK = np.zeros((640, 480, 3), np.uint8)
POSE = figure(COCO_17.joints, (100, 50, 380, 600))[None].astype(np.float32)
SURE = np.ones((1, 17), np.float32)


def middle(a, b):
    points = POSE[0, [COCO_17.joints.index(a), COCO_17.joints.index(b)]]
    x, y = points.mean(0).round().astype(int)
    return y, x


def test_a_drawn_picture_is_a_copy_of_the_same_shape():
    image = picture(640, 480)
    before = image.copy()
    image.flags.writeable = False
    drawn = draw_poses(image, POSE, SURE, COCO_17)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    assert (drawn != image).any()


def test_left_limbs_are_blue_right_ones_orange_and_the_middle_white():
    drawn = draw_poses(BLACK, POSE, SURE, COCO_17)
    assert drawn[middle("left_hip", "left_knee")].tolist() == [80, 180, 255]
    assert drawn[middle("right_hip", "right_knee")].tolist() == [255, 140, 60]
    assert drawn[middle("left_hip", "right_hip")].tolist() == [255, 255, 255]


def test_each_joint_is_a_disc_of_the_colour_of_its_pose():
    two = np.concatenate([POSE, POSE + [0, 20]])
    drawn = draw_poses(BLACK, two, np.repeat(SURE, 2, 0), COCO_17)
    # The second pose is drawn over the first.
    x, y = two[1, COCO_17.joints.index("left_wrist")].round().astype(int)
    u, v = two[0, COCO_17.joints.index("left_wrist")].round().astype(int)
    assert drawn[y, x].max() == 255 and drawn[y, x].tolist() != drawn[v, u].tolist()


def test_joints_of_low_score_and_their_limbs_are_left_out():
    score = SURE.copy()
    score[0, COCO_17.joints.index("left_knee")] = 0.14
    drawn = draw_poses(BLACK, POSE, score, COCO_17)
    assert drawn[middle("left_hip", "left_knee")].tolist() == [0, 0, 0]
    assert drawn[middle("right_hip", "right_knee")].tolist() == [255, 140, 60]
    assert (draw_poses(BLACK, POSE, score, COCO_17, smallest_score=0.1)[middle("left_hip", "left_knee")] > 0).any()
    assert not draw_poses(BLACK, POSE, SURE * 0.1, COCO_17).any()


@pytest.mark.parametrize("place", [np.nan, np.inf, -np.inf])
def test_joints_that_are_not_finite_are_left_out(place):
    points = POSE.copy()
    points[0, COCO_17.joints.index("left_knee")] = place
    drawn = draw_poses(BLACK, points, SURE, COCO_17)
    assert drawn[middle("left_hip", "left_knee")].tolist() == [0, 0, 0] and drawn.any()


@pytest.mark.parametrize("far", [1e4, 1e20, -1e20])
def test_joints_and_boxes_far_outside_draw_nothing_and_raise_nothing(far):
    box = np.array([sorted([far, far, 2 * far, 2 * far])], np.float32)
    assert not draw_poses(BLACK, POSE * 0 + far, SURE, COCO_17, boxes=box).any()


def test_a_box_is_drawn_on_its_four_sides():
    box = np.array([[100, 200, 300, 400]], np.float32)
    drawn = draw_poses(BLACK, POSE, SURE * 0, COCO_17, boxes=box)
    for y, x in ((200, 200), (400, 200), (300, 100), (300, 300)):
        assert drawn[y, x].max() == 255
    assert not drawn[210:390, 110:290].any() and not drawn[:190].any()


def test_boxes_are_drawn_on_a_copy_each_in_its_colour_or_all_in_one():
    image = picture(640, 480)
    before = image.copy()
    image.flags.writeable = False
    boxes = np.array([[100.0, 50.0, 200.0, 300.0], [250.0, 350.0, 400.0, 600.0], [np.nan, 0.0, 9.0, 9.0]])
    drawn = draw_boxes(image, boxes)
    np.testing.assert_array_equal(image, before)
    colours = [drawn[175, 100].tolist(), drawn[475, 250].tolist()]
    assert colours[0] != colours[1] and max(colours[0]) == max(colours[1]) == 255
    green = draw_boxes(image, boxes, colour=(9, 220, 9))
    for y, x in ((175, 100), (50, 150), (300, 150), (475, 400)):
        assert green[y, x].tolist() == [9, 220, 9]
    # Nothing within them is touched, nor is anything around.
    np.testing.assert_array_equal(green[60:290, 110:190], image[60:290, 110:190])
    np.testing.assert_array_equal(green[:40], image[:40])
    np.testing.assert_array_equal(draw_boxes(image, np.zeros((0, 4))), image)
    assert np.array_equal(draw_boxes(image, np.array([[1e20, 1e20, 2e20, 2e20]])), image)


def test_a_box_that_is_not_finite_is_left_out():
    assert not draw_poses(BLACK, POSE, SURE * 0, COCO_17, boxes=np.full((1, 4), np.nan, np.float32)).any()


def test_no_poses_draw_nothing():
    drawn = draw_poses(BLACK, np.zeros((0, 19, 2)), np.zeros((0, 19)), COCO_LSP_19, boxes=np.zeros((0, 4)))
    np.testing.assert_array_equal(drawn, BLACK)


def test_a_picture_of_one_pixel_is_drawn_on():
    assert draw_poses(BLACK[:1, :1], POSE * 0, SURE, COCO_17).shape == (1, 1, 3)


@pytest.mark.parametrize("height", [320, 640, 1280])
def test_a_joint_below_the_hidden_limit_is_a_ring_and_the_others_are_discs(height):
    image, points = np.zeros((height, height, 3), np.uint8), np.full((1, 17, 2), 40.0)
    points[0, 10:] = 100
    wrist, knee = COCO_17.joints.index("left_wrist"), COCO_17.joints.index("left_knee")
    score = np.zeros((1, 17), np.float32)  # the others, and so the limbs, are left out
    score[0, [wrist, knee]] = 0.5, 0.75
    ring, disc = points[0, [wrist, knee]].astype(int)
    drawn = draw_poses(image, points, score, COCO_17, hidden_below=0.75)
    assert not drawn[ring[1], ring[0]].any() and drawn[ring[1] - 15 : ring[1], ring[0]].any()
    assert drawn[disc[1], disc[0]].max() == 255
    without = draw_poses(image, points, score, COCO_17)
    assert without[ring[1], ring[0]].max() == 255


KNEE, SHIFT, RED = ("left_hip", "left_knee"), 100, [255, 64, 64]


def poses(shifts=(0, SHIFT), score=1.0):
    whole = POSE - POSE.mean((0, 1)) % 1  # the middle is a pixel's
    points = np.concatenate([whole + np.float32([shift, 0]) for shift in shifts]) if shifts else POSE[:0]
    count = len(shifts)
    boxes = np.tile(np.float32([100, 50, 380, 600]), (count, 1))
    return Poses(points, np.full((count, 17), score, np.float32), boxes, np.ones(count, bool))


def outcome(given, eliminator, **changes):
    """As if the pose NMS had given these eliminators."""
    eliminator = np.array(eliminator, np.int32)
    return Suppressed(replace(given, valid=eliminator == np.arange(len(eliminator)), **changes), eliminator)


def like(pixels, colour):
    """Which are of about this colour: a line's edge is smoothed."""
    return (np.abs(pixels.astype(int) - colour) <= 25).all(-1)


def centre(given, number):
    x, y = given.points[number].mean(0).round().astype(int)
    return y, x


def test_where_every_pose_stays_the_suppressed_are_drawn_as_poses_are():
    image, given = picture(640, 480), poses()
    drawn = draw_suppressed(image, given, outcome(given, [0, 1]), COCO_17)
    np.testing.assert_array_equal(drawn, draw_poses(image, given.points, given.score, COCO_17))


def test_the_pose_that_stays_looks_as_if_it_were_alone_whatever_its_number():
    given = poses((SHIFT, 0))
    drawn = draw_suppressed(BLACK, given, outcome(given, [1, 1]), COCO_17)
    alone = draw_poses(BLACK, given.points[1:], given.score[1:], COCO_17)
    np.testing.assert_array_equal(drawn[middle(*KNEE)], alone[middle(*KNEE)])
    x, y = given.points[1, COCO_17.joints.index("right_ankle")].round().astype(int)
    assert drawn[y, x].tolist() == alone[y, x].tolist() == RED


def test_a_pose_that_went_is_faded_thin_and_of_the_colour_of_the_one_that_removed_it():
    grey, given = np.full_like(BLACK, 100), poses()
    drawn = draw_suppressed(grey, given, outcome(given, [0, 0]), COCO_17)
    x, y = given.points[1, COCO_17.joints.index("right_ankle")].round().astype(int)
    np.testing.assert_allclose(drawn[y, x], 0.4 * 100 + 0.6 * np.array(RED), atol=1)
    y, x = middle(*KNEE)
    assert drawn[y, x + SHIFT, 0] > drawn[y, x + SHIFT, 2] and drawn[y, x].tolist() == [80, 180, 255]
    alone = draw_poses(grey, given.points[1:], given.score[1:], COCO_17)
    across = [(image[y - 5 : y + 5, x + SHIFT - 10 : x + SHIFT + 10] != 100).any(-1).sum() for image in (drawn, alone)]
    assert 0 < across[0] < 0.75 * across[1]


def test_a_line_leads_from_the_middle_of_a_pose_that_went_to_that_of_the_one_that_removed_it():
    given = poses()
    drawn = draw_suppressed(BLACK, given, outcome(given, [0, 0]), COCO_17)
    (y, start), (_, end) = centre(given, 1), centre(given, 0)
    assert like(drawn[y, end + 3 : start - 3], RED).all()
    # The disc is at its start; a dark edge is all round.
    assert drawn[y + 2, start].tolist() == RED and drawn[y + 2, (start + end) // 2].tolist() != RED
    light = draw_suppressed(BLACK + 255, given, outcome(given, [0, 0]), COCO_17)
    assert (light[y + 1, (start + end) // 2] < 100).all()


def test_a_pose_that_was_merged_is_drawn_and_linked_where_it_is_now():
    given = poses()
    moved = given.points + np.float32([0, 30])
    drawn = draw_suppressed(BLACK, given, outcome(given, [0, 0], points=moved), COCO_17)
    y, x = centre(given, 0)
    assert (
        like(drawn[y + 29 : y + 32, x - 1 : x + 4], RED).any() and not like(drawn[y - 2 : y + 3, x : x + 9], RED).any()
    )
    ankle = given.points[0, COCO_17.joints.index("right_ankle")].round().astype(int)
    assert drawn[ankle[1] + 30, ankle[0]].tolist() == RED
    # The one that went is where it was: its ankle is half as bright.
    assert 100 < drawn[ankle[1], ankle[0] + SHIFT, 0] < 200 and not drawn[ankle[1] + 30, ankle[0] + SHIFT].any()


def test_a_pose_left_out_though_nobody_removed_it_is_grey_and_has_no_link():
    given = poses((SHIFT, 0))
    drawn = draw_suppressed(BLACK, given, outcome(given, [-1, 1]), COCO_17)
    y, x = middle(*KNEE)
    assert len(set(drawn[y, x + SHIFT].tolist())) == 1 and 50 < drawn[y, x + SHIFT, 0] < 150
    (y, start), (_, end) = centre(given, 0), centre(given, 1)
    assert not drawn[y, start].any() and not drawn[y, (start + end) // 2].any()


def test_a_pose_removed_by_one_that_is_left_out_is_grey_and_linked_to_it():
    given = poses()
    drawn = draw_suppressed(BLACK, given, outcome(given, [-1, 0]), COCO_17)
    assert (np.ptp(drawn.astype(int), axis=-1) <= 1).all() and drawn.any()
    (y, start), (_, end) = centre(given, 1), centre(given, 0)
    assert like(drawn[y, end + 3 : start - 3], [170, 170, 170]).all()


def test_entries_that_are_not_valid_are_not_drawn():
    given = poses((0, SHIFT, -50))
    given = replace(given, valid=np.array([True, True, False]))
    two = poses()
    drawn = draw_suppressed(BLACK, given, outcome(given, [0, 0, -1]), COCO_17)
    np.testing.assert_array_equal(drawn, draw_suppressed(BLACK, two, outcome(two, [0, 0]), COCO_17))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_middle_is_that_of_the_joints_drawn(bad):
    given = poses()
    given.points[:, 0] = bad
    given.score[:, 1], given.points[:, 1] = 0.1, 0
    given.score[:, 2], given.points[:, 2] = np.nan, 0
    given.points[:, 3:] -= given.points[0, 3:].mean(0) % 1
    drawn = draw_suppressed(BLACK, given, outcome(given, [0, 0]), COCO_17)
    (end, y), (start, _) = given.points[:, 3:].mean(1).round().astype(int)
    assert like(drawn[y, end + 3 : start - 3], RED).all()


def test_a_pose_without_joints_to_draw_has_no_link_and_takes_none():
    for number in (0, 1):
        given = poses()
        given.points[number] = np.nan
        drawn = draw_suppressed(BLACK, given, outcome(given, [0, 0]), COCO_17)
        (y, start), (_, end) = centre(poses(), 1), centre(poses(), 0)
        assert drawn.any() and not drawn[y, (start + end) // 2].any()


@pytest.mark.parametrize("far", [1e4, 1e20, -3e38])
def test_suppressed_poses_far_outside_draw_nothing_and_raise_nothing(far):
    given = poses()
    given.points[:] = far
    assert not draw_suppressed(BLACK, given, outcome(given, [0, 0]), COCO_17).any()


@pytest.mark.parametrize("shape", [(640, 480), (640, 480, 1), (640, 480, 3), (1, 1, 3)])
def test_suppressed_poses_are_drawn_on_a_copy_of_the_same_shape(shape):
    image, given = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape), poses()
    before = image.copy()
    image.flags.writeable = False
    drawn = draw_suppressed(image, given, outcome(given, [0, 0]), COCO_17)
    assert drawn.shape == shape and drawn.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    # Where nothing is drawn the picture shows as it is.
    np.testing.assert_array_equal(drawn[620:], image[620:])


def test_of_nobody_nothing_is_drawn():
    given = poses(())
    image = picture(60, 40)
    np.testing.assert_array_equal(draw_suppressed(image, given, suppress_poses(given), COCO_17), image)


def test_the_result_of_other_poses_is_refused():
    with pytest.raises(ValueError, match="expected the 2 poses that were suppressed, got 3"):
        draw_suppressed(BLACK, poses((0, 1, 2)), outcome(poses(), [0, 0]), COCO_17)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_the_pose_nms_returns_is_drawn(preset):
    given = poses((0, 1, SHIFT))
    drawn = draw_suppressed(BLACK, given, suppress_poses(given, parameters=PRESETS[preset]), COCO_17)
    # The first and the third stay, the second lies under the first.
    y, x = middle(*KNEE)
    assert drawn[y, x].tolist() == drawn[y, x + SHIFT].tolist() == [80, 180, 255]


def test_a_sheet_shows_every_pose_before_and_those_that_stay_after_with_their_numbers():
    given = replace(poses((0, SHIFT, -50)), valid=np.array([True, True, False]))
    result = outcome(given, [0, 0, -1])
    sheet = suppression_sheet(BLACK, given, result, COCO_17)
    before = caption(draw_poses(BLACK, given.points[:2], given.score[:2], COCO_17), "before: 2 poses")
    after = caption(draw_suppressed(BLACK, given, result, COCO_17), "after: 1 stay")
    np.testing.assert_array_equal(sheet, np.concatenate([before, after], 1))


def test_captions_stand_above_the_picture_and_never_change_it():
    image = picture(40, 50)
    with_text = caption(image, "größer als die Kachel: " + 30 * "x")
    assert with_text.shape == (58, 50, 3) and with_text.dtype == np.uint8
    np.testing.assert_array_equal(with_text[18:], image)
    assert (with_text[:18] > 30).any() and not (caption(image, "")[:18] > 30).any()


def test_a_contact_sheet_shows_every_tile_centred_in_its_cell():
    tiles = [np.full((20 + 2 * n, 30 - 2 * n, 3), 100 + n, np.uint8) for n in range(6)]
    sheet = contact_sheet(tiles)
    assert sheet.shape == (2 * 30, 4 * 30, 3) and sheet.dtype == np.uint8
    for number, tile in enumerate(tiles):
        row, column = divmod(number, 4)
        cell = sheet[30 * row : 30 * row + 30, 30 * column : 30 * column + 30, 0]
        ys, xs = np.nonzero(cell == 100 + number)
        assert len(ys) == tile.shape[0] * tile.shape[1]
        assert ys.min() == (30 - tile.shape[0]) // 2 and xs.min() == (30 - tile.shape[1]) // 2
    assert (sheet[30:, 60:] == 30).all()


@pytest.mark.parametrize(("count", "columns", "cells"), [(1, 4, (1, 1)), (3, 4, (1, 3)), (5, 2, (3, 2))])
def test_a_sheet_is_no_wider_than_its_tiles_need(count, columns, cells):
    sheet = contact_sheet([picture(10, 20)] * count, columns=columns)
    assert sheet.shape == (10 * cells[0], 20 * cells[1], 3)


IDENTITY = np.eye(2, 3)


@pytest.mark.parametrize(
    "draw",
    [
        lambda image: draw_grid(image, IDENTITY, (40, 50)),
        lambda image: draw_arrows(image, np.array([[5.0, 5.0]]), np.array([[20.0, 10.0]])),
        lambda image: draw_heatmaps(image, np.full((10, 12, 3), 0.5, np.float32)),
    ],
    ids=["grid", "arrows", "heatmaps"],
)
def test_grids_arrows_and_maps_are_drawn_on_a_copy_of_the_same_shape(draw):
    image = picture(40, 50)
    before = image.copy()
    image.flags.writeable = False
    drawn = draw(image)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    assert (drawn != image).any()


def test_the_grid_of_the_identity_touches_every_edge_and_its_upper_one_is_orange():
    drawn = draw_grid(BLACK, IDENTITY, BLACK.shape[:2], lines=3)
    inner = slice(8, -8)
    for edge in (drawn[0, inner], drawn[-1, inner], drawn[inner, 0], drawn[inner, -1]):
        assert edge.any(-1).all()
    assert drawn[0, 100].tolist() == [255, 140, 60] and drawn[-1, 100, 2] > drawn[-1, 100, 0]
    # One line in the middle of each direction, and nothing between.
    assert drawn[inner, 238:242].any() and drawn[318:322, inner].any()
    assert not drawn[10:310, 10:230].any()


def test_a_grid_lies_where_the_crop_reads():
    # A crop of 10 x 10 pixels, enlarged by 4: from 19.5 to 59.5 across and from 29.5 to 69.5 down.
    drawn = draw_grid(BLACK, np.array([[4.0, 0, 21.5], [0, 4.0, 31.5]]), (10, 10), lines=2)
    rows, columns = np.nonzero(drawn.any(-1))
    np.testing.assert_allclose([columns.min(), columns.max(), rows.min(), rows.max()], [19.5, 59.5, 29.5, 69.5], atol=4)
    assert not drawn[34:66, 24:56].any()


def test_an_arrow_goes_from_its_point_to_the_end_of_its_vector():
    drawn = draw_arrows(BLACK, np.array([[100.0, 200.0]]), np.array([[60.0, 0.0]]), colour=(10, 200, 30))
    rows, columns = np.nonzero(drawn.any(-1))
    np.testing.assert_allclose([columns.min(), columns.max()], [100, 160], atol=2)
    assert drawn[200, 160].tolist() == [10, 200, 30]
    # The head is at the end.
    assert np.ptp(rows[columns > 140]) > np.ptp(rows[columns < 120])
    assert abs(rows.mean() - 200) < 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_arrow_that_is_not_finite_is_left_out(bad):
    starts, vectors = np.full((2, 2), 50.0), np.array([[bad, 0.0], [30.0, 0.0]])
    both = draw_arrows(BLACK, starts, vectors)
    np.testing.assert_array_equal(both, draw_arrows(BLACK, starts[1:], vectors[1:]))
    assert not draw_arrows(BLACK, starts[:1], vectors[:1]).any()
    np.testing.assert_array_equal(draw_arrows(BLACK, np.zeros((0, 2)), np.zeros((0, 2))), BLACK)


def test_maps_of_zeros_change_nothing():
    image = picture(40, 50)
    np.testing.assert_array_equal(draw_heatmaps(image, np.zeros((10, 12, 3))), image)
    np.testing.assert_array_equal(draw_heatmaps(image, np.full((10, 12, 3), -1.0)), image)


def test_a_map_glows_where_it_is_high():
    maps = np.zeros((10, 10, 2), np.float32)
    maps[2, 7, 1] = 3.0  # cut at 1
    drawn = draw_heatmaps(np.full((40, 40, 3), 100, np.uint8), maps)
    # The map's pixel is four of the picture, edges on edges; its middle, an eighth of a pixel away, has 0.77 of it.
    y, x = np.unravel_index(drawn[..., 0].argmax(), (40, 40))
    assert 8 <= y < 12 and 28 <= x < 32
    strength = 0.8 * 0.875**2
    expected = 100 * (1 - strength) + 255 * strength * np.array([1, 0.875**2, 0])
    np.testing.assert_allclose(drawn[y, x], expected, atol=1)
    np.testing.assert_array_equal(drawn[20:], 100)
