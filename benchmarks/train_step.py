"""A training step of the stacked hourglass: this package beside the same network in PyTorch, and the first one.

.venv/bin/python benchmarks/train_step.py [--quick] [--json -|FILE] [--stacks 2 8] [--batch 32 256] [--features 256]
    [--size 256] [--depth 4] [--dtype bfloat16] [--scan|--no-scan] [--compile-torch|--no-compile-torch] [--first-only]
    [--saving]

Both take the same step on the same device: forward in training mode, the mean squared error of every stack's maps,
summed over stacks, backward, and an update by AdamW, on one batch of random pictures and targets that stays on the
device. They begin with the same weights, and in float32 the losses of the first two steps must agree to 1e-3 before
anything is timed. The twin has its pictures in channels_last; on a GPU it is compiled, and with ``--dtype bfloat16`` it
runs under autocast. Rounds alternate and the best one counts: on a CPU in CPU seconds of one core, since threads that
wait for a core that another job has would decide the ratio (``--all-cores``: by the clock), on a GPU by the clock, each
of ten steps in a row. Where PyTorch is missing its ratio is null and the reason is given.

Beside it, of this package alone, in processes of their own with all cores: the whole ``train_step`` (augmentation,
targets, weighted loss, clipping, running average), and the first such step of a process, by the clock: tracing,
compiling and running, with an empty persistent compilation cache (cold) and with the one that this filled (warm).
``--saving`` times instead how long a checkpoint of the whole step's state holds up a run.
Figures of the first case stand at the top of the JSON, those of all under ``cases``. Measured: README.md here.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import command
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmpe_jax.config import DataConfig, Experiment, HourglassConfig, OptimConfig, from_value
from rmpe_jax.models.hourglass import (
    apply_hourglass,
    apply_hourglass_training,
    hourglass_shapes,
    init_hourglass,
    stack_variables,
)
from rmpe_jax.records import PoseBatch
from rmpe_jax.train.checkpoint import Checkpoints
from rmpe_jax.train.step import init_state, train_step

SKELETON, JOINTS = "mpii_16", 16
RATE, DECAY = 1e-4, 1e-2  # of AdamW; its other constants are the same in Optax and PyTorch
#: Nominal dense bfloat16 FLOP/s by the name that JAX gives a device (NVIDIA's data sheets, without sparsity).
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
#: Takes a number of steps, waits for the last, and returns its loss.
Run = Callable[[int], float]


def made_batch(config: HourglassConfig, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (b, H, W, 3) in [0, 1] and targets (b, h, w, k)."""
    rng = np.random.default_rng(0)
    shapes = (batch, *config.input_size, 3), (batch, *config.output_size, JOINTS)
    pictures, targets = (rng.random(shape, np.float32) for shape in shapes)
    return pictures, targets


