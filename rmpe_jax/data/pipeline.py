"""From pictures to training batches: each person is cut out onto a square canvas, some batches ahead.

The canvas is larger than the person's crop (``DataConfig.canvas_margin``), so that everything random happens later, on
the device; what a crop needs beyond the canvas is black, as beyond the picture. A canvas is kept in memory as long as
there is room, so a small data set is decoded once and a large one is streamed. Batches are a pure function of (seed,
step): not of the number of workers, nor of what is kept, nor of where; a resumed run sees what an unbroken one sees.
Where everybody fits into the device's memory, ``device_batches`` gathers the same batches there.

A picture that cannot be read, and a box outside its picture, is named once and its people stay in their batches, marked
as not valid. The run stops when more than one picture in a hundred (and more than one) is touched.
"""

import contextlib
import dataclasses
import math
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from rmpe_jax.config import SET_FOLDERS, DataConfig
from rmpe_jax.data.files import DataError
from rmpe_jax.data.images import PictureError, quiet_decoding, tolerated_failures
from rmpe_jax.data.people import Person, Picture, in_skeleton, outside, people_in
from rmpe_jax.data.sets import data_set, read_data
from rmpe_jax.data.synthetic import read_synthetic
from rmpe_jax.records import PoseBatch
from rmpe_jax.skeleton import COCO_LSP_19, Skeleton

C = TypeVar("C")

# Largest side of the square cut around a person, over the picture's: a box beyond that is wrong, and takes no more
# memory for it.
_LARGEST_SQUARE = 3
# Batches that are being read while one is in use.
_AHEAD = 4
# People who are copied to the device at a time: 50 MB of canvases of side 256.
_PIECE = 256
# The mesh axis over which batches are split, as ``train.parallel`` calls it: its steps take such batches as they are.
_AXIS = "devices"


@runtime_checkable
class Item(Protocol):
    """What a canvas is cut for: a person, or a scene (``data.scenes``)."""

    @property
    def picture(self) -> Picture:
        """Where the pixels are."""
        ...


@runtime_checkable
class Cutting(Protocol):
    """How items of one kind become canvases, and these a batch. Rows of canvases are dataclasses of NumPy arrays."""

    @property
    def side(self) -> int:
        """Of a canvas, pixels."""
        ...

    @property
    def together(self) -> int:
        """How many items one example of a batch is made of."""
        ...

    def empty(self, count: int) -> Any:
        """Room for the canvases of ``count`` items, none of them valid."""
        ...

    def cut(self, image: np.ndarray, item: Any) -> tuple[Any, str | None]:
        """The canvas of one item of a decoded picture, or why it cannot be used."""
        ...

    def batch(self, rows: dict[str, Any], index: Any) -> Any:
        """A batch of the fields of canvases, arrays of NumPy or of JAX, ``together`` rows for each of ``index``."""
        ...


@dataclasses.dataclass(frozen=True)
class Canvases:
    """n people on square canvases of side c; NumPy arrays."""

    canvas: np.ndarray  # (n, c, c, 3) uint8 RGB
    points: np.ndarray  # (n, k, 2) float32, pixels of the canvas
    labelled: np.ndarray  # (n, k) bool
    box: np.ndarray  # (n, 4) float32, pixels of the canvas, not extended
    valid: np.ndarray  # (n,) bool: False where the picture could not be read; the other fields are zero

    def __len__(self) -> int:
        return len(self.canvas)


def rows_of(canvases: C, rows: slice) -> C:
    """Some of the people, or of other items."""
    return type(canvases)(**{name: array[rows] for name, array in vars(canvases).items()})


def empty_canvases(count: int, side: int, joints: int) -> Canvases:
    """Room for ``count`` people, none of them valid."""
    return Canvases(
        np.zeros((count, side, side, 3), np.uint8),
        np.zeros((count, joints, 2), np.float32),
        np.zeros((count, joints), bool),
        np.zeros((count, 4), np.float32),
        np.zeros(count, bool),
    )


