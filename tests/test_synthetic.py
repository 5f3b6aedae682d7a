import numpy as np
import pytest

from rmpe_jax.data import synthetic
from rmpe_jax.data.files import DataError
from rmpe_jax.data.images import read_image
from rmpe_jax.data.synthetic import DrawnPicture, draw_scene, read_synthetic
from rmpe_jax.skeleton import COCO_LSP_19

PICTURES = 30


@pytest.fixture(scope="module")
def scenes():
    """Pixels, labels, and the outline of each drawn person from the farthest to the nearest, of some pictures."""
    outlines, draw = [], synthetic._draw_person

    def noting(rng, image, joints):
        outlines[-1].append((joints, draw(rng, image, joints)))
        return outlines[-1][-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "_draw_person", noting)
        found = []
        for number in range(PICTURES):
            outlines.append([])
            found.append((*draw_scene(0, number), outlines[-1]))
    return found


def people_with_outlines(scene):
    """Labels with the person's own outline and the outline of everybody nearer."""
    _, labels, drawn = scene
    for label in labels:
        places = [joints["nose"] for joints, _ in drawn]
        row = next(n for n, nose in enumerate(places) if (nose == label["points"][0]).all())
        nearer = np.any([mask for _, mask in drawn[row + 1 :]] or [np.zeros((240, 320), bool)], 0)
        yield label, drawn[row][1], nearer


def pixels_of(label):
    """Row and column of each joint that is labelled."""
    known = label["visibility"] > 0
    return tuple(np.round(label["points"][known]).astype(int).T[::-1])


def test_a_picture_is_a_function_of_seed_and_number(scenes):
    for number in (0, 7):
        image, labels = draw_scene(0, number)
        np.testing.assert_array_equal(image, scenes[number][0])
        np.testing.assert_array_equal([p["points"] for p in labels], [p["points"] for p in scenes[number][1]])
    assert (draw_scene(1, 0)[0] != scenes[0][0]).any() and (scenes[1][0] != scenes[0][0]).any()


def test_training_and_validation_pictures_differ_whatever_the_seed():
    pictures = {
        str(record.picture)
        for seed in (0, 1)
        for split in ("train", "val")
        for record in read_synthetic(split, pictures=3, seed=seed)
    }
    assert len(pictures) == 12


def test_a_longer_set_begins_with_the_shorter_one():
    short, long = (read_synthetic("val", pictures=count) for count in (2, 4))
    for one, other in zip(short, long, strict=False):
        assert one.picture == other.picture and one.image_id == other.image_id
        np.testing.assert_array_equal(one.points, other.points)


def test_the_records_hold_what_was_drawn(scenes):
    for record, (image, labels, _) in zip(read_synthetic("train", pictures=3), scenes, strict=False):
        assert record.picture.read().shape == (240, 320, 3) and len(record) == len(labels)
        np.testing.assert_array_equal(record.picture.read(), image)
        np.testing.assert_array_equal(record.visibility, [p["visibility"] for p in labels])
        np.testing.assert_array_equal(record.boxes, [p["boxes"] for p in labels])
        assert not record.crowd.any() and record.points.shape == (len(labels), 19, 2)


def test_the_encoded_picture_is_the_drawn_one():
    one = DrawnPicture(3, 5)
    np.testing.assert_array_equal(read_image(one.read_bytes()), one.read())
    assert str(one) == "synthetic/3-000005.png"


def test_one_to_five_people_are_drawn_and_nobody_without_a_joint_in_the_picture(scenes):
    counts = [len(labels) for _, labels, _ in scenes]
    assert set(counts) <= set(range(6)) and max(counts) >= 4 and min(counts) <= 1
    assert all((p["visibility"] > 0).any() for _, labels, _ in scenes for p in labels)


def test_people_stand_from_the_farthest_to_the_nearest(scenes):
    for _, labels, _ in scenes:
        sizes = [p["heads"][2] - p["heads"][0] for p in labels]
        assert sizes == sorted(sizes)


