"""Every data set that this package reads: its skeleton, its splits, and how it is opened."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from rmpe_jax.data import coco, flic, lsp, mpii, synthetic, waf
from rmpe_jax.data.files import DataError, MissingFileError
from rmpe_jax.data.people import LabelledPicture
from rmpe_jax.data.prepared import is_prepared, read_prepared
from rmpe_jax.skeleton import COCO_17, COCO_LSP_19, CROWDPOSE_14, FLIC_11, LSP_14, MPII_16, WAF_10, Skeleton


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One data set."""

    name: str  # as commands call it
    title: str
    skeleton: Skeleton
    splits: tuple[str, ...]
    read: Callable[[str | Path, str], list[LabelledPicture]]  # (folder, split), from the official files
    hint: str  # the official files, and how they are called
    home: str  # where the set and its terms are


def _synthetic(folder: str | Path, split: str) -> list[LabelledPicture]:
    return synthetic.read_synthetic(split)


#: By name. The terms of each set are its authors'; nothing of them is shipped here.
DATA_SETS = {
    found.name: found
    for found in (
        DataSet(
            *("coco", "COCO keypoints", COCO_17, coco.COCO_SPLITS, coco.read_coco, coco.COCO_HINT),
            home="https://cocodataset.org",
        ),
        DataSet(
            *("crowdpose", "CrowdPose", CROWDPOSE_14, coco.CROWDPOSE_SPLITS, coco.read_crowdpose, coco.CROWDPOSE_HINT),
            home="https://github.com/Jeff-sjtu/CrowdPose",
        ),
        DataSet(
            *("flic", "Frames Labeled In Cinema", FLIC_11, flic.FLIC_SPLITS, flic.read_flic, flic.FLIC_HINT),
            home="https://bensapp.github.io/flic-dataset.html",
        ),
        DataSet(
            *("lsp", "Leeds Sports Pose", LSP_14, ("train", "test"), lsp.read_lsp, lsp.LSP_HINT),
            home="http://sam.johnson.io/research/lsp.html",
        ),
        DataSet(
            *("lspet", "Leeds Sports Pose Extended", LSP_14, ("train", "val"), lsp.read_lspet, lsp.LSPET_HINT),
            home="http://sam.johnson.io/research/lspet.html",
        ),
        DataSet(
            *("mpii", "MPII Human Pose", MPII_16, mpii.MPII_SPLITS, mpii.read_mpii, mpii.MPII_HINT),
            home="http://human-pose.mpi-inf.mpg.de",
        ),
        DataSet(
            *("synthetic", "drawn people", COCO_LSP_19, tuple(synthetic.SYNTHETIC_SPLITS), _synthetic),
            hint="nothing to download",
            home="drawn by rmpe_jax",
        ),
        DataSet(
            *("waf", "We Are Family", WAF_10, waf.WAF_SPLITS, waf.read_waf, waf.WAF_HINT),
            home="https://calvin-vision.net/datasets/we-are-family-stickmen",
        ),
    )
}


def data_set(name: str) -> DataSet:
    """Looks a data set up by name; raises DataError that lists the known names."""
    if name not in DATA_SETS:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


def read_splits(
    found: DataSet, folder: str | Path, splits: tuple[str, ...] = ()
) -> Iterator[tuple[str, list[LabelledPicture] | MissingFileError]]:
    """Reads splits from the official files, one after the other.

    Args:
        found: the set.
        folder: of the official files.
        splits: those that must be there; by default all, where a split whose files are missing gives that error
            instead, and "trainval" is left out where its two parts are there.

    Raises:
        DataError: a file is damaged; a split that was named is missing; or all are.
    """
    there: set[str] = set()
    missing: list[MissingFileError] = []
    for split in splits or found.splits:
        if not splits and split == "trainval" and {"train", "val"} <= there:
            continue
        try:
            pictures = found.read(folder, split)
        except MissingFileError as error:
            if splits:
                raise
            missing.append(error)
            yield split, error
        else:
            there.add(split)
            yield split, pictures
    if not there:
        raise missing[0]


def read_data(name: str, folder: str | Path, split: str) -> list[LabelledPicture]:
    """Reads a split of any data set, from its official files or from what ``rmpe data prepare`` made of them.

    Args:
        name: one of ``DATA_SETS``.
        folder: the official files, or the folder given to ``prepare``.
        split: of the set.

    Returns:
        Pictures with their people, in the set's own skeleton (``data_set(name).skeleton``); pixels are read later.

    Raises:
        DataError: naming the file and the record.

    Example:
        >>> len(read_data("synthetic", ".", "val"))
        100
    """
    found = data_set(name)
    return read_prepared(name, folder, split) if is_prepared(name, folder) else found.read(folder, split)
