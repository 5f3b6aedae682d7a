"""Crops along affine maps, 32 pictures of 512 pixels to 256: this package beside PyTorch's affine_grid + grid_sample.

.venv/bin/python benchmarks/sampling.py [--quick] [--json -|FILE]

Three passes, each along maps that turn and along maps that do not (aligned): forward; with the gradient in theta; with
that in theta and in the pictures (not with --quick). Both run on the same device: CPU seconds on a CPU; elsewhere the
clock, over calls queued by twenties. Where PyTorch is missing its ratios are null and the reason is given. Values and
gradients are compared. Beside it: picture to crop to STN in one sample and in two. Measured: README.md here.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import command
import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.geometry.affine import compose, pixels_from_unit, unit_from_pixels
from rmpe_jax.geometry.remapping import crop_from_stn
from rmpe_jax.geometry.sampling import crop_aligned, crop_image, crop_images

COUNT, SIDE, CROP = 32, 512, 256
SIZE = (CROP, CROP)
CASES, PASSES = ("turned", "aligned"), ("forward", "theta", "theta and picture")
#: Called with whether to wait for the result.
Run = Callable[[bool], Any]


def made_batch(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smooth pictures (b, H, W, 3), thetas about a person's crop, and what the crops are multiplied by in the loss."""
    rng = np.random.default_rng(0)
    wave = rng.uniform(0.02, 0.2, (COUNT, 3, 2))
    y, x = np.mgrid[:SIDE, :SIDE]
    pictures = np.stack([np.stack([np.sin(a * x + b * y) for a, b in one], -1) for one in wave]).astype(np.float32)
    thetas = np.zeros((COUNT, 2, 3))
    thetas[:, 0, 0], thetas[:, 1, 1] = rng.uniform(0.5, 0.9, (2, COUNT))
    thetas[:, :, 2] = rng.uniform(-0.2, 0.2, (COUNT, 2))
    if case == "turned":
        thetas[:, 0, 1], thetas[:, 1, 0] = rng.uniform(-0.3, 0.3, (2, COUNT))
    return pictures, thetas.astype(np.float32), rng.normal(size=(COUNT, CROP, CROP, 3)).astype(np.float32)


def to_pixels(thetas: jax.Array) -> jax.Array:
    """image_from_crop of each theta."""
    pixels, unit = pixels_from_unit((SIDE, SIDE)), unit_from_pixels(SIZE)
    return jax.vmap(lambda theta: compose(compose(pixels, theta), unit))(thetas)


#: This package's ways; the last one only where nothing turns.
WAYS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "crop_images": lambda pictures, thetas: crop_images(pictures, to_pixels(thetas), SIZE),
    "vmap(crop_image)": lambda pictures, thetas: jax.vmap(partial(crop_image, size=SIZE))(pictures, to_pixels(thetas)),
    "crop_aligned": lambda pictures, thetas: jax.vmap(partial(crop_aligned, size=SIZE))(pictures, to_pixels(thetas)),
}


def our_runs(way: str, batch: tuple[np.ndarray, ...], passes: tuple[str, ...]) -> dict[str, tuple[Run, int]]:
    """One run for each pass, and the bytes that it needs beside its inputs."""
    pictures, thetas, weights = map(jnp.asarray, batch)

    def loss(thetas, pictures):
        return (WAYS[way](pictures, thetas) * weights).sum()

    functions = {
        "forward": lambda thetas, pictures: WAYS[way](pictures, thetas),
        "theta": jax.value_and_grad(loss),
        "theta and picture": jax.value_and_grad(loss, (0, 1)),
    }
    runs = {}
    for name in passes:
        compiled = jax.jit(functions[name]).lower(thetas, pictures).compile()
        memory: Any = compiled.memory_analysis()
        held = memory.temp_size_in_bytes + memory.output_size_in_bytes
        runs[name] = (lambda wait, compiled=compiled: finished(compiled(thetas, pictures), wait)), held
    return runs


