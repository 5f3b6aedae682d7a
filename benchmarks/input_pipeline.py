"""How many pictures a second reach a training step: decoding alone, with the host's crop, with the device's crop.

.venv/bin/python benchmarks/input_pipeline.py [--quick] [--json -|FILE] [--pictures DIR]

The pictures are JPEG files, 640 x 480 and the like: those of COCO where they are at hand (``--pictures``, or in
``coco/train2017`` of RMPE_DATA, or of ``../shared/data``), else drawn ones. Each has one person, whose canvas is 256
pixels wide. Everything is read from files that the system has cached, so disks play no part. OpenCV's decoder and Grain
(where installed) are measured beside. Measured: README.md in this folder.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import command
import cv2
import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.config import DataConfig
from rmpe_jax.data.files import PictureFile
from rmpe_jax.data.images import read_image, write_image
from rmpe_jax.data.people import Person
from rmpe_jax.data.pipeline import Loader, cut_canvas
from rmpe_jax.data.synthetic import draw_scene
from rmpe_jax.geometry.affine import image_from_crop
from rmpe_jax.geometry.sampling import crop_image

CONFIG, BATCH, LARGEST = DataConfig(), 16, 640


def pictures(folder: Path | None, drawn_into: Path, count: int) -> tuple[str, list[Path]]:
    """Where the pictures come from, and their files."""
    data = Path(os.environ.get("RMPE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    folder = folder or data / "coco" / "train2017"
    found = sorted(folder.glob("*.jpg"))[:count] if folder.is_dir() else []
    if found:
        return "COCO" if folder.name == "train2017" else folder.name, found
    for number in range(count):
        scene = cv2.resize(draw_scene(0, number)[0], (640, 480), interpolation=cv2.INTER_CUBIC)
        write_image(drawn_into / f"{number}.jpg", scene)
    return "drawn", sorted(drawn_into.glob("*.jpg"))


def person_in(path: Path) -> Person:
    """Somebody who stands in the middle of a picture, four fifths as tall."""
    height, width = read_image(path).shape[:2]
    half = np.array([0.2 * height, 0.4 * height])
    middle = np.array([width, height]) / 2
    box = np.concatenate([middle - half, middle + half]).astype(np.float32)
    points = np.tile(middle, (17, 1)).astype(np.float32)
    return Person(PictureFile(path), 0, box, points, np.ones(17, bool), 1.0)


def with_threads(work: Callable[[Person], Any], people: Sequence[Person], workers: int) -> None:
    """Does all the work and drops the results."""
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, people):
            pass


def decode(person: Person) -> np.ndarray:
    """Pillow, as the package reads pictures."""
    return person.picture.read()


def decode_with_opencv(person: Person) -> np.ndarray:
    """The peer that knows neither EXIF nor what is missing at the end of a file."""
    assert isinstance(person.picture, PictureFile)
    image = cv2.imread(str(person.picture.path), cv2.IMREAD_COLOR)
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def host_crop(read: Callable[[Person], np.ndarray], person: Person) -> np.ndarray:
    """The package's way: a canvas, cut and shrunk by OpenCV."""
    return cut_canvas(read(person), person, CONFIG).canvas


