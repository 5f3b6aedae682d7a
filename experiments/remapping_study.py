"""Does the spatial re-mapping help? The same small estimator on detector-like boxes, in five ways.

a  plain crop;  b  STN and SDTN without the parallel SPPE;  c  with it;  d  plain crop of perfect boxes (an oracle);
e  as c, but theta learns from the parallel SPPE alone, whose slope is taken by differences (``by_differences``)

All start from one estimator trained on perfect boxes (rmpe_1_sppe.py, or --start) and go on for the same steps with the
same seeds; a, b, c and e on proposals of the harsh law, d on perfect boxes. Measured on people that none of them saw:
PCK@0.2 of the torso on LSPET's validation people and on COCO's val2017 set aside, for proposals of two laws that are
drawn once and are the same for all ways; how far theta is from the map that would centre the person; and the time of a
step. Then, with one trained STN: the picture sampled once along both maps, against two samples and resampled maps.

    .venv/bin/python experiments/remapping_study.py --quick                      # drawn people, toy size, two minutes
    .venv/bin/python experiments/remapping_study.py --lspet DIR --coco DIR --out runs/remapping
    ... --start hourglass-lspet-coco --set model.stacks=1    # from other weights; of their stacks the first ones
    ... --set model.features=256 --set optim.batch=64                            # any setting of the experiment

A run that was interrupted goes on after its last finished training. Results: experiments/README.md.
"""

import argparse
import dataclasses
import json
import runpy
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rmpe_jax.config import Experiment, override
from rmpe_jax.data.people import Person, in_skeleton, people_in
from rmpe_jax.data.pipeline import Canvases, Loader, evaluation_batches, training_batches, training_people
from rmpe_jax.data.sets import data_set, read_data
from rmpe_jax.files import write_json
from rmpe_jax.geometry.affine import (
    compose,
    image_from_person,
    invert_affine,
    pixels_from_unit,
    transform_points,
    unit_from_pixels,
)
from rmpe_jax.geometry.remapping import sdtn
from rmpe_jax.metrics.intervals import bootstrap, interval
from rmpe_jax.metrics.pck import correct_joints, pck, torso_length
from rmpe_jax.models.hourglass import hourglass_shapes
from rmpe_jax.models.localization import apply_localization
from rmpe_jax.models.rmpe import LOCALIZATION, has_stn, part_of, remap_crops
from rmpe_jax.models.single_person import LEVELS, crop_people, estimate_heatmaps, read_poses
from rmpe_jax.pretrained import Weights, load_weights, save_weights
from rmpe_jax.proposals.offsets import Proposals, propose
from rmpe_jax.records import PoseBatch
from rmpe_jax.train.step import init_state, predict_step, train_step

HERE = Path(__file__).parent
LAWS: tuple[Proposals, ...] = ("gaussian", "harsh", "exact")
WAYS = {"a": "plain crop", "b": "STN", "c": "STN + parallel SPPE", "d": "oracle boxes"}
WAYS |= {"e": "STN + parallel SPPE by differences"}
# A step that moves the person by a tenth of the crop: larger than the network's tremor, smaller than the errors.
STEP = 0.15


def experiment_of(way: str, base: Experiment) -> Experiment:
    """The experiment of one way: phase 3's numbers without or with its parts."""
    kind = "small" if way in "bce" else "none"
    localization = dataclasses.replace(base.localization, kind=kind, parallel="")
    if way == "e":
        localization = dataclasses.replace(localization, parallel_step=STEP, paths="parallel")
    proposals = "exact" if way == "d" else "harsh"
    augment = dataclasses.replace(base.augment, proposals=proposals)
    return dataclasses.replace(base, name=f"way-{way}", localization=localization, augment=augment)


def like(base: Experiment, known: Experiment) -> Experiment:
    """The experiment with the architecture and the frames that given weights were trained with."""
    optim = dataclasses.replace(base.optim, sigma=known.optim.sigma)
    data = dataclasses.replace(base.data, extension=known.data.extension)
    return dataclasses.replace(base, skeleton=known.skeleton, model=known.model, optim=optim, data=data)


def first_stacks(weights: Weights, experiment: Experiment) -> Weights:
    """Weights of a network with more stacks, without those that the experiment lacks."""

    def part(tree, like):
        return {name: part(tree[name], like[name]) for name in like} if isinstance(like, dict) else tree

    shapes = hourglass_shapes(experiment.model, joints=experiment.joints.size)
    return Weights(experiment, part(weights.variables, shapes))


