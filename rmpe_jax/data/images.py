"""Reading and writing pictures: any file that Pillow knows becomes 8-bit RGB, upright, or one clear error."""

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rmpe_jax.errors import RmpeError
from rmpe_jax.files import replacing

# Pictures above this are refused rather than decoded: it takes 0.5 GB as RGB, and Pillow itself refuses more.
LARGEST_PICTURE = 178_000_000
_LARGEST_JPEG_SIDE = 65_500
# Of what Pillow knows, the picture formats that it decodes by itself (EPS, for one, starts another program).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")


class PictureError(RmpeError, ValueError):
    """A picture that cannot be read; the message names the file and what is wrong with it."""


def tolerated_failures(pictures: int) -> float:
    """How many of some pictures may be left out because they cannot be used: one in a hundred, or one of a few."""
    return max(0.01 * pictures, 1.0 if pictures > 1 else 0.0)


def read_image(source: str | os.PathLike | bytes, *, name: str | None = None) -> np.ndarray:
    """Reads a picture as uint8 RGB, (height, width, 3).

    EXIF rotation is applied; grey, palette and CMYK pictures are converted; 16-bit greys are scaled to 8 bits;
    transparent pixels are laid on white.

    Args:
        source: a path, or the bytes of a file.
        name: what errors call the picture; the path by default.

    Raises:
        PictureError: missing, empty, not a picture, truncated, or larger than 178 megapixels.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "picture")
    try:
        with Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=_known_formats()
        ) as picture:
            if picture.width * picture.height > LARGEST_PICTURE:
                raise PictureError(f"{name}: {picture.width} x {picture.height} pixels are too many to decode")
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise PictureError(f"{name}: a folder, not a picture") from None
    except Image.UnidentifiedImageError:
        raise PictureError(f"{name}: not a picture, or not of a known format ({', '.join(_known_formats())})") from None
    except Exception as error:
        # Decoders of damaged files raise almost anything (OSError, SyntaxError, RuntimeError, struct.error, ...).
        raise PictureError(f"{name}: cannot be decoded: {error or type(error).__name__}") from None


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Those of ``_FORMATS`` that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def quiet_decoding() -> Iterator[None]:
    """Silences Pillow's warnings of large pictures and of damage that does not matter; not from several threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def _to_rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = np.nan_to_num(np.asarray(picture).astype(np.float64))
        grey = (grey / 257 if picture.mode != "F" else grey).clip(0, 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1)
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB"))


def encode_png(image: np.ndarray) -> bytes:
    """uint8 RGB as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 RGB in the format of the path's suffix, complete or not at all.

    Raises:
        PictureError: the format cannot hold the picture (JPEG ends at 65,500 pixels a side).
        OSError: the place cannot be written.
    """
    height, width = image.shape[:2]
    if Path(path).suffix.lower() in (".jpg", ".jpeg") and max(height, width) > _LARGEST_JPEG_SIDE:
        raise PictureError(f"{path}: a JPEG cannot hold {width} x {height} pixels")
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, quality=92)
