import numpy as np
import pytest
from made_data import (
    coco_annotation,
    flic_example,
    waf_sticks,
    write_coco,
    write_crowdpose,
    write_flic,
    write_lsp,
    write_lspet,
    write_mpii,
    write_waf,
)

from rmpe_jax.browse import labels_sheet, sets_table
from rmpe_jax.data import synthetic
from rmpe_jax.data.files import DataError
from rmpe_jax.data.prepare import prepare_data
from rmpe_jax.data.sets import DATA_SETS, read_data

BOX = (10.0, 5.0, 60.0, 90.0)
# A picture of 96 x 160 is a tile of 192 x 320 under a caption of 18.
TILE = (210, 320)


def tiles(sheet, size=TILE):
    """The cells of a sheet, in order."""
    rows, columns = sheet.shape[0] // size[0], sheet.shape[1] // size[1]
    cells = sheet.reshape(rows, size[0], columns, size[1], 3).swapaxes(1, 2)
    return cells.reshape(-1, *size, 3)


WRITERS = {
    "coco": write_coco,
    "crowdpose": write_crowdpose,
    "flic": write_flic,
    "lsp": write_lsp,
    "lspet": write_lspet,
    "mpii": write_mpii,
    "waf": lambda folder: write_waf(folder, {3: [waf_sticks(BOX)]}),
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_set_is_drawn_from_its_first_split_that_can_be_read(tmp_path, name, monkeypatch):
    monkeypatch.setattr(synthetic, "SYNTHETIC_PICTURES", {"train": 3, "val": 1})
    if name != "synthetic":
        WRITERS[name](tmp_path)
    split = {"coco": "val2017", "crowdpose": "val", "mpii": "trainval"}.get(name, "train")
    sheet, line, _ = labels_sheet(name, tmp_path, count=3)
    pictures = read_data(name, tmp_path, split)
    people = sum(map(len, pictures))
    assert line == f"3 of {len(pictures)} pictures ({people} people) of {name}, split {split}"
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[2] == 3 and sheet.shape[1] % 3 == 0


def test_a_sheet_has_as_many_tiles_as_asked_for_or_as_there_are(tmp_path):
    write_coco(tmp_path, pictures=6)
    for count, cells in ((1, (1, 1)), (3, (1, 3)), (5, (2, 4)), (12, (2, 4))):
        sheet, line, _ = labels_sheet("coco", tmp_path, split="val2017", count=count)
        assert sheet.shape == (TILE[0] * cells[0], TILE[1] * cells[1], 3)
        assert line.startswith(f"{min(count, 6)} of 6 pictures (12 people)")


def test_the_choice_depends_on_the_seed_only(tmp_path):
    write_coco(tmp_path, pictures=6)
    first, again, other = (labels_sheet("coco", tmp_path, count=2, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_people_and_crowds_are_boxed_and_joints_drawn(tmp_path):
    annotations = [coco_annotation(1, 1, BOX), coco_annotation(2, 2, BOX, iscrowd=1, keypoints=[0] * 51)]
    write_coco(tmp_path, annotations=annotations, pictures=3)
    for number in (1, 2, 3):
        picture = tmp_path / "val2017" / f"{number:012}.jpg"
        picture.write_bytes((tmp_path / "val2017" / "000000000001.jpg").read_bytes())
    person, crowd, nobody = tiles(labels_sheet("coco", tmp_path, split="val2017")[0])
    # The box's left side at x = 10 of the picture is at 20.5 of the tile, the hips' middle at 35, 50 is 71, 100.
    outline = (slice(18 + 40, 18 + 150), slice(19, 23))
    for drawn, boxed, jointed in ((person, True, True), (crowd, True, False)):
        changed = (drawn != nobody).any(-1)
        assert changed[outline].any(1).all() == boxed
        inside = changed[18 + 30 : 18 + 160, 30:110]
        assert inside.any() == jointed


def test_a_picture_without_people_is_drawn_as_it_is(tmp_path):
    write_coco(tmp_path, annotations=[], pictures=2)
    sheet, line, _ = labels_sheet("coco", tmp_path)
    assert sheet.shape == (TILE[0], 2 * TILE[1], 3) and "(0 people)" in line


def test_hidden_joints_look_different_from_visible_ones(tmp_path):
    visible, hidden = coco_annotation(1, 1, BOX), coco_annotation(2, 2, BOX)
    hidden["keypoints"][2::3] = [1] * 17
    write_coco(tmp_path, annotations=[visible, hidden], pictures=2)
    first = tmp_path / "val2017" / "000000000001.jpg"
    (tmp_path / "val2017" / "000000000002.jpg").write_bytes(first.read_bytes())
    one, other = tiles(labels_sheet("coco", tmp_path, split="val2017")[0])
    changed = (one[18:] != other[18:]).any(-1)
    assert 17 <= changed.sum() < 3000


def test_a_picture_that_cannot_be_read_is_a_grey_tile_of_its_own(tmp_path):
    write_flic(tmp_path, examples=[flic_example(n, BOX, train=True) for n in (1, 2)])
    (tmp_path / "images" / "film-00000002.jpg").write_bytes(b"nothing")
    sheet, line, _ = labels_sheet("flic", tmp_path)
    assert sheet.shape == (338, 640, 3) and line.startswith("2 of 2 pictures")
    broken = tiles(sheet, (338, 320))[1]
    assert (broken[18:] == 60).all() and (broken[:18] > 30).any()


def test_a_prepared_set_gives_the_same_sheet_as_its_source(tmp_path):
    write_coco(tmp_path / "source", pictures=4)
    prepare_data("coco", tmp_path / "source", tmp_path / "target", report=lambda line: None)
    one, other = (labels_sheet("coco", tmp_path / folder, count=4)[:2] for folder in ("source", "target"))
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]


def test_a_set_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(DataError, match=r"has no annotations/person_keypoints_train2017\.json"):
        labels_sheet("coco", tmp_path)
    with pytest.raises(DataError, match="unknown data set 'ski'"):
        labels_sheet("ski", tmp_path)


def test_a_split_without_pictures_is_named(tmp_path):
    write_flic(tmp_path, examples=[flic_example(n, BOX, train=True) for n in (1, 2)])
    with pytest.raises(DataError, match="the split test of flic has no pictures"):
        labels_sheet("flic", tmp_path, split="test")


def test_the_table_tells_each_sets_joints_splits_and_files():
    table = sets_table()
    for found in DATA_SETS.values():
        assert f"{found.name}: {found.title}, {found.skeleton.size} joints ({found.skeleton.name})" in table
        assert f"  splits: {', '.join(found.splits)}\n  files:  {found.hint}\n  home:   {found.home}" in table


@pytest.mark.parametrize(
    ("name", "split", "line"),
    [
        ("lspet", "val", "12 of 500 pictures (500 people) of lspet, split val"),
        ("coco", "val2017", "12 of 40 pictures (137 people) of coco, split val2017"),
    ],
)
def test_the_real_sets_are_drawn(real_data, name, split, line):
    sheet, said, _ = labels_sheet(name, real_data / name, split=split)
    assert said == line
    assert sheet.shape[1] == 4 * 320 and sheet.shape[0] % 3 == 0 and sheet.std() > 30