def fit(
    experiment: Experiment, people: list[Person], path: Path, start: Weights | None, frozen: Weights | None, seed: int
):
    """Trains, or reads what was trained before; returns the weights and the seconds of a step."""
    timing = path.with_suffix(".json")
    if path.exists() and timing.exists():
        return load_weights(path), float(json.loads(timing.read_text()))
    steps, key = experiment.optim.steps, jax.random.key(seed)
    state = init_state(key, experiment, start=start and start.variables, frozen=frozen and frozen.variables)
    step = jax.jit(partial(train_step, experiment=experiment), donate_argnums=0)
    times = []
    with Loader(people, experiment.data) as loader:
        batches = training_batches(loader, experiment.optim.batch, seed=seed, first=0, last=steps)
        for batch in tqdm(batches, f"{path.stem}", total=steps, mininterval=5):
            begun = time.perf_counter()
            state, metrics = step(state, batch, key)
            loss = float(metrics["loss"])
            times.append(time.perf_counter() - begun)
            if not np.isfinite(loss):
                raise SystemExit(f"{path.stem}: the loss is {loss} at step {len(times)}")
    weights = Weights(experiment, jax.tree.map(np.asarray, state.average))
    save_weights(path, weights)
    write_json(timing, float(np.median(times)))
    return weights, float(np.median(times))


def proposals_of(canvases: Canvases, law: Proposals) -> np.ndarray:
    """One box for each person, the same at every call."""
    keys = jax.random.split(jax.random.key(11), len(canvases))
    return np.asarray(jax.vmap(partial(propose, law=law))(keys, jnp.asarray(canvases.box)))


@partial(jax.jit, static_argnames="experiment")
def judge(variables: dict[str, Any], batch: PoseBatch, true_box: jax.Array, experiment: Experiment):
    """Right joints, counted joints and theta's error of each person; the box of the batch is the proposal."""
    predicted = predict_step(variables, batch, experiment=experiment)
    length = jax.vmap(partial(torso_length, skeleton=experiment.joints))(batch.points, batch.labelled)
    counted = batch.labelled & (length > 0)[:, None] & batch.valid[:, None]
    correct = jax.vmap(correct_joints)(predicted, batch.points, counted, length)
    size = experiment.model.input_size

    def error(canvas, box, true):
        theta = jnp.eye(2, 3)
        if has_stn(experiment):
            crops, _ = crop_people(canvas, box[None], experiment=experiment)
            theta = apply_localization(part_of(variables, LOCALIZATION), crops, experiment.localization)[0]
        given, wanted = (image_from_person(b, size, extension=experiment.data.extension) for b in (box, true))
        pixels = compose(invert_affine(given), wanted)
        best = compose(compose(unit_from_pixels(size), pixels), pixels_from_unit(size))
        corners = jnp.array([[-1.0, -1], [1, -1], [-1, 1], [1, 1]])
        return jnp.linalg.norm(transform_points(theta, corners) - transform_points(best, corners), axis=-1).mean()

    return correct, counted, jax.vmap(error)(batch.canvas, batch.box, true_box)


def measure(weights: Weights, canvases: Canvases, law: Proposals) -> dict[str, np.ndarray]:
    """What ``judge`` says of everybody."""
    boxes, parts = proposals_of(canvases, law), []
    start = 0
    for batch in evaluation_batches(canvases, 50):
        rows = np.resize(np.arange(start, min(start + 50, len(canvases))), 50)
        given = dataclasses.replace(batch, box=jnp.asarray(boxes[rows]))
        found = judge(weights.variables, given, jnp.asarray(canvases.box[rows]), experiment=weights.experiment)
        parts.append([np.asarray(array)[: min(50, len(canvases) - start)] for array in found])
        start += 50
    return dict(zip(("correct", "counted", "error"), map(np.concatenate, zip(*parts, strict=True)), strict=True))


#: How theta is applied at inference: what the STN samples, and how joints go back.
APPLIED = {
    "picture sampled once, points": ("picture", False),
    "crop sampled again, points": ("crop", False),
    "crop sampled again, maps (the paper)": ("crop", True),
}