def training_people(config: DataConfig, skeleton: Skeleton) -> list[Person]:
    """The people that ``config`` names for training, in ``skeleton``; somebody repeated is the same object again.

    Raises:
        DataError: no data set is named, or one cannot be read.
    """
    people: list[Person] = []
    if config.negatives:
        raise DataError("data.negatives: pictures without people train a person detector only")
    for name in SET_FOLDERS:
        folder = getattr(config, name)
        if folder:
            split, repeat = (config.coco_split, config.coco_repeat) if name == "coco" else ("train", 1)
            found = people_in(read_data(name, folder, split), min_joints=config.min_joints)
            people += in_skeleton(found, data_set(name).skeleton, skeleton) * repeat
    if config.synthetic:
        drawn = people_in(read_synthetic("train", pictures=config.synthetic), min_joints=config.min_joints)
        people += in_skeleton(drawn, COCO_LSP_19, skeleton)
    # A set may label the joints of another skeleton only.
    people = [person for person in people if person.labelled.sum() >= config.min_joints]
    if not people:
        raise no_training_data()
    return people


def no_training_data() -> DataError:
    """The error for settings that name no data set."""
    folders = ", ".join(f"data.{name}" for name in SET_FOLDERS)
    return DataError(f"no training data: set one of {folders} to the folder of the data set, or data.synthetic")


def cut_canvas(image: np.ndarray, person: Person, config: DataConfig) -> Canvases:
    """Cuts one person out of a decoded picture: a Canvases of length 1.

    The square is centred on the box; its side is the longer one of the extended box times ``canvas_margin``, in whole
    pixels, at most three times the picture's.
    """
    centre, size = (person.box[:2] + person.box[2:]) / 2, person.box[2:] - person.box[:2]
    side = np.ceil(size.max() * (1 + config.extension) * config.canvas_margin)
    side = int(np.clip(side, 2, _LARGEST_SQUARE * max(image.shape[:2])))
    canvas, to_canvas = cut_square(image, centre, side, config.canvas)
    points = np.where(person.labelled[:, None], to_canvas(person.points), 0).astype(np.float32)
    box = to_canvas(person.box.reshape(2, 2)).reshape(4)
    return Canvases(canvas[None], points[None], person.labelled[None], box[None], np.ones(1, bool))


