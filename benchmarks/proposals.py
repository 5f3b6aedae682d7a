"""How fast training boxes are drawn, by PGPG, DPG and laws that know nothing of the pose; what they cost a step.

.venv/bin/python benchmarks/proposals.py [--quick] [--json -|FILE]

Boxes a second of 256 people with 64 boxes each, through ``jax.jit(jax.vmap(sample_boxes))``, by the shipped laws: PGPG
with 24 atomic poses and mixtures of up to four components, DPG choosing among 1,024 random boxes. DPG is also timed as
training takes it, one box for each person, with the share of random boxes that its network accepts. The step is that of
a small hourglass, of 16 people. Measured: README.md in this folder.
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

from rmpe_jax.config import AugmentConfig, DataConfig, Experiment, HourglassConfig
from rmpe_jax.pretrained import load_proposals
from rmpe_jax.proposals.generators import LAWS, Generator, Law, in_skeleton, sample_boxes
from rmpe_jax.proposals.scored import ScoredProposals, random_boxes, score_boxes
from rmpe_jax.records import PoseBatch
from rmpe_jax.skeleton import COCO_LSP_19
from rmpe_jax.train.step import init_state, train_step

PEOPLE, BOXES, BATCH = 256, 64, 16
JOINTS = COCO_LSP_19
LEARNED = {"pgpg": "pgpg-hog", "dpg": "dpg-hog"}


def some_people(count: int) -> tuple[Any, Any, Any]:
    """Boxes, points and labels of people in COCO's average proportions, standing with some noise."""
    rng = np.random.default_rng(0)
    low, size = rng.uniform(0, 300, (count, 2)), rng.uniform(40, 200, (count, 1)) * [0.45, 1.0]
    points = low[:, None] + _STANDING[None] * size[:, None] + 0.05 * size[:, None] * rng.normal(size=(count, 19, 2))
    box = np.concatenate([low, low + size], 1)
    return jnp.asarray(box, jnp.float32), jnp.asarray(points, jnp.float32), jnp.asarray(rng.random((count, 19)) < 0.8)


# Of each joint of a standing person, in its box: x to the right, y down.
_PLACES = {
    "nose": (0.5, 0.08),
    "eye": (0.53, 0.06),
    "ear": (0.56, 0.07),
    "shoulder": (0.75, 0.2),
    "elbow": (0.85, 0.35),
}
_PLACES |= {"wrist": (0.9, 0.5), "hip": (0.65, 0.52), "knee": (0.65, 0.75), "ankle": (0.65, 0.97)}
_PLACES |= {"neck": (0.5, 0.17), "head_top": (0.5, 0.0)}


def _place(joint: str) -> tuple[float, float]:
    x, y = _PLACES[joint.removeprefix("left_").removeprefix("right_")]
    return (1 - x if joint.startswith("right_") else x), y


_STANDING = np.array([_place(joint) for joint in JOINTS.joints])


def boxes_per_second(generator: Generator, rounds: int, num: int = BOXES) -> float:
    """Boxes a CPU second of the whole batch, ``num`` for each person, the median of some rounds."""
    given = (jax.random.split(jax.random.key(0), PEOPLE), *some_people(PEOPLE))
    draw = jax.jit(jax.vmap(partial(sample_boxes, generator=generator, num=num)))
    return PEOPLE * num / median_seconds(lambda: jax.block_until_ready(draw(*given)), rounds)


def median_seconds(run: Callable[[], Any], rounds: int) -> float:
    """CPU seconds of a call, the median of some rounds; the first call, which compiles, does not count."""
    run()
    taken = []
    for _ in range(rounds):
        begun = time.process_time()
        run()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


def step_seconds(generator: Generator | None, rounds: int) -> float:
    """CPU seconds of a training step on boxes of a generator; None is the jitter of ``AugmentConfig``."""
    model = HourglassConfig(stacks=1, features=32, depth=2, input_size=(64, 64))
    experiment = Experiment(
        name="bench", skeleton=JOINTS.name, model=model, data=DataConfig(canvas=96), augment=AugmentConfig()
    )
    rng = np.random.default_rng(0)
    points: Any = rng.uniform(20, 70, (BATCH, JOINTS.size, 2)).astype(np.float32)
    box: Any = np.tile(np.array([20, 20, 70, 70], np.float32), (BATCH, 1))
    canvas: Any = rng.integers(0, 255, (BATCH, 96, 96, 3), np.uint8)
    labelled: Any = np.ones((BATCH, JOINTS.size), bool)
    index: Any = np.arange(BATCH, dtype=np.int32)
    batch = PoseBatch(canvas, points, labelled, box, index, labelled[:, 0])
    key = jax.random.key(0)
    state = init_state(key, experiment)
    step = jax.jit(partial(train_step, experiment=experiment, generator=generator))
    return median_seconds(lambda: jax.block_until_ready(step(state, batch, key)), rounds)


def accepted_share(proposals: ScoredProposals) -> float:
    """Of DPG's random boxes those that reach its threshold."""

    def one(key, box, points, known):
        candidates = random_boxes(key, box, num=proposals.candidates)
        logits = score_boxes(proposals.score, proposals.variables, candidates, box, points, known)
        return (jax.nn.sigmoid(logits) >= proposals.threshold).mean()

    return float(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), PEOPLE), *some_people(PEOPLE)).mean())


def measure(rounds: int, *, quick: bool) -> dict[str, Any]:
    """All figures; quickly those of PGPG, DPG, and what DPG costs a step."""
    learned = {name: in_skeleton(load_proposals(law), JOINTS) for name, law in LEARNED.items()}
    figures: dict[str, Any] = {"backend": jax.default_backend(), "jax": jax.__version__, "rounds": rounds}
    laws = learned | ({} if quick else {name: Law(name) for name in LAWS})
    figures |= {f"{name}_boxes_per_second": round(boxes_per_second(law, rounds)) for name, law in laws.items()}
    scored: Any = learned["dpg"]
    figures["dpg_accepted_share"] = round(accepted_share(scored), 3)
    figures["dpg_seconds_per_accepted_sample"] = float(f"{1 / boxes_per_second(scored, rounds, 1):.3g}")
    plain = step_seconds(None, rounds)
    figures["step_seconds"] = round(plain, 4)
    for name in ("dpg",) if quick else learned:
        figures[f"{name}_step_ratio"] = round(step_seconds(learned[name], rounds) / plain, 3)
    return figures


def main() -> None:
    """Reads the command line, measures and reports."""
    options = command.parser(
        "Times the drawing of proposals.", quick="three rounds instead of fifteen, and fewer laws"
    ).parse_args()
    figures = measure(3 if options.quick else 15, quick=options.quick)
    command.report(figures, options.json)


if __name__ == "__main__":
    main()