def torch_runs(batch: tuple[np.ndarray, ...], passes: tuple[str, ...]) -> dict[str, tuple[Run, int]]:
    """The same by PyTorch, in its own layout, on the device that JAX uses.

    Raises:
        ImportError: where it is missing; RuntimeError: where it does not see JAX's device.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.functional import affine_grid, grid_sample  # pyright: ignore[reportMissingImports]

    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        raise RuntimeError(f"this PyTorch does not see the {jax.default_backend()} that JAX runs on")
    planes = [np.ascontiguousarray(np.moveaxis(array, -1, 1)) for array in (batch[0], batch[2])]
    pictures, weights, thetas = (torch.tensor(array, device=device) for array in (*planes, batch[1]))

    def crops(thetas, pictures):
        grid = affine_grid(thetas, [COUNT, 3, CROP, CROP], align_corners=False)
        return grid_sample(pictures, grid, align_corners=False)

    def gradient(of_pictures):
        leaves = [thetas.clone().requires_grad_(), pictures.clone().requires_grad_(of_pictures)]
        loss = (crops(*leaves) * weights).sum()
        return loss, torch.autograd.grad(loss, leaves if of_pictures else leaves[:1])

    def run(work, wait):
        found = work()
        if wait and device == "cuda":
            torch.cuda.synchronize()
        return found

    works = {"forward": lambda: crops(thetas, pictures)}
    works |= {"theta": lambda: gradient(False), "theta and picture": lambda: gradient(True)}
    return {name: (partial(run, works[name]), torch_peak(torch, device, works[name])) for name in passes}


def torch_peak(torch: Any, device: str, work: Callable[[], Any]) -> int:
    """The most bytes that PyTorch held at once during a call, beside its inputs."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = work()
    # The summary of the profile credits most of these to the operators; here are all, in their order.
    steps = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    steps.sort(key=lambda event: event.start_ns())
    del kept
    return int(max(np.cumsum([event.nbytes() for event in steps]), default=0))


def seconds_of(run: Run) -> tuple[float, float]:
    """Of one call: CPU seconds, and by the clock.

    On an accelerator twenty go in a row, so that the time to start one is hidden.
    """
    calls = 1 if jax.default_backend() == "cpu" else 20
    start, begun = time.process_time(), time.perf_counter()
    for _ in range(calls - 1):
        run(False)
    run(True)
    return (time.process_time() - start) / calls, (time.perf_counter() - begun) / calls


def copy_seconds(case: str, rounds: int) -> tuple[float, float]:
    """The floor: moving as many bytes as the crops read and write, once."""
    area = np.abs(np.linalg.det(made_batch(case)[1][:, :, :2])).mean()
    numbers = jnp.zeros(int(COUNT * 3 * (area * SIDE**2 + CROP**2) / 2))
    copy = jax.jit(lambda array: array + 1)
    runs = [seconds_of(lambda wait: finished(copy(numbers), wait)) for _ in range(rounds + 1)][1:]
    return medians(runs)


def finished(result: Any, wait: bool) -> Any:
    """The result, which is waited for or not."""
    return jax.block_until_ready(result) if wait else result


def medians(runs: list[tuple[float, float]]) -> tuple[float, float]:
    """Of CPU seconds and of seconds by the clock."""
    cpu, wall = map(statistics.median, zip(*runs, strict=True))
    return cpu, wall


def largest_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Between two ways, relative to the largest value: of the crops, and of the gradient in theta."""
    crops = [np.asarray(ours["forward"]), np.moveaxis(theirs["forward"].cpu().numpy(), 1, -1)]
    thetas = [np.asarray(ours["theta"][1]), theirs["theta"][1][0].cpu().numpy()]
    return {
        name: float(np.abs(a - b).max() / np.abs(b).max()) for name, (a, b) in (("crops", crops), ("theta", thetas))
    }


def measured(rounds: int, passes: tuple[str, ...]) -> dict[str, Any]:
    """All figures of some passes."""
    missing = None
    figures: dict[str, Any] = {"backend": jax.default_backend(), "jax": jax.__version__, "rounds": rounds}
    for case in CASES:
        batch = made_batch(case)
        runs = {way: our_runs(way, batch, passes) for way in WAYS if way != "crop_aligned" or case == "aligned"}
        try:
            runs["torch"] = torch_runs(batch, passes)
        except (ImportError, RuntimeError) as error:
            missing = f"{type(error).__name__}: {error}"
        taken = {(way, name): [] for way in runs for name in passes}
        values = {way: {name: runs[way][name][0](True) for name in passes} for way in runs}
        for number in range(rounds):
            for way, name in list(taken)[:: 1 if number % 2 else -1]:
                taken[way, name].append(seconds_of(runs[way][name][0]))
        figures[case] = {
            way: {
                name: row_of(medians(taken[way, name])) | {"megabytes": round(runs[way][name][1] / 1e6, 1)}
                for name in passes
            }
            for way in runs
        }
        figures[case]["copy"] = row_of(copy_seconds(case, rounds))
        if "torch" in runs:
            figures[case]["difference"] = largest_differences(values["crop_images"], values["torch"])
    figures["samples"] = {name: row_of(medians(runs)) for name, runs in samples(rounds).items()}
    return ratios(figures, missing) | figures


def row_of(pair: tuple[float, float]) -> dict[str, float]:
    """``seconds``: what counts, of the CPU's on a CPU; and both."""
    cpu, wall = (round(value, 6) for value in pair)
    return {"seconds": cpu if jax.default_backend() == "cpu" else wall, "cpu": cpu, "wall": wall}


