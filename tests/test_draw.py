import numpy as np
import pytest
from made_data import figure, picture

from rmpe_jax.draw import caption, contact_sheet, draw_poses
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
