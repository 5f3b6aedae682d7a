"""Leeds Sports Pose (2,000 pictures) and its extension LSPET (10,000), from their archives: one labelled person each.

References: Johnson and Everingham, BMVC 2010 (LSP: the first 1,000 pictures train, the others test) and CVPR 2011
(LSPET: no split by its authors; here every picture whose number is divisible by 20, 500 of them, is for validation).
"""

from pathlib import Path

import numpy as np

from rmpe_jax.data.files import DataError, Files, parse_mat
from rmpe_jax.data.people import LabelledPicture, label
from rmpe_jax.skeleton import LSP_14

LSP_HINT = "Leeds Sports Pose is lsp_dataset.zip (or lsp_dataset_original.zip, its pictures in full size)"
LSPET_HINT = "Leeds Sports Pose Extended is lspet_dataset.zip"


def read_lsp(folder: str | Path, split: str) -> list[LabelledPicture]:
    """Reads one split of LSP, in ``LSP_14``; every joint is labelled, and hidden ones are marked.

    Args:
        folder: holds ``lsp_dataset.zip`` or what was in it: ``joints.mat`` and ``images``.
        split: "train" (1,000 pictures) or "test" (1,000).

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    _expect_split(split, ("train", "test"), "LSP")
    files = Files(folder, "lsp_dataset.zip", "lsp_dataset_original.zip", hint=LSP_HINT)
    joints, name = _joints(files, extended=False)
    first = len(joints) // 2
    numbers = range(1, first + 1) if split == "train" else range(first + 1, len(joints) + 1)
    # LSP's third number is 1 for a joint that is hidden.
    return [_record(files, name, n, joints[n - 1], 2 - (joints[n - 1, :, 2] > 0)) for n in numbers]


def read_lspet(folder: str | Path, split: str) -> list[LabelledPicture]:
    """Reads one split of LSPET, in ``LSP_14``.

    Coordinates are taken as they stand, as if pixels were counted from 0; the archive does not say, and the labels'
    own scatter is several pixels.

    Args:
        folder: holds ``lspet_dataset.zip`` or what was in it: ``joints.mat`` and ``images``.
        split: "train" (9,500 pictures) or "val" (500).

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    _expect_split(split, ("train", "val"), "LSPET")
    files = Files(folder, "lspet_dataset.zip", hint=LSPET_HINT)
    joints, name = _joints(files, extended=True)
    numbers = [n for n in range(1, len(joints) + 1) if (n % 20 == 0) == (split == "val")]
    # LSPET's third number is 1 for a joint that is labelled.
    labelled = (joints[..., 2] > 0) & np.isfinite(joints[..., :2]).all(-1)
    return [_record(files, name, n, joints[n - 1], 2 * labelled[n - 1]) for n in numbers]


def _expect_split(split: str, known: tuple[str, ...], name: str) -> None:
    if split not in known:
        raise DataError(f"{name} has the splits {' and '.join(known)}, not {split!r}")


def _joints(files: Files, *, extended: bool) -> tuple[np.ndarray, str]:
    """The labels as (people, 14, 3), and the file's name.

    LSP's file has them as (3, 14, people), LSPET's as (14, 3, people) or already so: the two are told apart by that,
    since their third numbers mean opposite things.
    """
    found, data = files.read("joints.mat")
    joints = np.asarray(parse_mat(data, found, "joints"))
    if joints.ndim == 3 and (joints.shape[:2] == (3, 14)) == extended and 14 in joints.shape and 3 in joints.shape:
        there, wanted = ("LSP", "LSPET") if extended else ("LSPET", "LSP")
        raise DataError(f"{found}: joints have the shape {joints.shape} of {there}'s file, expected {wanted}'s")
    if joints.ndim == 3 and joints.shape[-1] != 3:
        joints = joints.transpose(2, 0, 1) if extended else joints.transpose(2, 1, 0)
    if joints.ndim != 3 or joints.shape[1:] != (14, 3) or joints.dtype.kind not in "fiu":
        raise DataError(
            f"{found}: joints have the shape {joints.shape}, expected 14 joints of 3 numbers for each person"
        )
    return joints.astype(np.float64), str(found)


def _record(files: Files, name: str, number: int, joints: np.ndarray, visibility: np.ndarray) -> LabelledPicture:
    # LSP counts with four digits, LSPET with five.
    place = next((p for p in (f"images/im{number:05}.jpg", f"images/im{number:04}.jpg") if files.find(p)), None)
    if place is None:
        raise DataError(f"{name}: labels picture {number}, but {files.folder} has no images/im{number:05}.jpg")
    try:
        return label(files.picture(place), number, [{"points": joints[:, :2], "visibility": visibility}], LSP_14.size)
    except ValueError as error:
        raise DataError(f"{name}: picture {number}: {error}") from None
