"""Leeds Sports Pose Extended, from its archive: 10,000 pictures with one labelled person each, 14 joints.

Reference: Johnson and Everingham, CVPR 2011. The authors give no split; here every picture whose number is divisible
by 20 (500 of them) is for validation, the others for training.
"""

import io
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from rmpe_jax.data.people import DataError, Person, Picture

ARCHIVE = "lspet_dataset.zip"
SPLITS = ("train", "val")
_PICTURE = re.compile(r"(?:^|/)im(\d+)\.jpg$")
# LSPET has no boxes. The joints' own box misses the outer half of head, hands and feet; a detector's does not.
_LIMB_THICKNESS = 0.1


def read_lspet(folder: str | Path, split: str) -> list[Person]:
    """Reads the people of one split, in ``LSP_14``.

    The box is the one around the labelled joints, 10 % larger. Coordinates are taken as they stand, as if pixels were
    counted from 0; the archive does not say, and the labels' own scatter is several pixels.

    Args:
        folder: holds ``lspet_dataset.zip``.
        split: "train" (9,500 people) or "val" (500).

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    if split not in SPLITS:
        raise DataError(f"LSPET has the splits {' and '.join(SPLITS)}, not {split!r}")
    path = Path(folder) / ARCHIVE
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            joints = scipy.io.loadmat(io.BytesIO(archive.read("joints.mat")))["joints"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it is the archive of Leeds Sports Pose Extended") from None
    except (zipfile.BadZipFile, zlib.error, MatReadError, KeyError, ValueError, OSError) as error:
        raise DataError(f"{path}: damaged, or not LSPET's archive: {error}") from None
    if joints.ndim == 3 and joints.shape[0] == 14:
        joints = joints.transpose(2, 0, 1)
    if joints.ndim != 3 or joints.shape[1:] != (14, 3):
        raise DataError(f"{path}: joints.mat has shape {joints.shape}, expected (people, 14, 3)")
    pictures = {int(found[1]): name for name in names if (found := _PICTURE.search(name))}
    missing = [number for number in range(1, len(joints) + 1) if number not in pictures]
    if missing:
        raise DataError(f"{path}: joints.mat has {len(joints)} people, but picture {missing[0]} is not in the archive")
    numbers = [n for n in range(1, len(joints) + 1) if (n % 20 == 0) == (split == "val")]
    return [_person(path, pictures[n], n, joints[n - 1]) for n in numbers]


def _person(path: Path, member: str, number: int, joints: np.ndarray) -> Person:
    points = joints[:, :2].astype(np.float32)
    labelled = (joints[:, 2] > 0) & np.isfinite(points).all(-1)
    box = np.zeros(4, np.float32)
    if labelled.any():
        low, high = points[labelled].min(0), points[labelled].max(0)
        margin = (high - low) * (_LIMB_THICKNESS / 2)
        box = np.concatenate([low - margin, high + margin])
    points = np.where(labelled[:, None], points, 0)
    return Person(Picture(path, member), number, box, points, labelled, float((box[2:] - box[:2]).prod()))