@partial(jax.jit, static_argnames=("experiment", "maps"))
def joints_of(variables: dict[str, Any], batch: PoseBatch, experiment: Experiment, maps: bool) -> jax.Array:
    """Joints on the canvas; with ``maps`` the SDTN resamples the heat maps, else it moves the points."""

    def one(canvas, box):
        crops, canvas_from_crop = crop_people(canvas, box[None], experiment=experiment)
        seen, back = remap_crops(variables, canvas, crops, canvas_from_crop, experiment=experiment, levels=LEVELS)
        theta = apply_localization(part_of(variables, LOCALIZATION), crops, experiment.localization)
        return seen[0], (canvas_from_crop if maps else back)[0], theta[0]

    seen, back, theta = jax.vmap(one)(batch.canvas, batch.box)
    heatmaps = estimate_heatmaps(variables, seen, experiment=experiment, flip_test=False)
    heatmaps = jax.vmap(sdtn)(heatmaps, theta) if maps else heatmaps
    return read_poses(heatmaps, back, experiment=experiment)[0]


def applied(weights: Weights, canvases: Canvases, law: Proposals) -> dict[str, dict[str, float]]:
    """One network's theta applied in each way: PCK, how far the joints are from the first way's, and the time."""
    boxes, found = proposals_of(canvases, law), {}
    reference: np.ndarray | None = None
    for title, (source, maps) in APPLIED.items():
        localization = dataclasses.replace(weights.experiment.localization, source=source)
        experiment = dataclasses.replace(weights.experiment, localization=localization)
        points, seconds, start = [], [], 0
        for batch in evaluation_batches(canvases, 50):
            rows = np.resize(np.arange(start, min(start + 50, len(canvases))), 50)
            given = dataclasses.replace(batch, box=jnp.asarray(boxes[rows]))
            begun = time.perf_counter()
            joints = np.asarray(joints_of(weights.variables, given, experiment=experiment, maps=maps))
            seconds.append(time.perf_counter() - begun)
            points.append(joints[: min(50, len(canvases) - start)])
            start += 50
        joints = np.concatenate(points)
        reference = joints if reference is None else reference
        scores = [
            pck_of(joints[row], canvases.points[row], canvases.labelled[row], weights.experiment)
            for row in range(len(joints))
        ]
        right, counted = np.sum(scores, 0)
        apart = np.linalg.norm(joints - reference, axis=-1)[canvases.labelled]
        found[title] = {"pck": float(right / counted), "median_distance": float(np.median(apart))}
        found[title] |= {"mean_distance": float(apart.mean()), "milliseconds_per_person": 20 * min(seconds)}
    return found


def pck_of(joints: np.ndarray, points: np.ndarray, labelled: np.ndarray, experiment: Experiment) -> tuple[int, int]:
    """One person's right and counted joints."""
    length = torso_length(jnp.asarray(points), jnp.asarray(labelled), skeleton=experiment.joints)
    counted = jnp.asarray(labelled) & (length > 0)
    right = correct_joints(jnp.asarray(joints), jnp.asarray(points), counted, length)
    return int((right & counted).sum()), int(counted.sum())


