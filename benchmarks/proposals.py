"""How fast training boxes are drawn, by PGPG and by laws that know nothing of the pose; what PGPG costs a step.

.venv/bin/python benchmarks/proposals.py [--quick] [--json -|FILE]

Boxes a second of 256 people with 64 boxes each, through ``jax.jit(jax.vmap(sample_boxes))``: the nearest of 24 atomic
poses of 17 joints, and mixtures of four components. The step is that of a small hourglass, of 16 people. The law is
made up: what it says does not change the time. Measured: README.md in this folder.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.config import AugmentConfig, DataConfig, Experiment, HourglassConfig
from rmpe_jax.files import write_json
from rmpe_jax.proposals.generators import LAWS, Generator, Law, sample_boxes
from rmpe_jax.proposals.mixtures import OffsetMixtures, in_skeleton
from rmpe_jax.records import PoseBatch
from rmpe_jax.skeleton import COCO_17
from rmpe_jax.train.step import init_state, train_step

PEOPLE, BOXES, BATCH = 256, 64, 16
ATOMS, COMPONENTS = 24, 4


def made_mixtures() -> OffsetMixtures:
    """A law of the size of the shipped one."""
    rng = np.random.default_rng(0)
    rows = (ATOMS + 1, COMPONENTS)
    factor: Any = np.broadcast_to(0.1 * np.eye(4, dtype=np.float32), (*rows, 4, 4))
    weight, mean = rng.dirichlet(np.ones(COMPONENTS), ATOMS + 1), 0.1 * rng.normal(size=(*rows, 4))
    atoms = rng.normal(size=(ATOMS, COCO_17.size, 2))
    arrays: Any = [*(array.astype(np.float32) for array in (atoms, weight, mean)), factor]
    return OffsetMixtures(*arrays, skeleton=COCO_17.name)


def boxes_per_second(generator: Generator, rounds: int) -> float:
    """Boxes a CPU second of the whole batch, the best of some rounds."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 300, (PEOPLE, 2))
    box = jnp.asarray(np.concatenate([low, low + rng.uniform(40, 200, (PEOPLE, 2))], 1), jnp.float32)
    points = jnp.asarray(low[:, None] + rng.uniform(0, 100, (PEOPLE, COCO_17.size, 2)), jnp.float32)
    labelled = jnp.asarray(rng.random((PEOPLE, COCO_17.size)) < 0.8)
    keys = jax.random.split(jax.random.key(0), PEOPLE)
    draw = jax.jit(jax.vmap(partial(sample_boxes, generator=generator, num=BOXES)))
    return PEOPLE * BOXES / best_seconds(lambda: jax.block_until_ready(draw(keys, box, points, labelled)), rounds)


def best_seconds(run: Callable[[], Any], rounds: int) -> float:
    """CPU seconds of a call, the best of some rounds; the first call, which compiles, does not count."""
    run()
    taken = []
    for _ in range(rounds):
        begun = time.process_time()
        run()
        taken.append(time.process_time() - begun)
    return min(taken)


def step_seconds(generator: Generator | None, rounds: int) -> float:
    """CPU seconds of a training step on boxes of a generator; None is the jitter of ``AugmentConfig``."""
    model = HourglassConfig(stacks=1, features=32, depth=2, input_size=(64, 64))
    experiment = Experiment(name="bench", model=model, data=DataConfig(canvas=96), augment=AugmentConfig())
    rng, joints = np.random.default_rng(0), experiment.joints
    points: Any = rng.uniform(20, 70, (BATCH, joints.size, 2)).astype(np.float32)
    box: Any = np.tile(np.array([20, 20, 70, 70], np.float32), (BATCH, 1))
    canvas: Any = rng.integers(0, 255, (BATCH, 96, 96, 3), np.uint8)
    labelled: Any = np.ones((BATCH, joints.size), bool)
    index: Any = np.arange(BATCH, dtype=np.int32)
    batch = PoseBatch(canvas, points, labelled, box, index, labelled[:, 0])
    key = jax.random.key(0)
    state = init_state(key, experiment)
    law = in_skeleton(generator, joints) if isinstance(generator, OffsetMixtures) else generator
    step = jax.jit(partial(train_step, experiment=experiment, generator=law))
    return best_seconds(lambda: jax.block_until_ready(step(state, batch, key)), rounds)


def measure(rounds: int) -> dict[str, Any]:
    """All figures."""
    mixtures = made_mixtures()
    figures: dict[str, Any] = {"backend": jax.default_backend(), "jax": jax.__version__, "rounds": rounds}
    figures["pgpg_boxes_per_second"] = round(boxes_per_second(mixtures, rounds))
    for name in LAWS:
        figures[f"{name}_boxes_per_second"] = round(boxes_per_second(Law(name), rounds))
    plain, guided = (step_seconds(generator, rounds) for generator in (None, mixtures))
    return figures | {"step_seconds": round(plain, 4), "pgpg_step_ratio": round(guided / plain, 3)}


def main() -> None:
    """Reads the command line, measures and reports."""
    parser = argparse.ArgumentParser(description="Times the drawing of proposals.")
    parser.add_argument("--quick", action="store_true", help="three rounds instead of fifteen")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - prints them as the last line")
    options = parser.parse_args()
    figures = measure(3 if options.quick else 15)
    print("\n".join(f"{name}: {value}" for name, value in figures.items()))
    if options.json == "-":
        print(json.dumps(figures))
    elif options.json:
        write_json(Path(options.json), figures)


if __name__ == "__main__":
    main()