def our_run(config: HourglassConfig, variables: Any, batch: tuple[np.ndarray, ...]) -> tuple[Run, dict[str, Any]]:
    """This package's steps on one batch, and what XLA says of their memory."""
    optimizer = optax.adamw(RATE, weight_decay=DECAY)

    def step(state, pictures, targets):
        variables, moments = state

        def loss_of(params):
            weights = variables | {"params": params}
            maps, changed = apply_hourglass_training(weights, pictures, config, joints=JOINTS)
            return ((maps - targets[None]) ** 2).mean((1, 2, 3, 4)).sum(), changed

        (loss, changed), gradient = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        updates, moments = optimizer.update(gradient, moments, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return ({"params": params, "batch_stats": changed}, moments), loss

    variables = stack_variables(variables, config)
    # Copies, since the state is donated.
    state = jax.tree.map(jnp.array, (variables, optimizer.init(variables["params"])))
    given = jax.tree.map(jnp.asarray, batch)
    compiled = jax.jit(step, donate_argnums=0).lower(state, *given).compile()

    def run(count: int) -> float:
        nonlocal state
        loss = jnp.zeros(())
        for _ in range(count):
            state, loss = compiled(state, *given)
        return float(loss)

    return run, memory_of(compiled)


def memory_of(compiled: Any) -> dict[str, float]:
    """What a program holds beside what it is given, and what it is given."""
    memory = compiled.memory_analysis()
    sizes = {"temporary": memory.temp_size_in_bytes, "arguments": memory.argument_size_in_bytes}
    return {f"{name}_megabytes": round(size / 1e6, 1) for name, size in sizes.items()}


def torch_run(
    config: HourglassConfig, variables: Any, batch: tuple[np.ndarray, ...], compiled: bool | None
) -> tuple[Run, Any]:
    """The twin's steps on the same batch, and PyTorch; ``compiled`` is None for the default of the device.

    Raises:
        ImportError: where PyTorch is missing; RuntimeError: where it does not see JAX's device.
    """
    import torch  # pyright: ignore[reportMissingImports]

    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        raise RuntimeError(f"this PyTorch does not see the {jax.default_backend()} that JAX runs on")
    network = twin(torch, config)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    load(torch, network, variables["params"])
    network = network.to(device, memory_format=torch.channels_last).train()
    forward = torch.compile(network) if (device == "cuda" if compiled is None else compiled) else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY, fused=device == "cuda")
    pictures, targets = (
        torch.tensor(array.transpose(0, 3, 1, 2), device=device).contiguous(memory_format=torch.channels_last)
        for array in batch
    )
    half = torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bfloat16")

    def run(number: int) -> float:
        loss = torch.zeros(())
        for _ in range(number):
            optimizer.zero_grad(set_to_none=True)
            with half:
                maps = forward(pictures)
            loss = ((maps.float() - targets[None]) ** 2).mean((1, 2, 3, 4)).sum()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    return run, torch


