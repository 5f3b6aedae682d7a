"""The record that every data set yields: one labelled person in one picture."""

import dataclasses
import functools
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rmpe_jax.data.images import PictureError, read_image
from rmpe_jax.errors import RmpeError
from rmpe_jax.skeleton import Skeleton, convert_points


class DataError(RmpeError, ValueError):
    """A data set's file that is missing, damaged or inconsistent; the message names the file and the record."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """Where a picture is: a file, or a member of a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"

    def read(self) -> np.ndarray:
        """Decodes to uint8 RGB, (height, width, 3); raises PictureError that names the file."""
        if self.member is None:
            return read_image(self.path)
        try:
            data = _open_zip(self.path).read(self.member)
        except (KeyError, zipfile.BadZipFile, zlib.error, OSError) as error:
            raise PictureError(f"{self}: {error}") from None
        return read_image(data, name=str(self))


@functools.lru_cache(maxsize=4)
def _open_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@dataclasses.dataclass(frozen=True)
class Person:
    """One labelled person, in the skeleton of the data set (or the one asked for)."""

    picture: Picture
    image_id: int
    box: np.ndarray  # (4,) x0 y0 x1 y1, pixels of the picture
    points: np.ndarray  # (k, 2) x y, pixels of the picture
    labelled: np.ndarray  # (k,) bool: the data set gives this joint
    area: float  # of the person's outline in square pixels, for OKS; of the box where the set gives none


def in_skeleton(people: Sequence[Person], source: Skeleton, target: Skeleton) -> list[Person]:
    """The same people with their joints in the order of another skeleton; what ``source`` lacks is not labelled."""
    if not people:
        return []
    points, labelled = np.stack([person.points for person in people]), np.stack([p.labelled for p in people])
    points, labelled = convert_points(jnp.asarray(points), jnp.asarray(labelled), source, target)
    rows = zip(people, np.asarray(points), np.asarray(labelled), strict=True)
    return [dataclasses.replace(person, points=there, labelled=given) for person, there, given in rows]


def read_json(path: Path) -> Any:
    """Parses a JSON file; raises DataError that names the file and, for malformed text, the line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: JSON that cannot be held: {error}") from None