def cut_square(
    image: np.ndarray, centre: np.ndarray, side: int, canvas: int, *, edge: bool = False
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Cuts a square out of a decoded picture, and resizes it.

    What lies outside the picture is black, or with ``edge`` as its outermost pixels. A cut that shrinks averages over
    areas by a power of two first, so that less than a factor of two is left to bilinear sampling; averaging by the
    whole factor takes OpenCV as long as decoding does.

    Args:
        image: uint8 RGB, (height, width, 3).
        centre: (2,) x, y of the square, pixels.
        side: of the square, pixels; up to a factor of two more are cut to get whole numbers.
        canvas: side of the result.
        edge: the picture's outermost pixels go on beyond it; it must share some with the square.

    Returns:
        The canvas, and the map from (..., 2) points of the picture to float32 points of the canvas.
    """
    factor = 2 ** max(int(np.log2(side / canvas)), 0)
    side = -(-side // factor) * factor
    start = np.round(centre - (side - 1) / 2).astype(int)
    low, high = np.maximum(start, 0), np.minimum(start + side, image.shape[1::-1])
    square = np.zeros((side, side, 3), np.uint8)
    if (high > low).all():
        (x0, y0), (x1, y1) = low - start, high - start
        square[y0:y1, x0:x1] = image[low[1] : high[1], low[0] : high[0]]
        if edge:
            square = np.pad(square[y0:y1, x0:x1], [(y0, side - y1), (x0, side - x1), (0, 0)], mode="edge")
    small = cv2.resize(square, (side // factor, side // factor), interpolation=cv2.INTER_AREA)
    scale = canvas / side

    def to_canvas(points: np.ndarray) -> np.ndarray:
        return ((points - start + 0.5) * scale - 0.5).astype(np.float32)

    return cv2.resize(small, (canvas, canvas), interpolation=cv2.INTER_LINEAR), to_canvas


@dataclasses.dataclass(frozen=True)
class PeopleCutting:
    """People, each on a canvas of their own: examples for a single-person estimator."""

    config: DataConfig
    joints: int  # that a person has
    together: int = 1

    @property
    def side(self) -> int:
        """Of a canvas, pixels."""
        return self.config.canvas

    def empty(self, count: int) -> Canvases:
        """See ``Cutting``."""
        return empty_canvases(count, self.side, self.joints)

    def cut(self, image: np.ndarray, item: Person) -> tuple[Canvases, str | None]:
        """See ``Cutting``."""
        said = outside(item.box, (image.shape[0], image.shape[1]))
        return (self.empty(1), f"a box, {said}") if said else (cut_canvas(image, item, self.config), None)

    def batch(self, rows: dict[str, Any], index: Any) -> PoseBatch:
        """See ``Cutting``."""
        return PoseBatch(**rows, index=index)


def cut_items(picture: Picture, items: Sequence[Item], cutting: Cutting) -> tuple[Any, list[str]]:
    """Decodes one picture and cuts the canvases of some items; says what could not be used."""
    result, problems = cutting.empty(len(items)), []
    try:
        image = picture.read()
    except PictureError as error:
        return result, [str(error)]
    for row, item in enumerate(items):
        canvases, said = cutting.cut(image, item)
        if said:
            problems.append(f"{picture}: {said}")
        else:
            _put(result, row, canvases, 0)
    return result, problems


def _put(target: Any, row: int, source: Any, place: int) -> None:
    for name, array in vars(target).items():
        array[row] = getattr(source, name)[place]


class Loader:
    """Reads people's canvases, or those of other items, with several workers, some batches ahead; a context manager.

    Args:
        people: everybody who may be asked for; those who are repeated are the same objects.
        config: how a person is cut out.
        cutting: how another item than a person is.
        workers: how many decode at a time. Threads, since decoding releases Python's lock.
        processes: workers are processes: slower on few cores, for decoders that hold the lock.
        memory: gigabytes of canvases that are kept; 0 keeps none.
        report: receives a line for each record that cannot be used.
    """

    def __init__(
        self,
        people: Sequence[Item],
        config: DataConfig,
        *,
        cutting: Cutting | None = None,
        workers: int = 2,
        processes: bool = False,
        memory: float = 8.0,
        report: Callable[[str], None] = print,
    ):
        self._report, self._workers, self._processes = report, workers, processes
        self.cutting: Cutting = cutting or _people_cutting(people, config)
        numbers: dict[int, int] = {}
        self._number = np.array([numbers.setdefault(id(person), len(numbers)) for person in people], int)
        self._people = list({id(person): person for person in people}.values())
        self._pictures: dict[str, list[int]] = {}
        for number, person in enumerate(self._people):
            self._pictures.setdefault(str(person.picture), []).append(number)
        self._row = np.full(len(self._people), -1)
        room, kept = int(memory * 1e9 / (3 * self.cutting.side**2)), 0
        for together in self._pictures.values():
            if kept + len(together) <= room:
                self._row[together] = np.arange(kept, kept + len(together))
                kept += len(together)
        # Pages of the store are taken from the system when they are written.
        self._store, self._stored = self.cutting.empty(kept), np.zeros(kept, bool)
        self._pending: dict[str, Future] = {}
        self.failures: list[str] = []
        self._failed: set[str] = set()

    def __len__(self) -> int:
        return len(self._number)

    def __enter__(self) -> "Loader":
        self._exits = contextlib.ExitStack()
        if self._processes:
            # Forking a process in which JAX runs threads can hang.
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(self._workers, mp_context=spawn, initializer=_quiet_process)
        else:
            self._exits.enter_context(quiet_decoding())
            pool = ThreadPoolExecutor(self._workers)
        self._pool = self._exits.enter_context(pool)
        self._exits.callback(pool.shutdown, wait=False, cancel_futures=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    @property
    def numbers(self) -> np.ndarray:
        """For each position the number of who stands there, counted from 0: the same for somebody repeated."""
        return self._number

    def batches(self, positions: Iterator[np.ndarray]) -> Iterator[Any]:
        """The people at some positions, batch after batch, reading ahead.

        Raises:
            DataError: too many pictures cannot be used, see ``tolerated_failures``.
        """
        waiting: deque = deque()
        for wanted in positions:
            waiting.append((wanted, self._request(wanted)))
            if len(waiting) > _AHEAD:
                yield self._collect(*waiting.popleft())
        while waiting:
            yield self._collect(*waiting.popleft())

    def load(self, positions: np.ndarray) -> Any:
        """The people at some positions."""
        return self._collect(positions, self._request(positions))

    def _request(self, positions: np.ndarray) -> dict[str, tuple[list[int], Future]]:
        """Starts reading what is not there: for each picture whom it will give, and when."""
        wanted: dict[str, list[int]] = {}
        for number in dict.fromkeys(self._number[positions].tolist()):
            if self._row[number] < 0 or not self._stored[self._row[number]]:
                wanted.setdefault(str(self._people[number].picture), []).append(number)
        found = {}
        for name, numbers in wanted.items():
            kept = self._row[numbers[0]] >= 0
            # A picture that is kept is decoded once, for everybody in it.
            together = self._pictures[name] if kept else numbers
            future = self._pending.get(name)
            if future is None:
                people = [self._people[number] for number in together]
                future = self._pool.submit(cut_items, people[0].picture, people, self.cutting)
                if kept:
                    self._pending[name] = future
            found[name] = together, future
        return found

    def _collect(self, positions: np.ndarray, requested: dict[str, tuple[list[int], Future]]) -> Any:
        loose: dict[int, tuple[Any, int]] = {}
        for name, (numbers, future) in requested.items():
            try:
                canvases, problems = future.result()
            except BrokenProcessPool:
                raise DataError(f"a worker process died while it read {name}") from None
            self._note(name, problems)
            self._pending.pop(name, None)
            for place, number in enumerate(numbers):
                row = int(self._row[number])
                if row < 0:
                    loose[number] = canvases, place
                else:
                    _put(self._store, row, canvases, place)
                    self._stored[row] = True
        result = self.cutting.empty(len(positions))
        for place, number in enumerate(self._number[positions].tolist()):
            source, row = loose[number] if self._row[number] < 0 else (self._store, int(self._row[number]))
            _put(result, place, source, row)
        return result

    def _note(self, name: str, problems: list[str]) -> None:
        if problems:
            self._failed.add(name)
        for problem in problems:
            if problem not in self.failures:
                self.failures.append(problem)
                self._report(f"left out: {problem}")
        if len(self._failed) > tolerated_failures(len(self._pictures)):
            raise DataError(
                f"{len(self._failed)} of {len(self._pictures)} pictures cannot be used; the first: {self.failures[0]}"
            )


def _people_cutting(people: Sequence[Any], config: DataConfig) -> PeopleCutting:
    return PeopleCutting(config, people[0].labelled.size if people else 0)


def _quiet_process() -> None:
    quiet_decoding().__enter__()


def training_positions(count: int, batch: int, *, seed: int, step: int) -> np.ndarray:
    """Which of ``count`` people are in the batch of a step: a fresh permutation each epoch, the short rest left out."""
    if batch > count:
        raise DataError(f"a batch of {batch} people is larger than the {count} people there are")
    epoch, place = divmod(step, count // batch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[place * batch : (place + 1) * batch]


def training_batches(
    loader: Loader, batch: int, *, seed: int, first: int, last: int, process: int = 0, processes: int = 1
) -> Iterator[Any]:
    """The batches of steps ``first`` to ``last - 1``: this process's share of each.

    Args:
        loader: of the people, the same in every process.
        batch: examples in a step over all processes; divisible by ``processes``.
        seed: of the order.
        first: the first step: a resumed run passes the step at which it was.
        last: one after the last step.
        process: number of this process.
        processes: how many there are.
    """
    share, cutting = _share(batch, process, processes), loader.cutting
    for canvases in loader.batches(_positions(loader, batch, share, seed=seed, steps=range(first, last))):
        rows = {name: jnp.asarray(array) for name, array in vars(canvases).items()}
        yield cutting.batch(rows, jnp.arange(share.start, share.stop, dtype=jnp.int32))


def _positions(loader: Loader, batch: int, share: slice, *, seed: int, steps: range) -> Iterator[np.ndarray]:
    """Which items this process's share of each batch is made of."""
    together = loader.cutting.together
    for step in steps:
        positions = training_positions(len(loader), batch * together, seed=seed, step=step)
        yield positions[share.start * together : share.stop * together]


def _share(batch: int, process: int, processes: int) -> slice:
    if batch % processes:
        raise DataError(f"a batch of {batch} people cannot be split evenly over {processes} processes")
    return slice(process * batch // processes, (process + 1) * batch // processes)


def device_batches(
    loader: Loader,
    batch: int,
    *,
    seed: int,
    first: int,
    last: int,
    process: int = 0,
    processes: int = 1,
    devices: Sequence[Any] | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Iterator[Any]:
    """The same batches as ``training_batches``, gathered on the devices; only the numbers of their people travel there.

    Everybody is read before it returns, once, and lies on each of the devices. A batch is split over them where it can
    be split evenly, and else is whole on each.

    Args:
        loader: of the people; one that keeps nothing (``memory=0``) holds no second copy of them.
        batch: examples in a step over all processes; divisible by ``processes``.
        seed: of the order.
        first: the first step.
        last: one after the last step.
        process: number of this process.
        processes: how many there are.
        devices: of this process; all of its own by default.
        progress: wraps the pieces in which people are read, as ``tqdm`` does.

    Raises:
        DataError: the people do not fit into the free memory of a device, too many pictures cannot be used (see
            ``tolerated_failures``), or the batch cannot be split over the processes.
    """
    share = _share(batch, process, processes)
    mesh = Mesh(np.array(list(devices or jax.local_devices())), (_AXIS,))
    even = (share.stop - share.start) % mesh.size == 0
    split = NamedSharding(mesh, PartitionSpec(_AXIS) if even else PartitionSpec())
    gather = jax.jit(partial(_gather, cutting=loader.cutting, start=share.start), out_shardings=split)
    store = _store_on(mesh, loader, progress)

    def gathered() -> Iterator[Any]:
        for positions in _positions(loader, batch, share, seed=seed, steps=range(first, last)):
            yield gather(store, jax.device_put(loader.numbers[positions].astype(np.int32), split))

    return gathered()


def _store_on(mesh: Mesh, loader: Loader, progress: Callable[[range], Iterable[int]]) -> dict[str, Array]:
    """Everybody's canvases on each device of a mesh: a row for each number of the loader's."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    positions = np.unique(loader.numbers, return_index=True)[1]
    # Rows are flat: devices that lay out arrays in tiles pad a last axis as short as that of colours.
    person = _flat(loader.cutting.empty(1))
    _check_memory(mesh.devices.flat, len(positions), sum(len(positions) * row.nbytes for row in person.values()))
    store = {name: jnp.zeros((len(positions), row.size), row.dtype, device=everywhere) for name, row in person.items()}
    starts = range(0, len(positions), _PIECE)
    pieces = loader.batches(positions[start : start + _PIECE] for start in starts)
    for start, piece in zip(progress(starts), pieces, strict=True):
        store = _with_rows(store, jax.device_put(_flat(piece), everywhere), start)
    return store


def _flat(canvases: Any) -> dict[str, np.ndarray]:
    return {name: array.reshape(len(array), -1) for name, array in vars(canvases).items()}


def _check_memory(devices: Iterable[Any], people: int, size: int) -> None:
    for device in devices:
        stats = device.memory_stats() or {}  # a CPU has none
        free = stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0)
        if size > free:
            raise DataError(
                f"the canvases of {people} people take {size / 1e9:.3g} GB, but {device} has {free / 1e9:.3g} GB free"
            )


# The store is handed on, so that it is written in place and never there twice.
@partial(jax.jit, donate_argnums=0)
def _with_rows(store: dict[str, Array], rows: dict[str, Array], start: Int[Array, ""]) -> dict[str, Array]:
    return {
        name: jax.lax.dynamic_update_slice_in_dim(array, rows[name], start, axis=0) for name, array in store.items()
    }


def _gather(store: dict[str, Array], rows: Int[Array, " n"], *, cutting: Cutting, start: int) -> Any:
    chosen = {name: array.at[rows].get(mode="promise_in_bounds") for name, array in store.items()}
    shapes = {name: array.shape[1:] for name, array in vars(cutting.empty(0)).items()}
    whole = {name: array.reshape(-1, *shapes[name]) for name, array in chosen.items()}
    return cutting.batch(whole, start + jnp.arange(len(rows) // cutting.together, dtype=jnp.int32))


def pose_batch(canvases: Canvases, *, size: int | None = None, start: int = 0) -> PoseBatch:
    """Canvases as a batch, padded to ``size`` with invalid copies; ``start`` is its place in the global batch."""
    size = len(canvases) if size is None else size
    order = np.resize(np.arange(len(canvases)), size)
    chosen = [getattr(canvases, name)[order] for name in ("canvas", "points", "labelled", "box")]
    valid = canvases.valid[order] & (np.arange(size) < len(canvases))
    index = np.arange(start, start + size, dtype=np.int32)
    return PoseBatch(*(jnp.asarray(array) for array in (*chosen, index, valid)))


def evaluation_batches(canvases: Canvases, batch: int) -> Iterator[PoseBatch]:
    """All people in order, in batches of one shape; the last is padded and masked."""
    for begin in range(0, len(canvases), batch):
        yield pose_batch(rows_of(canvases, slice(begin, begin + batch)), size=batch)