def twin(torch: Any, config: HourglassConfig) -> Any:
    """The network of ``rmpe_jax.models.hourglass`` in PyTorch; its modules have the names of the parameters there."""
    nn, relu = torch.nn, torch.nn.functional.relu
    features = config.features

    class Named(nn.Module):
        """Numbers its modules by kind, in the order of their making, as Flax does."""

        def add(self, kind: str, module: Any) -> Any:
            number = sum(name.rsplit("_", 1)[0] == kind for name in self._modules)
            self.add_module(f"{kind}_{number}", module)
            return module

        def norm(self, size: int) -> Any:
            return self.add("Norm", nn.BatchNorm2d(size))

        def dense(self, inputs: int, outputs: int) -> Any:
            return self.add("Dense", nn.Conv2d(inputs, outputs, 1))

    class Residual(Named):
        def __init__(self, inputs: int, outputs: int):
            super().__init__()
            half = outputs // 2
            self.steps = [(self.norm(inputs), self.dense(inputs, half))]
            self.steps.append((self.norm(half), self.add("Conv", nn.Conv2d(half, half, 3, padding=1))))
            self.steps.append((self.norm(half), self.dense(half, outputs)))
            self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

        def forward(self, x):
            y = x
            for norm, layer in self.steps:
                y = layer(relu(norm(y)))
            return y + (self.shortcut(x) if self.shortcut else x)

    def residuals(module: Named) -> Any:
        return [module.add("Residual", Residual(features, features)) for _ in range(config.residuals)]

    def through(layers: list[Any], x: Any) -> Any:
        for layer in layers:
            x = layer(x)
        return x

    class Hourglass(Named):
        def __init__(self, depth: int):
            super().__init__()
            self.skip, self.low = residuals(self), residuals(self)
            self.low += [self.add("Hourglass", Hourglass(depth - 1))] if depth > 1 else residuals(self)
            self.low += residuals(self)

        def forward(self, x):
            low = through(self.low, torch.nn.functional.max_pool2d(x, 2))
            return through(self.skip, x) + torch.nn.functional.interpolate(low, scale_factor=2.0)

    class Stack(Named):
        def __init__(self, last: bool):
            super().__init__()
            self.body = [self.add("Hourglass", Hourglass(config.depth)), *residuals(self)]
            self.body.append(self.dense(features, features))
            self.after = self.norm(features)
            self.heatmaps = nn.Conv2d(features, JOINTS, 1)
            self.merge_features = None if last else nn.Conv2d(features, features, 1)
            self.merge_heatmaps = None if last else nn.Conv2d(JOINTS, features, 1)

        def forward(self, x):
            y = relu(self.after(through(self.body, x)))
            maps = self.heatmaps(y)
            if self.merge_features and self.merge_heatmaps:
                x = x + self.merge_features(y) + self.merge_heatmaps(maps)
            return x, maps

    class StackedHourglass(Named):
        def __init__(self):
            super().__init__()
            self.first = self.add("Conv", nn.Conv2d(3, features // 4, 7, 2, 3)), self.norm(features // 4)
            sizes = (features // 4, features // 2, features // 2, features)
            self.stem = [self.add("Residual", Residual(*pair)) for pair in itertools.pairwise(sizes)]
            self.stacks = [Stack(number == config.stacks - 1) for number in range(config.stacks)]
            for number, stack in enumerate(self.stacks):
                self.add_module(f"stack_{number}", stack)

        def forward(self, x):
            x, found = relu(through(list(self.first), x)), []
            x = torch.nn.functional.max_pool2d(self.stem[0](x), 2)
            x = through(self.stem[1:], x)
            for stack in self.stacks:
                x, maps = stack(x)
                found.append(maps)
            return torch.stack(found)

    return StackedHourglass()


def load(torch: Any, network: Any, params: Any) -> None:
    """Gives the twin this package's parameters, by their names."""
    held = dict(network.named_parameters())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *modules, name = (entry.key for entry in path)
        array = np.asarray(leaf)
        if name == "kernel":
            array = array.T[:, :, None, None] if array.ndim == 2 else array.transpose(3, 2, 0, 1)
        place = ".".join([module for module in modules if module != "BatchNorm_0"])
        held[f"{place}.{'bias' if name == 'bias' else 'weight'}"].data.copy_(torch.tensor(array))


def first_losses(runs: dict[str, Run]) -> list[tuple[float, float]]:
    """Of the first two steps in float32, ours and PyTorch's.

    Raises:
        AssertionError: they do not agree to 1e-3.
    """
    losses = [(runs["ours"](1), runs["torch"](1)) for _ in range(2)]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-3)
    return losses


def exact_losses(config: HourglassConfig, variables: Any, batch: tuple[np.ndarray, ...]) -> list[tuple[float, float]]:
    """``first_losses`` where the timed steps are less exact: in bfloat16, or in a GPU's TF32."""
    full = dataclasses.replace(config, dtype="float32")
    theirs, torch = torch_run(full, variables, batch, False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with jax.default_matmul_precision("highest"):
        losses = first_losses({"ours": our_run(full, variables, batch)[0], "torch": theirs})
    # What JAX does by itself with float32 on a GPU.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return losses


def forward_flops(config: HourglassConfig) -> float:
    """Of one picture, a multiplication and an addition counted as two, by XLA, of the stacks one by one."""
    plain = dataclasses.replace(config, scan=False, remat=False)
    shapes: Any = hourglass_shapes(plain, joints=JOINTS), jax.ShapeDtypeStruct((1, *plain.input_size, 3), jnp.float32)
    forward = jax.jit(lambda variables, pictures: apply_hourglass(variables, pictures, plain, joints=JOINTS))
    cost: Any = forward.lower(*shapes).cost_analysis()
    return float(cost["flops"])


def experiment_of(config: HourglassConfig, batch: int) -> Experiment:
    """Settings of the whole step; canvases have the size of the crops."""
    data = DataConfig(canvas=config.input_size[0])
    return Experiment(name="bench", skeleton=SKELETON, model=config, data=data, optim=OptimConfig(batch=batch))


def whole_step(config: HourglassConfig, batch: int) -> tuple[Any, Any]:
    """``train_step`` for ``jax.jit``, and its state, batch and key."""
    rng, experiment, side = np.random.default_rng(0), experiment_of(config, batch), config.input_size[0]
    people: Any = {
        "canvas": rng.integers(0, 256, (batch, side, side, 3), np.uint8),
        "points": rng.uniform(0.2 * side, 0.8 * side, (batch, JOINTS, 2)).astype(np.float32),
        "labelled": np.ones((batch, JOINTS), bool),
        "box": np.tile(np.array([0.2, 0.2, 0.8, 0.8], np.float32) * side, (batch, 1)),
        "index": np.arange(batch, dtype=np.int32),
        "valid": np.ones(batch, bool),
    }
    state = jax.block_until_ready(init_state(jax.random.key(0), experiment))
    examples = jax.tree.map(jnp.asarray, PoseBatch(**people))
    return partial(train_step, experiment=experiment), (state, examples, jax.random.key(0))


def first_step(config: HourglassConfig, batch: int, rounds: int) -> dict[str, float]:
    """Seconds of the parts of this process's first whole step, and of a later one, the best of some rounds.

    Making the state and the batch does not count. ``cpu`` and ``step_cpu`` are CPU seconds, of all cores.
    """
    step, (state, *given) = whole_step(config, batch)
    times, begun = [time.perf_counter()], time.process_time()
    lowered = jax.jit(step, donate_argnums=0).lower(state, *given)
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())

    def run(count: int) -> float:
        nonlocal state
        metrics: Any = {}
        for _ in range(count):
            state, metrics = compiled(state, *given)
        return float(metrics["loss"])

    run(1)
    times.append(time.perf_counter())
    cpu = time.process_time() - begun
    parts = dict(zip(("trace", "compile", "run"), np.diff(times).tolist(), strict=True))
    parts |= {"total": times[-1] - times[0], "cpu": cpu}
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter(), time.process_time()
        run(1)
        taken.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    parts["step"], parts["step_cpu"] = np.min(taken, 0).tolist()
    return {name: round(seconds, 4) for name, seconds in parts.items()}


def saving(config: HourglassConfig, batch: int, rounds: int) -> dict[str, float]:
    """Seconds that a run waits for a checkpoint, and until it is complete, by the clock; medians of some rounds."""
    experiment = experiment_of(config, batch)
    state, taken = jax.block_until_ready(init_state(jax.random.key(0), experiment)), []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        for number in range(rounds):
            begun = time.perf_counter()
            checkpoints.save(dataclasses.replace(state, step=jnp.int32(number)), experiment)
            held = time.perf_counter() - begun
            checkpoints.wait()
            taken.append((held, time.perf_counter() - begun))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    held, complete = np.median(taken, 0).tolist()
    return {"state_megabytes": round(size, 1), "save_waits": round(held, 3), "save_complete": round(complete, 3)}


def first_steps(config: HourglassConfig, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Of two processes one after the other, which share a persistent compilation cache that is empty at first."""
    settings = json.dumps({"config": dataclasses.asdict(config), "batch": batch, "rounds": rounds})
    with tempfile.TemporaryDirectory() as folder:
        cache = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, __file__, "--first-step", settings]
        found = {}
        for name in ("cold", "warm"):
            done = subprocess.run(command, env=os.environ | cache, stdout=subprocess.PIPE, check=True, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def clock_of(all_cores: bool) -> Callable[[], float]:
    """CPU seconds of this process, or the clock."""
    return time.process_time if jax.default_backend() == "cpu" and not all_cores else time.perf_counter


def stay_on_one_core() -> None:
    """Starts this program again with a single core, before JAX and PyTorch have made threads for more."""
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, *sys.argv])


def timed(runs: dict[str, Run], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of a step in each round; the order changes from round to round, the first round does not count."""
    count = 1 if jax.default_backend() == "cpu" else 10
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            begun = clock()
            runs[name](count)
            taken[name].append((clock() - begun) / count)
    return {name: seconds[1:] for name, seconds in taken.items()}


def measured(config: HourglassConfig, batch: int, rounds: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one network and batch size, but for its first step."""
    variables, data = init_hourglass(jax.random.key(0), config, joints=JOINTS), made_batch(config, batch)
    figures: dict[str, Any] = {}
    ours, memory = our_run(config, variables, data)
    runs = {"ours": ours}
    try:
        runs["torch"], torch = torch_run(config, variables, data, options.compile_torch)
        figures["torch"] = torch.__version__
        exact = jax.default_backend() == "cpu" and config.dtype == "float32"
        figures["losses"] = first_losses(runs) if exact else exact_losses(config, variables, data)
    except (ImportError, RuntimeError) as error:
        # Without a comparison of the losses nothing says that both take the same step.
        runs.pop("torch", None)
        figures["ratio_torch_reason"] = f"{type(error).__name__}: {error}"
    seconds = timed(runs, rounds, clock_of(options.all_cores))
    best = {name: min(taken) for name, taken in seconds.items()}
    rate, flops = batch / best["ours"], 3 * forward_flops(config)
    figures |= {"images_per_second": round(rate, 2), "ratio_torch": None}
    if "torch" in best:
        figures["torch_images_per_second"] = round(batch / best["torch"], 2)
        figures["ratio_torch"] = round(best["torch"] / best["ours"], 3)
        middle = {name: statistics.median(taken) for name, taken in seconds.items()}
        figures["ratio_torch_of_medians"] = round(middle["torch"] / middle["ours"], 3)
    # The usual count of a training step: the backward pass is two forward passes.
    figures["model_gigaflops_per_image"] = round(flops / 1e9, 3)
    peak = PEAKS.get(jax.devices()[0].device_kind) if config.dtype == "bfloat16" else None
    figures["mfu"] = peak and round(rate * flops / peak, 4)
    return figures | memory


def table(cases: list[dict[str, Any]]) -> str:
    """The figures of all cases in Markdown."""
    names = {
        "stacks": "stacks",
        "batch": "batch",
        "images_per_second": "images/s",
        "torch_images_per_second": "PyTorch",
        "ratio_torch": "over PyTorch",
        "train_step_images_per_second": "whole step",
        "model_gigaflops_per_image": "GFLOP an image",
        "mfu": "MFU",
        "temporary_megabytes": "temporary MB",
        "arguments_megabytes": "arguments MB",
    }
    rows = [list(names.values()) + ["first step s, cold", "warm"], ["---"] * (len(names) + 2)]
    for case in cases:
        first = [case.get("first_step_seconds", {}).get(name, {}).get("total") for name in ("cold", "warm")]
        values = [*(case.get(name) for name in names), *first]
        rows.append(["" if value is None else f"{value:g}" for value in values])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def options_of_command() -> argparse.Namespace:
    """The command line; what is not given depends on the device."""
    parser = command.parser(
        "Times a training step of the hourglass, and the first one.",
        quick="a shallow network and five rounds instead of fifteen",
    )
    yes_or_no = argparse.BooleanOptionalAction
    cpu = jax.default_backend() == "cpu"
    parser.add_argument("--stacks", type=int, nargs="+", help="networks to time (2 on a CPU; 2 and 8)")
    parser.add_argument("--batch", type=int, nargs="+", help="batch sizes to time (4 on a CPU; 32 and 128)")
    parser.add_argument("--features", type=int, help="channels (64 on a CPU; 256)")
    parser.add_argument("--size", type=int, help="side of the crops in pixels (128 on a CPU; 256)")
    parser.add_argument("--depth", type=int, help="halvings in an hourglass (4)")
    parser.add_argument("--dtype", help="float32 or bfloat16 (float32 on a CPU; bfloat16)")
    parser.add_argument("--scan", action=yes_or_no, default=HourglassConfig.scan, help="the stacks in one loop")
    parser.add_argument("--remat", action=yes_or_no, default=False, help="stacks recomputed in the backward pass")
    parser.add_argument("--compile-torch", action=yes_or_no, help="torch.compile (on a GPU unless refused)")
    parser.add_argument("--first", action=yes_or_no, default=True, help="time whole steps, in other processes")
    parser.add_argument("--first-only", action="store_true", help="time nothing else than whole steps")
    parser.add_argument("--saving", action="store_true", help="time nothing else than saving a checkpoint")
    parser.add_argument("--all-cores", action="store_true", help="on a CPU: all cores, by the clock")
    parser.add_argument("--rounds", type=int, help="timed rounds")
    parser.add_argument("--first-step", metavar="SETTINGS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    small = {"stacks": [1], "batch": [4], "features": 64, "size": 128, "depth": 1, "dtype": "float32"}
    on_cpu = {"stacks": [2], "batch": [4], "features": 64, "size": 128, "depth": 4, "dtype": "float32"}
    large = {"stacks": [2, 8], "batch": [32, 128], "features": 256, "size": 256, "depth": 4, "dtype": "bfloat16"}
    for name, value in (small if options.quick and cpu else on_cpu if cpu or options.quick else large).items():
        setattr(options, name, value if getattr(options, name) is None else getattr(options, name))
    return options


def config_of(options: argparse.Namespace, stacks: int) -> HourglassConfig:
    """The network that was asked for."""
    return HourglassConfig(
        stacks=stacks,
        features=options.features,
        depth=options.depth,
        input_size=(options.size, options.size),
        scan=options.scan,
        remat=options.remat,
        dtype=options.dtype,
    )


def main() -> None:
    """Reads the command line, measures and reports."""
    # PyTorch and the processes of the first step need the same GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if "--first-step" in sys.argv and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    options = options_of_command()
    if options.first_step:
        given = json.loads(options.first_step)
        config = from_value(HourglassConfig, given["config"], "config")
        print(json.dumps(first_step(config, given["batch"], given["rounds"])))
        return
    rounds = options.rounds or (5 if options.quick else 15)
    if options.saving:
        for stacks, batch in itertools.product(options.stacks, options.batch):
            print(json.dumps({"stacks": stacks} | saving(config_of(options, stacks), batch, rounds)))
        return
    if jax.default_backend() == "cpu" and not options.all_cores:
        stay_on_one_core()
    cases: list[dict[str, Any]] = []
    asked = [(config_of(options, stacks), batch) for stacks, batch in itertools.product(options.stacks, options.batch)]
    # Before this process holds memory.
    for config, batch in asked:
        case: dict[str, Any] = {"stacks": config.stacks, "batch": batch}
        if options.first:
            case["first_step_seconds"] = found = first_steps(config, batch, rounds)
            step = "step" if clock_of(options.all_cores) is time.perf_counter else "step_cpu"
            case["train_step_images_per_second"] = round(batch / min(each[step] for each in found.values()), 2)
        cases.append(case)
    for case, (config, batch) in zip(cases, asked, strict=True):
        if options.first_only:
            continue
        case |= measured(config, batch, rounds, options)
        # A GPU has no room for the weights and programs of all cases.
        gc.collect()
    device = jax.devices()[0].device_kind
    about = {"backend": jax.default_backend(), "device_kind": device, "jax": jax.__version__, "scan": options.scan}
    about |= {name: getattr(options, name) for name in ("features", "size", "depth", "dtype", "remat")}
    lines = ["", ", ".join(f"{name} {value}" for name, value in about.items()), "", table(cases)]
    lines += [f"no ratio to PyTorch: {case['ratio_torch_reason']}" for case in cases if "ratio_torch_reason" in case]
    command.report(about | cases[0] | {"cases": cases}, options.json, "\n".join(lines))


if __name__ == "__main__":
    main()
