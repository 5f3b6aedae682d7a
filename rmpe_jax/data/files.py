"""Files as data sets are downloaded: in a folder, or still inside their zip archives; JSON and MATLAB files in them."""

import dataclasses
import functools
import io
import json
import lzma
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from rmpe_jax.data.images import PictureError, read_image
from rmpe_jax.errors import RmpeError


class DataError(RmpeError, ValueError):
    """A data set's file that is missing, damaged or inconsistent; the message names the file and the record."""


# What a damaged, encrypted or unknown archive makes zipfile raise.
_ZIP_ERRORS = (
    *(KeyError, OSError, EOFError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


class MissingFileError(DataError):
    """A data set's file that is not there."""


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """A picture in a file, or in a member of a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"

    def read(self) -> np.ndarray:
        """Decodes to uint8 RGB, (height, width, 3); raises PictureError that names the file."""
        return read_image(self.path) if self.member is None else read_image(self.read_bytes(), name=str(self))

    @property
    def name(self) -> str:
        """The file's own name."""
        return PurePosixPath(self.member).name if self.member else self.path.name

    def read_bytes(self) -> bytes:
        """The encoded file; raises PictureError that names it."""
        try:
            return self.path.read_bytes() if self.member is None else _open_zip(self.path).read(self.member)
        except FileNotFoundError:
            raise PictureError(f"{self}: no such file") from None
        except _ZIP_ERRORS as error:
            raise PictureError(f"{self}: {error or type(error).__name__}") from None


@functools.lru_cache(maxsize=8)
def _open_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


class Files:
    """The files of one data set: those in its folder, and those in the archives that lie there.

    A file is named by the end of its path, ``images/im0001.jpg``; what archives put before it does not matter.

    Args:
        folder: where the user put what they downloaded.
        archives: names of zip archives that may lie in it. They need not exist.
        hint: where to get the set, for errors.
    """

    def __init__(self, folder: str | Path, *archives: str, hint: str):
        self.folder, self._hint = Path(folder), hint
        if not self.folder.is_dir():
            raise MissingFileError(f"{self.folder}: no such folder; {hint}")
        self._members: dict[str, PictureFile] = {}
        for path in (self.folder / name for name in archives):
            if path.is_file():
                self._index(path)

    def _index(self, path: Path) -> None:
        try:
            names = _open_zip(path).namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{path}: damaged, or not a zip archive: {error}") from None
        for name in names:
            parts = name.split("/")
            for start in range(len(parts)):
                self._members.setdefault("/".join(parts[start:]), PictureFile(path, name))

    def find(self, name: str) -> PictureFile | None:
        """Where a file is, or None; a file in the folder goes before one in an archive."""
        path = self.folder / name
        return PictureFile(path) if path.is_file() else self._members.get(name)

    def read(self, *names: str) -> tuple[PictureFile, bytes]:
        """The first of some files that exists, and its content.

        Raises:
            MissingFileError: none exists.
            DataError: it cannot be read.
        """
        for name in names:
            found = self.find(name)
            if found is not None:
                try:
                    return found, found.read_bytes()
                except PictureError as error:
                    raise DataError(str(error)) from None
        raise MissingFileError(f"{self.folder}: has no {' or '.join(names)}; {self._hint}")

    def picture(self, name: str) -> PictureFile:
        """Where a picture is.

        Raises:
            MissingFileError: its whole folder is missing.
            DataError: the picture is.
        """
        found = self.find(name)
        if found is None:
            folder = name.split("/")[0]
            if not (self.folder / folder).is_dir() and not any(n.startswith(f"{folder}/") for n in self._members):
                raise MissingFileError(f"{self.folder}: has no pictures {folder}; {self._hint}")
            raise DataError(f"{self.folder}: has no picture {name}; {self._hint}")
        return found


def parse_json(data: bytes, name: Any) -> Any:
    """Parses JSON; raises DataError that names the file and, for malformed text, the line."""
    try:
        return json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{name}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{name}: JSON that cannot be held: {error}") from None


def read_json(path: str | Path) -> Any:
    """Parses a JSON file; raises DataError that names the file and, for malformed text, the line."""
    try:
        return parse_json(Path(path).read_bytes(), path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def parse_mat(data: bytes, name: Any, variable: str) -> Any:
    """One variable of a MATLAB file (version 7 or before), structures as objects, single entries unwrapped.

    Raises:
        DataError: the file is damaged, is of version 7.3, or lacks the variable.
    """
    try:
        # Only arrays, structures and cells come out of loadmat; it runs nothing from the file.
        content = scipy.io.loadmat(io.BytesIO(data), struct_as_record=False, squeeze_me=True)
    except NotImplementedError:
        raise DataError(f"{name}: a MATLAB file of version 7.3; save it again with -v7") from None
    except Exception as error:
        # A damaged file makes SciPy raise almost anything (MatReadError, ValueError, TypeError, zlib.error, ...).
        kind = "not a MATLAB file" if isinstance(error, MatReadError) else "damaged"
        raise DataError(f"{name}: {kind}: {error or type(error).__name__}") from None
    if variable not in content:
        raise DataError(f"{name}: has no variable {variable!r}")
    return content[variable]
