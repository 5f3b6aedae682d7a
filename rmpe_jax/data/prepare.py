"""Writes a data set once as array_record files, from the official files, and checks what it wrote.

Every picture is decoded on the way, so that a damaged one is found now and not while training. Interrupted, the same
command goes on after the last full file.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rmpe_jax.data.files import DataError, MissingFileError
from rmpe_jax.data.images import PictureError, quiet_decoding, read_image, tolerated_failures
from rmpe_jax.data.people import PERSON_FIELDS, LabelledPicture, misplaced_box
from rmpe_jax.data.prepared import (
    BUILDERS,
    VERSION,
    checksums_file,
    finished_splits,
    import_tfds,
    pack_labels,
    prepared_folder,
    record_at,
    records,
)
from rmpe_jax.data.sets import DataSet, data_set, read_splits
from rmpe_jax.files import replacing

# What TFDS knows of a set, and the copy that serves where a killed process left it half written.
_DESCRIPTION, _COPY = "dataset_info.json", ".dataset_info.copy.json"
_PICTURES_PER_FILE = 512
_PICTURES_PER_WRITE = 64


def prepare_data(
    name: str,
    source: str | Path | None,
    target: str | Path,
    *,
    splits: tuple[str, ...] = (),
    workers: int = 2,
    progress: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Prepares a data set for reading without its official files.

    Args:
        name: of the set.
        source: folder of the official files; not needed for drawn people.
        target: the set goes to ``target/BUILDER/VERSION``; several sets share one target.
        splits: which; by default every one whose files are there ("trainval" only where "train" or "val" is not).
        workers: threads that read and decode.
        progress: whether to show bars.
        report: receives a line for each split, and for each picture that is left out because it cannot be read or has
            a box outside of it.

    Returns:
        The folder that was written.

    Raises:
        DataError: naming the file and the record; too many pictures cannot be used, see ``tolerated_failures``; or
            what was written differs from its source.
        MissingExtraError: tensorflow-datasets or array_record is not installed.
    """
    found = data_set(name)
    import_tfds()
    if source is None and name != "synthetic":
        raise DataError(f"{found.title}: say where its official files are; {found.hint}")
    place = prepared_folder(name, target)
    if any(place.glob("*-of-*")):
        raise DataError(f"{place}: was built by TFDS itself; choose another target")
    missing = []
    for split, pictures in read_splits(found, Path() if source is None else source, splits):
        if isinstance(pictures, MissingFileError):
            missing.append(split)
        elif split in finished_splits(place):
            _verify_checksums(place, split)
            report(f"{split}: was prepared before, checksums are right")
        else:
            _check_numbers(found, split, pictures)
            failed = _write(found, place, split, pictures, workers, progress, report)
            _finish(place, split, pictures, failed, progress, report)
    if missing:
        report(f"not prepared, since their files are not there: {', '.join(missing)}")
    return place


def _check_numbers(found: DataSet, split: str, pictures: list[LabelledPicture]) -> None:
    """The numbers of pictures say where an interrupted run goes on: none may come twice."""
    if len({picture.image_id for picture in pictures}) != len(pictures):
        raise DataError(f"{found.name}, {split}: two pictures have one number")


def _write(
    found: DataSet,
    place: Path,
    split: str,
    pictures: list[LabelledPicture],
    workers: int,
    progress: bool,
    report: Callable[[str], None],
) -> int:
    """Writes what is not written yet; returns how many pictures of the whole split were left out."""
    from rmpe_jax.data.builders import example

    writer, done = _open_writer(found, place, split)
    tolerated, failed = tolerated_failures(len(pictures)), 0
    if done:
        last = int(record_at(place, split, done - 1)["image_id"])
        numbers = [picture.image_id for picture in pictures]
        if last not in numbers:
            raise DataError(f"{place}: holds picture {last}, which the source has not; delete the folder")
        passed = numbers.index(last) + 1
        pictures, failed = pictures[passed:], passed - done
        report(f"{split}: going on after {done} pictures")
    failures = []

    def load(record: LabelledPicture) -> dict[str, Any] | str:
        try:
            encoded = record.picture.read_bytes()
            problem = misplaced_box(record, read_image(encoded, name=str(record.picture)).shape[:2])
        except PictureError as error:
            return str(error)
        return problem or example(record, encoded)

    bar = tqdm(total=len(pictures), desc=f"{split}: writing", disable=not progress, mininterval=1.0)
    with bar, quiet_decoding(), ThreadPoolExecutor(workers) as pool:
        loaded = _map_ahead(pool, load, pictures, ahead=4 * workers)
        while batch := list(itertools.islice(loaded, _PICTURES_PER_WRITE)):
            problems = [item for item in batch if isinstance(item, str)]
            failures += problems
            for problem in problems:
                report(f"left out: {problem}")
            if problems and failed + len(failures) > tolerated:
                raise DataError(f"{split}: {failed + len(failures)} pictures cannot be used, such as {failures[0]}")
            writer.add_examples({split: [item for item in batch if not isinstance(item, str)]})
            _keep_description(place)
            bar.update(len(batch))
    writer.close_splits([split])
    (place / _COPY).unlink(missing_ok=True)
    return failed + len(failures)


def _open_writer(found: DataSet, place: Path, split: str) -> tuple[Any, int]:
    """A TFDS writer that goes on after the last full file, and how many pictures that makes."""
    from rmpe_jax.data.builders import features

    tfds = import_tfds()
    place.mkdir(parents=True, exist_ok=True)
    _repair_description(place)
    if (place / _DESCRIPTION).exists():
        _keep_description(place)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=BUILDERS[found.name], version=tfds.core.Version(VERSION), data_dir=str(place), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features(found.name), homepage=found.home)
    writer = tfds.core.SequentialWriter(info, _PICTURES_PER_FILE, overwrite=False, file_format="array_record")
    writer.initialize_splits([split], fail_if_exists=False)
    records.cache_clear()
    return writer, info.splits[split].num_examples if split in info.splits else 0


def _keep_description(place: Path) -> None:
    """A copy of TFDS's description, which TFDS writes in place: a kill meanwhile leaves a part of it."""
    with replacing(place / _COPY) as temporary:
        shutil.copyfile(place / _DESCRIPTION, temporary)


def _repair_description(place: Path) -> None:
    """Puts the copy where the description is damaged; without one nothing was written yet, and it begins anew."""
    description, copy = place / _DESCRIPTION, place / _COPY
    with contextlib.suppress(FileNotFoundError):
        try:
            json.loads(description.read_bytes())
        except ValueError:
            description.unlink()
            os.replace(copy, description)


def _map_ahead(pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: list[Any], *, ahead: int) -> Iterator:
    """``map`` in order, with at most ``ahead`` results waiting: memory stays bounded."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _finish(
    place: Path,
    split: str,
    pictures: list[LabelledPicture],
    failed: int,
    progress: bool,
    report: Callable[[str], None],
) -> None:
    """Compares every record with its source, then writes the labels and the checksums."""
    records.cache_clear()
    written, by_number = records(place, split), {picture.image_id: picture for picture in pictures}
    kept, names = [], []
    for row in tqdm(range(len(written)), f"{split}: checking", disable=not progress, mininterval=1.0):
        record = record_at(place, split, row)
        picture = by_number.pop(int(record["image_id"]), None)
        if picture is None or not _same(record, picture):
            raise DataError(f"{place}: record {row} of {split} differs from its source; delete the folder")
        kept.append(picture)
        names.append(picture.picture.name)
    if not kept:
        raise DataError(f"{place}: no picture of {split} could be read")
    if len(by_number) != failed:
        raise DataError(f"{place}: {len(by_number)} pictures of {split} are missing, {failed} were left out; delete it")
    labels = place / f"labels-{split}.npz"
    with replacing(labels) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **pack_labels(kept, names))
    files = sorted(place.glob(f"*-{split}.array_record-*"))
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in [*files, labels]}
    left_out = len(pictures) - len(kept)
    about = {"pictures": len(kept), "people": sum(map(len, kept)), "left_out": left_out, "files": files}
    with replacing(checksums_file(place)) as temporary:
        temporary.write_text(json.dumps(finished_splits(place) | {split: about}, indent=1) + "\n")
    report(f"{split}: {len(kept)} pictures, {about['people']} people, {left_out} left out; checked against the source")


def _same(record: dict[str, Any], picture: LabelledPicture) -> bool:
    labels = all(
        np.array_equal(
            np.asarray(record[field], kind).ravel(), getattr(picture, field).ravel(), equal_nan=kind != np.bool_
        )
        for field, (kind, _) in PERSON_FIELDS.items()
    )
    return labels and record["image"] == picture.picture.read_bytes()


def _verify_checksums(place: Path, split: str) -> None:
    for name, about in finished_splits(place)[split]["files"].items():
        path = place / name
        if not path.is_file() or _sha256(path) != about["sha256"]:
            raise DataError(f"{path}: missing or changed since it was written; delete {place} and prepare it again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