@partial(jax.jit, static_argnames="size")
def crop_batch(images: jax.Array, boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Whole pictures in, canvases out, on the device."""
    return jax.vmap(lambda image, box: crop_image(image / 255.0, image_from_crop(box, size), size))(images, boxes)


def device_crop(people: Sequence[Person], workers: int) -> None:
    """Whole pictures travel to the device, padded to one size, and are cut out there."""
    size = (CONFIG.canvas, CONFIG.canvas)
    with ThreadPoolExecutor(workers) as pool:
        images = pool.map(decode, people)
        for start in range(0, len(people) - BATCH + 1, BATCH):
            batch = np.zeros((BATCH, LARGEST, LARGEST, 3), np.uint8)
            for row in range(BATCH):
                image = next(images)[:LARGEST, :LARGEST]
                batch[row, : image.shape[0], : image.shape[1]] = image
            boxes = jnp.array(np.stack([person.box for person in people[start : start + BATCH]]))
            crop_batch(jnp.asarray(batch), boxes, size=size).block_until_ready()


def loaded(people: Sequence[Person], workers: int, processes: bool) -> Iterator[float]:
    """Pictures a second of the package's loader in its first pass and, kept in memory, in its second."""
    order = [np.arange(start, start + BATCH) for start in range(0, len(people) - BATCH + 1, BATCH)]
    with Loader(people, CONFIG, workers=workers, processes=processes) as loader:
        # Processes take seconds to start, which a training run does not notice.
        loader.load(order[0])
        for _ in range(2):
            start = time.perf_counter()
            for _ in loader.batches(iter(order[1:])):
                pass
            yield (len(order) - 1) * BATCH / (time.perf_counter() - start)


def grain_rate(people: Sequence[Person], threads: int, processes: int) -> float | None:
    """Pictures a second of the same work through Grain, None where it is not installed."""
    try:
        import grain.python as grain  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    data = grain.MapDataset.source(range(len(people))).map(lambda n: host_crop(decode, people[n])[0]).batch(BATCH)
    stream = data.to_iter_dataset(grain.ReadOptions(num_threads=threads))
    if processes:
        from absl import flags

        flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=processes))
    iterator = iter(stream)
    next(iterator)
    start, count = time.perf_counter(), 0
    for batch in iterator:
        count += len(batch)
    rate = count / (time.perf_counter() - start)
    if processes:
        iterator.close()
    return rate


def measured(people: Sequence[Person], repeats: int) -> dict[str, float]:
    """Median pictures a second of every way, the ways taking turns."""
    device_crop(people[:BATCH], 1)
    ways: dict[str, Callable[[], None]] = {}
    for workers in (1, 2):
        ways[f"decode, {workers} threads"] = partial(with_threads, decode, people, workers)
        ways[f"decode + host crop, {workers} threads"] = partial(
            with_threads, partial(host_crop, decode), people, workers
        )
        ways[f"decode + device crop, {workers} threads"] = partial(device_crop, people, workers)
        ways[f"OpenCV decode, {workers} threads"] = partial(with_threads, decode_with_opencv, people, workers)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    others: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
        for workers, processes in ((1, False), (2, False), (1, True), (2, True)):
            kind = f"{workers} {'processes' if processes else 'threads'}"
            first, second = loaded(people, workers, processes)
            others.setdefault(f"loader, {kind}", []).append(first)
            others.setdefault(f"loader, kept in memory, {kind}", []).append(second)
        for threads, processes in ((1, 0), (2, 0), (1, 2)):
            rate = grain_rate(people, threads, processes)
            if rate is not None:
                others.setdefault(
                    f"Grain, {processes or threads} {'processes' if processes else 'threads'}", []
                ).append(rate)
    found: dict[str, float] = {}
    for name, times in seconds.items():
        count = len(people) // BATCH * BATCH if "device" in name else len(people)
        found[name] = count / statistics.median(times)
    return found | {name: statistics.median(rates) for name, rates in others.items()}


def main() -> None:
    """Measures and prints."""
    parser = command.parser("Times the input pipeline.", quick="fewer pictures, once")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="folder of JPEG files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, files = pictures(options.pictures, Path(folder), 48 if options.quick else 176)
        people = [person_in(path) for path in files]
        rates = measured(people, 1 if options.quick else 5)
    width = max(map(len, rates))
    title = (
        f"pictures a second, of {len(people)} pictures ({source}), {os.cpu_count()} CPU cores, jax {jax.__version__}"
    )
    lines = [title, *(f"  {name:<{width}}  {rate:7.0f}" for name, rate in rates.items())]
    result = {"pictures": len(people), "source": source, "jax": jax.__version__, "rates": rates}
    result["ratio_host_to_device_crop"] = (
        rates["decode + host crop, 2 threads"] / rates["decode + device crop, 2 threads"]
    )
    result["ratio_threads_to_processes"] = rates["loader, 2 threads"] / rates["loader, 2 processes"]
    grain = rates.get("Grain, 2 threads")
    result["ratio_grain"] = rates["loader, 2 threads"] / grain if grain else None
    command.report(result, options.json, "\n".join(lines))


if __name__ == "__main__":
    main()