def samples(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """From picture to what the STN shows: along both maps in one sample, and by a crop that is sampled again."""
    pictures, thetas, _ = map(jnp.asarray, made_batch("turned"))
    crops, inner = to_pixels(thetas), jax.vmap(lambda theta: crop_from_stn(theta, SIZE))(0.8 * thetas)
    once = jax.jit(lambda pictures: crop_images(pictures, jax.vmap(compose)(crops, inner), SIZE))
    twice = jax.jit(lambda pictures: crop_images(crop_images(pictures, crops, SIZE), inner, SIZE))
    return {
        name: [seconds_of(lambda wait, way=way: finished(way(pictures), wait)) for _ in range(rounds + 1)][1:]
        for name, way in (("one sample", once), ("two samples", twice))
    }


def ratios(figures: dict[str, Any], missing: str | None) -> dict[str, Any]:
    """PyTorch's seconds over this package's."""
    found: dict[str, Any] = {}
    ways = [
        ("", "turned", "crop_images"),
        ("aligned_", "aligned", "crop_images"),
        ("products_", "aligned", "crop_aligned"),
    ]
    for prefix, case, way in ways:
        for label, name in (("forward", "forward"), ("theta_gradient", "theta"), ("full_gradient", PASSES[2])):
            peer, ours = (figures[case].get(who, {}).get(name) for who in ("torch", way))
            ratio = round(peer["seconds"] / ours["seconds"], 3) if peer and ours else None
            found[f"{prefix}{label}_ratio_torch"] = ratio
    return found | ({"torch_missing": missing} if missing else {})


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{COUNT} pictures, {SIDE} to {CROP} pixels, on {figures['backend']}; milliseconds (MB), median of rounds"]
    lines[0] += f" ({figures['rounds']})"
    for case in CASES:
        lines.append(f"{case:<20}" + "".join(f"{name:>22}" for name in PASSES))
        for way in (*WAYS, "torch"):
            if way in figures[case]:
                cells = figures[case][way].values()
                texts = [f"{1000 * cell['seconds']:.2f} ({cell['megabytes']:.0f})" for cell in cells]
                lines.append(f"  {way:<18}" + "".join(f"{text:>22}" for text in texts))
        lines.append(f"  copy of the bytes of one forward pass: {1000 * figures[case]['copy']['seconds']:.2f}")
        for name, difference in figures[case].get("difference", {}).items():
            lines.append(f"  largest difference to torch, {name}: {difference:.1e}")
    for name, row in figures["samples"].items():
        lines.append(f"picture to STN in {name}: {1000 * row['seconds']:.2f}")
    for name, value in figures.items():
        if name.endswith("ratio_torch"):
            lines.append(f"{name}: {value}")
    return "\n".join(lines + ([f"no PyTorch: {figures['torch_missing']}"] if "torch_missing" in figures else []))


def main() -> None:
    """Reads the command line, measures and reports."""
    options = command.parser(
        "Times bilinear crops along affine maps, and their gradients.",
        quick="three rounds instead of fifteen, of two passes",
    ).parse_args()
    figures = measured(3, PASSES[:2]) if options.quick else measured(15, PASSES)
    command.report(figures, options.json, table(figures))


if __name__ == "__main__":
    main()
