"""Regression or heat maps? DeepPose, one stage and its cascade, beside an hourglass: the same people, the same steps.

a  DeepPose, one stage;  b  DeepPose, three stages;  c  an hourglass

All begin from fresh weights and see the same people in the same crops, in the same order, for the same number of steps.
One stage takes as many operations as the hourglass (the results say how many, and how long a step takes); the cascade
takes more, since its later stages see two simulated errors of each person besides. Measured on people that none of them
saw, LSPET's validation split and COCO's val2017, in their labelled boxes: PCK@0.2 of the torso over LSP's joints, and
PCP@0.5 over upper and lower arms and legs, by both criteria. Intervals are bootstraps over pictures and say nothing of
other seeds, of which the range is given; a gain is over the same seeds.

    .venv/bin/python experiments/deep_pose_study.py --quick                      # drawn people, toy size, one minute
    .venv/bin/python experiments/deep_pose_study.py --lspet DIR --coco DIR --out runs/deep-pose
    ... --set optim.steps=20000                                                  # any setting of all three

A run that was interrupted goes on after its last finished training. Results: experiments/README.md.
"""

import argparse
import dataclasses
import json
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from remapping_study import HERE, TestPeople, batches_of, fit, people_to_test

from rmpe_jax.config import Experiment, override, to_json
from rmpe_jax.data.pipeline import Loader, training_batches, training_people
from rmpe_jax.files import write_json
from rmpe_jax.metrics.intervals import bootstrap, interval
from rmpe_jax.metrics.pck import correct_joints, pck, torso_length
from rmpe_jax.metrics.pcp import LSP_STICKS, PCP_COLUMNS, correct_sticks, pcp, sticks_of
from rmpe_jax.pretrained import Weights, without_paths
from rmpe_jax.records import PoseBatch
from rmpe_jax.train.step import init_state, predict_step, train_step

WAYS = {"a": "DeepPose, one stage", "b": "DeepPose, three stages", "c": "hourglass"}
#: What each way sets besides what all share; the width makes one stage as costly as the hourglass.
DEEP_POSE = ["model=deep_pose", "model.input_size=96,96", "model.mean=0.44,0.44,0.43", "model.width=0.3125"]
SETTINGS = {
    "a": [*DEEP_POSE, "model.stages=1"],
    "b": [*DEEP_POSE, "model.stages=3", "model.displacements=2"],
    "c": [],
}
SCORES = {"pck": "PCK@0.2", "strict": "PCP, strict", "relaxed": "PCP, relaxed"}
# The sticks of DeepPose's average: upper and lower arms and legs.
_LIMBS = [list(LSP_STICKS).index(name) for name in PCP_COLUMNS["Ave."]]


@partial(jax.jit, static_argnames="experiment")
def judge(variables: dict[str, Any], batch: PoseBatch, experiment: Experiment) -> dict[str, tuple[jax.Array, ...]]:
    """For each score what is right and what counts, of each person."""
    predicted = predict_step(variables, batch, experiment=experiment)
    length = jax.vmap(partial(torso_length, skeleton=experiment.joints))(batch.points, batch.labelled)
    counted = batch.labelled & (length > 0)[:, None]
    found = {"pck": (jax.vmap(correct_joints)(predicted, batch.points, counted, length), counted)}
    sticks = jax.vmap(partial(sticks_of, skeleton=experiment.joints))
    (there, known), (here, _) = sticks(batch.points, batch.labelled), sticks(predicted, batch.labelled)
    for kind in ("strict", "relaxed"):
        right = jax.vmap(partial(correct_sticks, criterion=kind))(here, there, known)
        found[kind] = right[:, jnp.array(_LIMBS)], known[:, jnp.array(_LIMBS)]
    return found


