"""From people in pictures to training batches: each person is cut out once, onto a square canvas kept in memory.

The canvas is larger than the person's crop (``DataConfig.canvas_margin``), so that everything random happens later, on
the device; what a crop needs beyond the canvas is black, as beyond the picture. Batches are a pure function of (seed,
step): a resumed run sees what an unbroken one sees.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rmpe_jax.config import DataConfig
from rmpe_jax.data.coco import read_coco
from rmpe_jax.data.images import PictureError, quiet_decoding
from rmpe_jax.data.lsp import read_lspet
from rmpe_jax.data.people import DataError, Person, in_skeleton
from rmpe_jax.records import PoseBatch
from rmpe_jax.skeleton import COCO_17, LSP_14, Skeleton

# Share of unreadable pictures above which a run stops instead of leaving them out.
_TOLERATED_FAILURES = 0.01
# Largest side of the square cut around a person, over the picture's: a box beyond that is wrong, and takes no more
# memory for it.
_LARGEST_SQUARE = 3


@dataclasses.dataclass(frozen=True)
class Canvases:
    """n people on square canvases of side c; NumPy arrays."""

    canvas: np.ndarray  # (n, c, c, 3) uint8 RGB
    points: np.ndarray  # (n, k, 2) float32, pixels of the canvas
    labelled: np.ndarray  # (n, k) bool
    box: np.ndarray  # (n, 4) float32, pixels of the canvas, not extended

    def __len__(self) -> int:
        return len(self.canvas)


def training_people(config: DataConfig, skeleton: Skeleton) -> list[Person]:
    """The people that ``config`` names for training, in ``skeleton``.

    Raises:
        DataError: no data set is named, or one cannot be read.
    """
    people: list[Person] = []
    if config.lspet:
        people += in_skeleton(read_lspet(config.lspet, "train"), LSP_14, skeleton)
    if config.coco:
        people += in_skeleton(read_coco(config.coco, config.coco_split), COCO_17, skeleton) * config.coco_repeat
    if not people:
        raise DataError("no training data: set data.lspet or data.coco to the folder of the data set")
    return usable_people(people, config.min_joints)


def usable_people(people: Sequence[Person], min_joints: int) -> list[Person]:
    """Those with at least ``min_joints`` labelled joints and a box of at least two pixels a side."""
    return [p for p in people if p.labelled.sum() >= min_joints and (p.box[2:] - p.box[:2]).min() >= 2]


def cut_canvas(image: np.ndarray, person: Person, config: DataConfig) -> Canvases:
    """Cuts one person out of a decoded picture: a Canvases of length 1.

    The square is centred on the box; its side is the longer one of the extended box times ``canvas_margin``, in whole
    pixels, at most three times the picture's. What lies outside the picture is black. A shrinking cut averages over
    areas.
    """
    centre, size = (person.box[:2] + person.box[2:]) / 2, person.box[2:] - person.box[:2]
    side = np.ceil(size.max() * (1 + config.extension) * config.canvas_margin)
    side = int(np.clip(side, 2, _LARGEST_SQUARE * max(image.shape[:2])))
    start = np.round(centre - (side - 1) / 2).astype(int)
    low, high = np.maximum(start, 0), np.minimum(start + side, image.shape[1::-1])
    square = np.zeros((side, side, 3), np.uint8)
    if (high > low).all():
        (x0, y0), (x1, y1) = low - start, high - start
        square[y0:y1, x0:x1] = image[low[1] : high[1], low[0] : high[0]]
    method = cv2.INTER_AREA if side > config.canvas else cv2.INTER_LINEAR
    canvas = cv2.resize(square, (config.canvas, config.canvas), interpolation=method)
    scale = config.canvas / side

    def to_canvas(points: np.ndarray) -> np.ndarray:
        return ((points - start + 0.5) * scale - 0.5).astype(np.float32)

    points = np.where(person.labelled[:, None], to_canvas(person.points), 0).astype(np.float32)
    box = to_canvas(person.box.reshape(2, 2)).reshape(4)
    return Canvases(canvas[None], points[None], person.labelled[None], box[None])


def load_canvases(
    people: Sequence[Person],
    config: DataConfig,
    *,
    workers: int = 2,
    progress: bool = False,
    report: Callable[[str], None] = print,
) -> Canvases:
    """Decodes every picture and cuts its people out, with ``workers`` threads (decoding releases Python's lock).

    A picture that cannot be read is named through ``report`` and its people are left out; above one in a hundred the
    call raises DataError.
    """
    size, joints = config.canvas, people[0].labelled.size if people else 0
    result = Canvases(
        np.zeros((len(people), size, size, 3), np.uint8),
        np.zeros((len(people), joints, 2), np.float32),
        np.zeros((len(people), joints), bool),
        np.zeros((len(people), 4), np.float32),
    )
    good = np.zeros(len(people), bool)
    by_picture: dict[str, list[int]] = {}
    for position, person in enumerate(people):
        by_picture.setdefault(str(person.picture), []).append(position)

    def load(positions: list[int]) -> str | None:
        try:
            image = people[positions[0]].picture.read()
        except PictureError as error:
            return str(error)
        for position in positions:
            one = cut_canvas(image, people[position], config)
            for field in dataclasses.fields(Canvases):
                getattr(result, field.name)[position] = getattr(one, field.name)[0]
            good[position] = True
        return None

    with quiet_decoding(), ThreadPoolExecutor(workers) as pool:
        outcomes = pool.map(load, by_picture.values())
        shown = tqdm(outcomes, "pictures", total=len(by_picture), disable=not progress, mininterval=1.0)
        failures = [outcome for outcome in shown if outcome is not None]
    for failure in failures:
        report(f"left out: {failure}")
    if len(failures) > _TOLERATED_FAILURES * len(by_picture):
        raise DataError(f"{len(failures)} of {len(by_picture)} pictures cannot be read; the first: {failures[0]}")
    return result if good.all() else take(result, np.flatnonzero(good))


def take(canvases: Canvases, positions: np.ndarray) -> Canvases:
    """The canvases at some positions."""
    return Canvases(*(getattr(canvases, field.name)[positions] for field in dataclasses.fields(Canvases)))


def training_positions(count: int, batch: int, *, seed: int, step: int) -> np.ndarray:
    """Which of ``count`` people are in the batch of a step: a fresh permutation each epoch, the short rest left out."""
    if batch > count:
        raise DataError(f"a batch of {batch} people is larger than the {count} people there are")
    epoch, place = divmod(step, count // batch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[place * batch : (place + 1) * batch]


def pose_batch(canvases: Canvases, positions: np.ndarray, batch: int | None = None) -> PoseBatch:
    """A batch of the people at ``positions``, padded to ``batch`` with copies that are not valid."""
    batch = len(positions) if batch is None else batch
    padded = np.resize(positions, batch)
    chosen = take(canvases, padded)
    index = np.arange(batch, dtype=np.int32)
    arrays = (chosen.canvas, chosen.points, chosen.labelled, chosen.box, index, index < len(positions))
    return PoseBatch(*(jnp.asarray(array) for array in arrays))


def evaluation_batches(canvases: Canvases, batch: int) -> Iterator[PoseBatch]:
    """All people in order, in batches of one shape; the last is padded and masked."""
    for start in range(0, len(canvases), batch):
        yield pose_batch(canvases, np.arange(start, min(start + batch, len(canvases))), batch)