def test_a_joint_is_labelled_where_it_lies_in_the_picture(scenes):
    for _, labels, _ in scenes:
        for person in labels:
            inside = (np.round(person["points"]) >= 0) & (np.round(person["points"]) < [320, 240])
            np.testing.assert_array_equal(person["visibility"] > 0, inside.all(1))


def hidden_face(label):
    """The nose and eyes of somebody who is seen from behind: the left shoulder is on the picture's left."""
    names = COCO_LSP_19.joints
    left, right = (label["points"][names.index(f"{side}_shoulder"), 0] for side in ("left", "right"))
    return np.array([joint in ("nose", "left_eye", "right_eye") for joint in names]) & (left < right)


def test_some_people_are_seen_from_behind_and_show_no_face(scenes):
    people = [label for scene in scenes for label in scene[1]]
    behind = [label for label in people if hidden_face(label).any()]
    assert 0.15 < len(behind) / len(people) < 0.55
    assert all((label["visibility"][hidden_face(label)] < 2).all() for label in behind)


def test_a_joint_is_visible_where_the_person_is_drawn_and_nobody_nearer_is(scenes):
    hidden = 0
    for scene in scenes:
        for label, own, nearer in people_with_outlines(scene):
            known, (row, column) = label["visibility"] > 0, pixels_of(label)
            expected = own[row, column] & ~nearer[row, column] & ~hidden_face(label)[known]
            np.testing.assert_array_equal(label["visibility"][known] == 2, expected)
            hidden += (own[row, column] & nearer[row, column]).sum()
    assert hidden > 50  # the pictures do test it


def test_only_visible_joints_lose_their_colour_when_the_person_is_left_out(monkeypatch):
    draw, checked = synthetic._draw_person, 0
    for number in range(6):
        image, labels = draw_scene(0, number)
        for label in labels:

            def leaving_out(rng, canvas, joints, whom=label):
                same = (joints["nose"] == whom["points"][0]).all()
                return draw(rng, canvas.copy() if same else canvas, joints)

            with monkeypatch.context() as patch:
                patch.setattr(synthetic, "_draw_person", leaving_out)
                without, _ = draw_scene(0, number)
            row, column = pixels_of(label)
            changed = (image != without).any(-1)[row, column]
            known = label["visibility"] > 0
            visible = label["visibility"][known] == 2
            assert not changed[~visible & ~hidden_face(label)[known]].any()
            # Clothes may have the colour of what is behind them, but not everywhere.
            assert changed[visible].sum() >= 0.8 * visible.sum()
            checked += visible.sum()
    assert checked > 100


def test_boxes_hold_the_outline_and_all_visible_joints(scenes):
    for scene in scenes:
        for label, own, _ in people_with_outlines(scene):
            rows, columns = np.nonzero(own)
            outline = [columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5]
            np.testing.assert_array_equal(label["boxes"], outline)
            shown = label["points"][label["visibility"] == 2]
            # A joint counts by the pixel it lies in.
            assert (shown >= label["boxes"][:2] - 0.5).all() and (shown <= label["boxes"][2:] + 0.5).all()


def test_the_area_is_that_of_the_outline_and_positive(scenes):
    for scene in scenes:
        for label, own, _ in people_with_outlines(scene):
            assert label["area"] == own.sum() > 0


def test_the_head_box_is_a_square_around_neck_and_head_top(scenes):
    neck, top = COCO_LSP_19.joints.index("neck"), COCO_LSP_19.joints.index("head_top")
    for _, labels, _ in scenes:
        for person in labels:
            size = np.linalg.norm(person["points"][top] - person["points"][neck])
            np.testing.assert_allclose(person["heads"][2:] - person["heads"][:2], size)
            middle = person["points"][[neck, top]].mean(0)
            np.testing.assert_allclose((person["heads"][:2] + person["heads"][2:]) / 2, middle)


def test_an_unknown_split_names_the_known_ones():
    with pytest.raises(DataError, match="the splits train and val, not 'test'"):
        read_synthetic("test")