def measure(weights: Weights, people: TestPeople) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What ``judge`` says of everybody, of the joints that the training people have labelled."""
    parts = []
    for _, batch in batches_of(people, people.canvases.box):
        known = dataclasses.replace(batch, labelled=batch.labelled & jnp.asarray(people.learnt)[None])
        found = judge(weights.variables, known, experiment=weights.experiment)
        parts.append(jax.tree.map(np.asarray, found))
    # The last batch is filled up with people of before.
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(people.canvases)], *parts)


def summary(runs: list[dict[str, Any]], other: list[dict[str, Any]] | None, picture: np.ndarray) -> dict[str, Any]:
    """For each score its mean over seeds, that of each seed, and the gain over another way; intervals over pictures."""
    found = {}
    for name in SCORES:
        share = pck if name == "pck" else pcp

        def score(which, weight, name=name, share=share):
            values = [share(jnp.asarray(r[name][0]), jnp.asarray(r[name][1]), weight=weight)[0] for r in which]
            return jnp.stack(values).mean()

        def both(weight, score=score):
            weight = weight[picture]
            value = score(runs, weight)
            return jnp.stack([value, value - score(other, weight) if other else value])

        pictures = int(picture.max()) + 1
        values = both(jnp.ones(pictures))
        low, high = interval(bootstrap(jax.random.key(0), both, pictures, replicates=1000))
        rows = [[float(number) for number in row] for row in zip(values, low, high, strict=True)]
        seeds = [float(score([run], jnp.ones(len(picture)))) for run in runs]
        found[name] = {"value": rows[0], "gain": rows[1] if other else None, "seeds": seeds}
    return found


def operations(experiment: Experiment, people: list) -> float:
    """Floating-point operations of one training step, as XLA counts them."""
    state = init_state(jax.random.key(0), experiment)
    with Loader(people, experiment.data) as loader:
        batch = next(training_batches(loader, experiment.optim.batch, seed=0, first=0, last=1))
        lowered = jax.jit(partial(train_step, experiment=experiment)).lower(state, batch, jax.random.key(0))
    costs: Any = lowered.compile().cost_analysis()
    return float(costs["flops"])


def table(results: dict[str, Any]) -> str:
    """Markdown: what the ways cost, then a row for each test set and way."""
    lines = ["| way | parameters | operations in a step | ms in a step |", "|---|---|---|---|"]
    for way, cost in results["costs"].items():
        numbers = f"{cost['parameters']:,} | {cost['operations'] / 1e9:.1f} G | {1e3 * cost['seconds']:.0f}"
        lines.append(f"| {way}: {WAYS[way]} | {numbers} |")
    names = " | ".join(f"{title} | seeds | gain over the row above" for title in SCORES.values())
    lines += ["", f"| people | way | {names} |", "|---|---|" + 3 * len(SCORES) * "---|"]
    for title, test in results["tests"].items():
        for way, found in test["ways"].items():
            cells = [f"{title} ({test['people']})", f"{way}: {WAYS[way]}"]
            for name in SCORES:
                value, low, high = (100 * number for number in found[name]["value"])
                cells.append(f"{value:.1f} ({low:.1f} to {high:.1f})")
                cells.append(" ".join(f"{100 * seed:.1f}" for seed in found[name]["seeds"]))
                gain = found[name]["gain"]
                given = [f"{100 * number:+.1f}" for number in gain or ()]
                cells.append(f"{given[0]} ({given[1]} to {given[2]})" if given else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Trains what is missing, measures, and writes results.json and results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="drawn people, toy size, one seed")
    parser.add_argument("--lspet", default="", metavar="DIR")
    parser.add_argument("--coco", default="", metavar="DIR", help="measures on its val2017 too")
    parser.add_argument("--out", type=Path, default=Path("runs/deep-pose"), metavar="DIR")
    parser.add_argument("--seeds", type=int, default=2, metavar="N")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="assignments")
    options = parser.parse_args()
    if not options.lspet and not options.quick:
        parser.error("say --lspet DIR, or --quick for drawn people")
    base: Experiment = runpy.run_path(str(HERE / "rmpe_1_sppe.py"))["experiment"]
    toy = ["data.synthetic=48", "data.canvas=96", "data.min_joints=3", "optim.batch=8", "optim.steps=40"]
    given = toy if options.quick else [f"data.lspet={options.lspet}"]
    base = override(base, [*given, *options.assignments])
    out = options.out / "quick" if options.quick else options.out
    people, seeds = training_people(base.data, base.joints), range(1, 2 if options.quick else 1 + options.seeds)
    trained: dict[str, list[Weights]] = {way: [] for way in WAYS}
    costs = {}
    for seed in seeds:
        for way, settings in SETTINGS.items():
            experiment = dataclasses.replace(override(base, settings), name=f"way-{way}")
            weights, seconds = fit(experiment, people, out / f"way-{way}-{seed}.safetensors", None, None, seed)
            trained[way].append(weights)
            count = sum(leaf.size for leaf in jax.tree.leaves(weights.variables["params"]))
            costs.setdefault(way, {"parameters": count, "operations": operations(experiment, people)})
            costs[way]["seconds"] = min(seconds, costs[way].get("seconds", seconds))
    results: dict[str, Any] = {"jax": jax.__version__, "costs": costs, "tests": {}}
    results["experiment"] = json.loads(to_json(without_paths(base)))
    for tested in people_to_test(options, base, np.any([person.labelled for person in people], 0)):
        runs = {way: [measure(w, tested) for w in found] for way, found in trained.items()}
        others = {"a": None, "b": runs["a"], "c": runs["b"]}
        ways = {way: summary(run, others[way], tested.picture) for way, run in runs.items()}
        results["tests"][tested.title] = {"people": len(tested.canvases), "ways": ways}
    write_json(out / "results.json", results)
    (out / "results.md").write_text(table(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
