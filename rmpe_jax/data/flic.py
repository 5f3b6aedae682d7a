"""FLIC, Frames Labeled In Cinema: 5,003 film frames with one labelled upper body each.

Reference: Sapp and Taskar, CVPR 2013; one of DeepPose's data sets.
"""

from pathlib import Path

import numpy as np

from rmpe_jax.data.files import DataError, Files, parse_mat
from rmpe_jax.data.people import LabelledPicture, label
from rmpe_jax.skeleton import FLIC_11

FLIC_HINT = "FLIC is FLIC.zip, with examples.mat and the folder images"
FLIC_SPLITS = ("train", "test")
# Columns of the file's 29 joints that are ever labelled, in the order of FLIC_11.
_COLUMNS = (0, 1, 2, 3, 4, 5, 6, 9, 12, 13, 16)


def read_flic(folder: str | Path, split: str) -> list[LabelledPicture]:
    """Reads one split of FLIC, in ``FLIC_11``.

    The file is MATLAB's, so its coordinates are taken to count pixels from 1; here they count from 0.

    Args:
        folder: holds ``FLIC.zip`` or what was in it: ``examples.mat`` and ``images``.
        split: "train" (3,987 frames) or "test" (1,016).

    Raises:
        DataError: naming the file and the record.
    """
    if split not in FLIC_SPLITS:
        raise DataError(f"FLIC has the splits {' and '.join(FLIC_SPLITS)}, not {split!r}")
    files = Files(folder, "FLIC.zip", hint=FLIC_HINT)
    found, data = files.read("examples.mat")
    records = []
    for number, example in enumerate(np.atleast_1d(parse_mat(data, found, "examples")), 1):
        try:
            if not getattr(example, f"is{split}"):
                continue
            coords = np.asarray(example.coords, np.float64)
            if coords.shape != (2, 29):
                raise ValueError(f"expected coords of shape (2, 29), got {coords.shape}")
            points = coords[:, _COLUMNS].T - 1
            visibility = 2 * np.isfinite(points).all(-1)
            person = {"points": points, "visibility": visibility}
            records.append(label(files.picture(f"images/{example.filepath}"), number, [person], FLIC_11.size))
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"{found}: example {number}: {error}") from None
    return records
