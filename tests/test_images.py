import warnings

import numpy as np
import pytest
from made_data import encoded, picture
from PIL import Image

from rmpe_jax.data import images
from rmpe_jax.data.images import PictureError, read_image, write_image
from rmpe_jax.files import replacing

# What each EXIF orientation does to an upright picture when it is stored.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def assert_refused(path, message):
    with pytest.raises(PictureError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    assert_refused(tmp_path / "none.jpg", "no such file")


def test_a_folder_is_named(tmp_path):
    assert_refused(tmp_path, "a folder")


@pytest.mark.parametrize("content", [b"", b"not a picture at all\n" * 20, bytes(1000)])
def test_what_is_not_a_picture_is_named(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert_refused(path, "not a picture")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_a_file_cut_in_the_middle_is_named(tmp_path, kind):
    data = encoded(picture(), kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) // 2])
    assert_refused(path, "cannot be decoded|not a picture")


def test_bytes_are_read_and_errors_take_the_given_name():
    np.testing.assert_array_equal(read_image(encoded(picture(), "PNG")), picture())
    with pytest.raises(PictureError, match="^archive.zip:im7: "):
        read_image(b"nothing", name="archive.zip:im7")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_damage_anywhere_gives_a_picture_or_a_picture_error_and_no_warning(kind):
    rng = np.random.default_rng(0)
    data = encoded(picture(16, 24), kind)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 120), 2):
            damaged[place] = rng.integers(0, 256)
        try:
            assert read_image(bytes(damaged)).dtype == np.uint8
        except PictureError:
            refused += 1
    assert refused > 0


def test_reading_a_picture_leaves_other_warnings_alone():
    read_image(encoded(picture()))
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


def test_a_picture_of_one_pixel_is_read():
    assert read_image(encoded(picture(1, 1), "PNG")).tolist() == picture(1, 1).tolist()


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = picture()[..., 0]
    np.testing.assert_array_equal(read_image(encoded(grey, "PNG")), np.repeat(grey[..., None], 3, -1))


def test_a_palette_is_looked_up(tmp_path):
    colours = np.array([[255, 0, 0], [0, 128, 0], [0, 0, 7]], np.uint8)
    index = np.arange(12).reshape(3, 4) % 3
    paletted = Image.fromarray(index.astype(np.uint8))
    paletted.putpalette(colours.tobytes())
    assert paletted.mode == "P"
    paletted.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), colours[index])


def test_a_cmyk_jpeg_has_the_colours_of_its_rgb_twin(tmp_path):
    flat = np.full((16, 16, 3), (200, 60, 20), np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    with Image.open(tmp_path / "c.jpg") as stored:
        assert stored.mode == "CMYK"
    assert np.abs(read_image(tmp_path / "c.jpg").astype(int) - flat).max() <= 4


def test_sixteen_bits_are_scaled_to_eight():
    deep = np.array([[0, 257, 32896, 51400, 65535]], np.uint16)
    assert read_image(encoded(deep, "PNG"))[0, :, 0].tolist() == [0, 1, 128, 200, 255]


def test_floats_are_clipped_and_nan_is_black():
    values = np.array([[-5.0, 100.4, 300.0, np.nan]], np.float32)
    assert read_image(encoded(values, "TIFF"))[0, :, 2].tolist() == [0, 100, 255, 0]


def test_transparent_pixels_are_laid_on_white():
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    assert read_image(encoded(rgba, "PNG")).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = picture(5, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    np.testing.assert_array_equal(read_image(encoded(stored, "PNG", exif=exif)), upright)


def test_an_orientation_turns_sixteen_bit_greys_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = (np.arange(6).reshape(2, 3) * 257).astype(np.uint16)
    stored = np.ascontiguousarray(np.rot90(upright))
    np.testing.assert_array_equal(read_image(encoded(stored, "PNG", exif=exif))[..., 1], np.arange(6).reshape(2, 3))


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    write_image(tmp_path / "large.png", picture(30, 40))
    monkeypatch.setattr(images, "LARGEST_PICTURE", 1199)
    assert_refused(tmp_path / "large.png", "40 x 30 pixels are too many")
    monkeypatch.setattr(images, "LARGEST_PICTURE", 1200)
    assert read_image(tmp_path / "large.png").shape == (30, 40, 3)


def test_the_limit_holds_for_the_size_that_a_file_claims(tmp_path):
    data = bytearray(encoded(picture(8, 8), "BMP"))
    for side in (12_000, 15_000):  # Pillow warns of the first and refuses the second itself.
        data[18:26] = side.to_bytes(4, "little") * 2
        path = tmp_path / f"{side}.bmp"
        path.write_bytes(data)
        assert_refused(path, "cannot be decoded" if side < 13_000 else "exceeds limit|too many")


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_a_written_picture_is_read_back(tmp_path, suffix):
    path = tmp_path / "new" / f"a{suffix}"
    write_image(path, picture())
    np.testing.assert_array_equal(read_image(path), picture())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.png"
    write_image(path, picture())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_image(path, np.zeros((3, 3, 5), np.uint8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_suffix_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="unknown file extension"):
        write_image(tmp_path / "a.poses", picture())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_replacing_keeps_the_old_content_when_the_block_fails(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_shows_the_new_content_only_when_the_block_ends(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == path.parent and temporary.suffix == path.suffix
    assert path.read_text() == "new"
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode
