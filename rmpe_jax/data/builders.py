"""TensorFlow Datasets builders of every data set; importing this file registers them with TFDS.

Each reads the official files that the user put into ``manual_dir``::

    import rmpe_jax.data.builders
    builder = tfds.builder("crowd_pose", data_dir=DIR, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=...))
    builder.as_data_source("train")

``rmpe data prepare`` writes the same records, and besides goes on where it was interrupted and checks what it wrote.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rmpe_jax.data.people import PERSON_FIELDS, LabelledPicture
from rmpe_jax.data.prepared import BUILDERS, VERSION, import_tfds
from rmpe_jax.data.sets import DATA_SETS, read_splits

tfds = import_tfds()


def features(name: str) -> Any:
    """TFDS features of a set's records: the encoded picture, its number and name, and ``PERSON_FIELDS``."""
    kinds, joints = tfds.features, DATA_SETS[name].skeleton.size
    people = {
        field: kinds.Tensor(
            shape=(None, *(joints if size is None else size for size in shape)), dtype=kind, encoding="zlib"
        )
        for field, (kind, shape) in PERSON_FIELDS.items()
    }
    about = {"image_id": kinds.Scalar(np.int64), "name": kinds.Text(), "crowd_index": kinds.Scalar(np.float32)}
    return kinds.FeaturesDict({"image": kinds.Image(shape=(None, None, 3)), **about, **people})


def example(record: LabelledPicture, encoded: bytes) -> dict[str, Any]:
    """A record as TFDS stores it."""
    people = {field: getattr(record, field) for field in PERSON_FIELDS}
    about = {"image_id": record.image_id, "name": record.picture.name, "crowd_index": record.crowd_index}
    return {"image": io.BytesIO(encoded), **about, **people}


class _People(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
    """What all builders share; a subclass names its set."""

    SET: str
    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "the official files, as DATA_SETS[NAME].hint says"

    def _info(self) -> Any:
        found = DATA_SETS[self.SET]
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{found.title}: {', '.join(found.skeleton.joints)}.",
            features=features(self.SET),
            homepage=found.home,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder, found = Path(dl_manager.manual_dir) if self.SET != "synthetic" else Path(), DATA_SETS[self.SET]
        splits = {split: records for split, records in read_splits(found, folder) if isinstance(records, list)}
        return {split: self._generate_examples(records) for split, records in splits.items()}

    def _generate_examples(self, records: list[LabelledPicture]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in enumerate(records):
            yield number, example(record, record.picture.read_bytes())


class CocoKeypoints(_People):
    """COCO keypoints, 2014 and 2017."""

    SET = "coco"


class CrowdPose(_People):
    """CrowdPose."""

    SET = "crowdpose"


class FramesLabeledInCinema(_People):
    """FLIC."""

    SET = "flic"


class LeedsSportsPose(_People):
    """LSP."""

    SET = "lsp"


class LeedsSportsPoseExtended(_People):
    """LSPET."""

    SET = "lspet"


class MpiiHumanPose(_People):
    """MPII Human Pose v1."""

    SET = "mpii"


class SyntheticPeople(_People):
    """Drawn people; needs no files."""

    SET = "synthetic"


class WeAreFamily(_People):
    """WAF."""

    SET = "waf"


_ALL = (CocoKeypoints, CrowdPose, FramesLabeledInCinema, LeedsSportsPose, LeedsSportsPoseExtended, MpiiHumanPose)
BUILDER_CLASSES = {builder.SET: builder for builder in (*_ALL, SyntheticPeople, WeAreFamily)}
assert {name: builder.name for name, builder in BUILDER_CLASSES.items()} == BUILDERS