def summary(runs: list[dict[str, np.ndarray]], plain: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """PCK over the seeds, its interval over people, the interval of the gain over way a, and theta's error."""

    def score(which, weight):
        values = [pck(jnp.asarray(run["correct"]), jnp.asarray(run["counted"]), weight=weight)[0] for run in which]
        return jnp.stack(values).mean()

    def both(weight):
        return jnp.stack([score(runs, weight), score(runs, weight) - score(plain, weight)])

    people = len(runs[0]["correct"])
    low, high = interval(bootstrap(jax.random.key(0), both, people, replicates=1000))
    each = [float(score([run], jnp.ones(people))) for run in runs]
    result = {"pck": float(np.mean(each)), "seeds": each, "interval": [float(low[0]), float(high[0])]}
    result |= {"gain": float(both(jnp.ones(people))[1]), "gain_interval": [float(low[1]), float(high[1])]}
    return result | {"theta_error": float(np.mean([run["error"].mean() for run in runs]))}


def test_people(options: argparse.Namespace, base: Experiment) -> Iterator[tuple[str, Canvases]]:
    """Each test set's people on canvases, in the experiment's skeleton."""
    sets = {"drawn": ("synthetic", ".", "val")} if options.quick else {}
    if options.lspet:
        sets["LSPET val"] = ("lspet", options.lspet, "val")
    if options.coco:
        sets["COCO val2017"] = ("coco", options.coco, "val2017")
    for title, (name, folder, split) in sets.items():
        people = in_skeleton(people_in(read_data(name, folder, split)), data_set(name).skeleton, base.joints)
        people = [person for person in people if person.labelled.sum() >= base.data.min_joints]
        with Loader(people, base.data, memory=0) as loader:
            yield title, loader.load(np.arange(len(loader)))


def table(results: dict[str, Any]) -> str:
    """Markdown: one row for each set, law and way."""
    lines = [
        "| people | boxes | way | PCK@0.2 | gain over a | theta error | ms/step |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, laws in results["sets"].items():
        for law, ways in laws.items():
            for way, found in ways.items():
                low, high = (100 * end for end in found["interval"])
                gain = " | ".join([f"{100 * found['pck']:.1f} ({low:.1f} to {high:.1f})", _gain(way, found)])
                ms = 1000 * results["seconds_per_step"][way]
                lines.append(
                    f"| {title} | {law} | {way}: {WAYS[way]} | {gain} | {found['theta_error']:.3f} | {ms:.0f} |"
                )
    for title, ways in results["applied"].items():
        lines += ["", f"| {title}, harsh boxes: theta applied | PCK@0.2 | joints moved, canvas pixels | ms/person |"]
        lines += ["|---|---|---|---|"]
        for way, found in ways.items():
            moved = f"{found['median_distance']:.2f} (mean {found['mean_distance']:.2f})"
            lines.append(f"| {way} | {100 * found['pck']:.1f} | {moved} | {found['milliseconds_per_person']:.1f} |")
    return "\n".join(lines)


def _gain(way: str, found: dict[str, Any]) -> str:
    low, high = (100 * end for end in found["gain_interval"])
    return "" if way == "a" else f"{100 * found['gain']:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    """Trains what is missing, measures, and writes results.json and results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="drawn people, toy size, one seed")
    parser.add_argument(
        "--lspet", default="", metavar="DIR", help="trains on its training split, measures on the other"
    )
    parser.add_argument("--coco", default="", metavar="DIR", help="measures on its val2017 too")
    parser.add_argument("--out", type=Path, default=Path("runs/remapping"), metavar="DIR")
    parser.add_argument("--start", default="", metavar="WEIGHTS", help="start from these instead of phase 1")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--ways", default="abcde", help="some of abcde; a is always there")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="assignments")
    options = parser.parse_args()
    if not options.lspet and not options.quick:
        parser.error("say --lspet DIR, or --quick for drawn people")
    first: Experiment = runpy.run_path(str(HERE / "rmpe_1_sppe.py"))["experiment"]
    base: Experiment = runpy.run_path(str(HERE / "rmpe_3_sstn.py"))["experiment"]
    toy = ["model.features=16", "model.depth=2", "model.input_size=48,48", "data.canvas=96", "data.min_joints=3"]
    toy += ["data.synthetic=48", "optim.batch=8", "optim.steps=40", "skeleton=coco_lsp_19"]
    given = [f"data.lspet={options.lspet}"] + (toy if options.quick else []) + options.assignments
    out = options.out / "quick" if options.quick else options.out
    # Phase 1 keeps its own number of steps, but at toy size.
    first = override(first, [text for text in given if options.quick or not text.startswith("optim.")])
    known = load_weights(options.start) if options.start else None
    base = base if known is None else like(base, known.experiment)
    base = dataclasses.replace(override(base, given), start="")
    people = training_people(base.data, base.joints)
    if known is not None:
        start = first_stacks(known, base)
    else:
        start, _ = fit(first, people, out / "phase-1.safetensors", None, None, 0)
    trained: dict[str, list[Weights]] = {}
    seconds: dict[str, float] = {}
    for way in sorted({"a", *options.ways}):
        experiment = experiment_of(way, base)
        frozen = start if way in "ce" else None
        found = [
            fit(experiment, people, out / f"way-{way}-{seed}.safetensors", start, frozen, seed)
            for seed in range(1, 1 + (1 if options.quick else options.seeds))
        ]
        trained[way], seconds[way] = [weights for weights, _ in found], min(second for _, second in found)
    results: dict[str, Any] = {"jax": jax.__version__, "seconds_per_step": seconds, "sets": {}, "applied": {}}
    for title, canvases in test_people(options, base):
        laws = results["sets"].setdefault(title, {})
        for law in LAWS:
            runs = {way: [measure(weights, canvases, law) for weights in trained[way]] for way in trained if way != "d"}
            if "d" in trained:
                runs["d"] = [measure(weights, canvases, "exact") for weights in trained["d"]]
            laws[law] = {way: summary(run, runs["a"]) for way, run in runs.items()}
        if last := [way for way in "ecb" if way in trained]:
            results["applied"][title] = applied(trained[last[0]][0], canvases, "harsh")
    write_json(out / "results.json", results)
    (out / "results.md").write_text(table(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
