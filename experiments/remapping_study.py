"""Does the spatial re-mapping help? The same small estimator on detector-like boxes, in six ways.

a  plain crop;  b  STN and SDTN without the parallel SPPE;  c  with it;  d  plain crop of perfect boxes (an oracle);
f  as c, but theta learns from the parallel SPPE alone;  e  as f, but its slope is taken by differences

All start from one estimator trained on perfect boxes (rmpe_1_sppe.py, or --start) and go on for the same steps with the
same seeds; all but d on proposals of the harsh law (or those of augment.proposals), d on perfect boxes. Measured on
people that none of them saw: PCK@0.2 of the torso on LSPET's validation people and on COCO's val2017 set aside, of the
joints that the training people have labelled, for proposals that are drawn once and are the same for all ways, and with
--detector in its best box of a person, of those alone whom a box overlaps by more than half; how far theta is from the
map that would centre the person (mean distance of the crop's corners, in the unit frame); and the time of a step.
Intervals are bootstraps over pictures: they say nothing of other seeds, of which the range is given. A gain is over the
same seeds. Then, with one trained STN: the picture sampled once along both maps, against two samples and resampled
maps.

    .venv/bin/python experiments/remapping_study.py --quick                      # drawn people, toy size, two minutes
    .venv/bin/python experiments/remapping_study.py --lspet DIR --coco DIR --out runs/remapping
    ... --start hourglass-lspet-coco --set model.stacks=1    # from other weights; of their stacks the first ones
    ... --set model.features=256 --set optim.batch=64                            # any setting of the experiment
    ... --detector person-detector --set augment.proposals=FILE.npz   # what an STN wins back of a detector's cost

A run that was interrupted goes on after its last finished training. Results: experiments/README.md.
"""

import argparse
import dataclasses
import json
import runpy
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rmpe_jax.config import Experiment, differences, override, to_json
from rmpe_jax.data.people import Person, in_skeleton, people_in
from rmpe_jax.data.pipeline import Canvases, Loader, evaluation_batches, training_batches, training_people
from rmpe_jax.data.sets import data_set, read_data
from rmpe_jax.evaluate.fit_proposals import FoundPeople, find_people
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
from rmpe_jax.models.rmpe import LOCALIZATION, has_stn, part_of, remap_crops, unstack_estimator
from rmpe_jax.models.single_person import LEVELS, crop_people, estimate_heatmaps, read_poses
from rmpe_jax.predict.person_detector import PersonDetector
from rmpe_jax.pretrained import Weights, load_weights, save_weights, without_paths
from rmpe_jax.proposals.generators import Generator, Law, sample_boxes
from rmpe_jax.proposals.offsets import Proposals, moved_box, propose
from rmpe_jax.records import PoseBatch
from rmpe_jax.scores import UNCALIBRATED
from rmpe_jax.train.plan import read_generator
from rmpe_jax.train.step import init_state, predict_step, train_step

HERE = Path(__file__).parent
LAWS: tuple[Proposals, ...] = ("alphapose_global", "harsh", "exact")
#: Title of the boxes that a detector gave.
DETECTED = "detector's"
WAYS = {
    "a": "plain crop",
    "b": "STN",
    "c": "STN + parallel SPPE",
    "f": "theta from the parallel SPPE alone",
    "e": "the same by differences",
    "d": "oracle boxes",
}
# A step that moves the crop by a thirteenth of its side: larger than the network's tremor, smaller than the errors.
STEP = 0.15


def experiment_of(way: str, base: Experiment) -> Experiment:
    """The experiment of one way: phase 3's numbers without or with its parts."""
    kind = base.localization.kind if way in "bcef" else "none"
    localization = dataclasses.replace(base.localization, kind=kind, parallel="")
    if way in "ef":
        localization = dataclasses.replace(localization, paths="parallel", parallel_step=STEP if way == "e" else 0.0)
    own = with_proposals(base, "exact") if way == "d" else base
    return dataclasses.replace(own, name=f"way-{way}", localization=localization)


def with_proposals(experiment: Experiment, name: str) -> Experiment:
    """The experiment with other boxes to learn from."""
    return dataclasses.replace(experiment, augment=dataclasses.replace(experiment.augment, proposals=name))


def like(base: Experiment, known: Experiment) -> Experiment:
    """The experiment with the architecture and the frames that given weights were trained with."""
    optim = dataclasses.replace(base.optim, sigma=known.optim.sigma)
    data = dataclasses.replace(base.data, extension=known.data.extension)
    # Scores of weights that are trained further mean something else.
    model = dataclasses.replace(known.hourglass, calibration=UNCALIBRATED)
    return dataclasses.replace(base, skeleton=known.skeleton, model=model, optim=optim, data=data)


def first_stacks(weights: Weights, experiment: Experiment) -> Weights:
    """Weights of a network with more stacks, without those that the experiment lacks."""

    def part(tree, like):
        return {name: part(tree[name], like[name]) for name in like} if isinstance(like, dict) else tree

    shapes = hourglass_shapes(experiment.hourglass, joints=experiment.joints.size)
    return Weights(experiment, part(weights.variables, shapes))


def fit(
    experiment: Experiment,
    people: list[Person],
    path: Path,
    start: Weights | None,
    frozen: Weights | None,
    seed: int,
    generator: Generator | None = None,
):
    """Trains, or reads what was trained before; returns the weights and the seconds of a step."""
    timing = path.with_suffix(".json")
    if path.exists() and timing.exists():
        made = load_weights(path)
        if changed := differences(without_paths(experiment), made.experiment):
            raise SystemExit(f"{path} was trained with other settings ({changed[0]}): choose another --out")
        return made, float(json.loads(timing.read_text()))
    steps, key = experiment.optim.steps, jax.random.key(seed)
    state = init_state(key, experiment, start=start and start.variables, frozen=frozen and frozen.variables)
    step = jax.jit(partial(train_step, experiment=experiment, generator=generator), donate_argnums=0)
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
    weights = Weights(experiment, unstack_estimator(jax.tree.map(np.asarray, state.average), experiment))
    save_weights(path, weights)
    write_json(timing, float(np.median(times)))
    return weights, float(np.median(times))


@dataclasses.dataclass(frozen=True)
class TestPeople:
    """People that no training saw, on canvases."""

    title: str
    canvases: Canvases
    picture: np.ndarray  # (n,) index of each person's picture
    learnt: np.ndarray  # (k,) joints that the training people have labelled
    # (n, 4) offsets of a detector's best box of each person over the own box's sides; NaN where it has none
    detected_offsets: np.ndarray | None = None


def proposals_of(canvases: Canvases, generator: Generator) -> np.ndarray:
    """One box for each person, the same at every call."""
    keys = jax.random.split(jax.random.key(11), len(canvases))
    box, points, labelled = map(jnp.asarray, (canvases.box, canvases.points, canvases.labelled))
    # Drawn as before there was sample_boxes, whose keys differ: published figures stay.
    if isinstance(generator, Law) and generator.name in LAWS:
        return np.asarray(jax.vmap(partial(propose, law=cast(Proposals, generator.name)))(keys, box))
    boxes, _ = jax.vmap(partial(sample_boxes, generator=generator, num=1))(keys, box, points, labelled)
    return np.asarray(boxes[:, 0])


def detected_alone(people: TestPeople) -> tuple[TestPeople, np.ndarray]:
    """The people to whom the detector gave a box, and these boxes, canvas pixels."""
    offsets = people.detected_offsets
    assert offsets is not None
    found = np.isfinite(offsets[:, 0])
    canvases = jax.tree.map(lambda part: part[found], dataclasses.asdict(people.canvases))
    _, picture = np.unique(people.picture[found], return_inverse=True)
    kept = TestPeople(people.title, type(people.canvases)(**canvases), picture, people.learnt, offsets[found])
    return kept, moved(kept.canvases.box, offsets[found])


def moved(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The boxes with corners moved by offsets over their sides."""
    return np.asarray(jax.vmap(moved_box)(jnp.asarray(boxes), jnp.asarray(offsets)))


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
        frame = {"align_corners": experiment.hourglass.align_corners}
        best = compose(compose(unit_from_pixels(size, **frame), pixels), pixels_from_unit(size, **frame))
        corners = jnp.array([[-1.0, -1], [1, -1], [-1, 1], [1, 1]])
        return jnp.linalg.norm(transform_points(theta, corners) - transform_points(best, corners), axis=-1).mean()

    return correct, counted, jax.vmap(error)(batch.canvas, batch.box, true_box)


def batches_of(people: TestPeople, boxes: np.ndarray) -> Iterator[tuple[np.ndarray, PoseBatch]]:
    """Batches of fifty with proposals in place of the boxes, and who is in them; the last is filled up."""
    count = len(people.canvases)
    for start, batch in zip(range(0, count, 50), evaluation_batches(people.canvases, 50), strict=True):
        rows = np.resize(np.arange(start, min(start + 50, count)), 50)
        yield rows, dataclasses.replace(batch, box=jnp.asarray(boxes[rows]))


def measure(weights: Weights, people: TestPeople, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """What ``judge`` says of everybody in these boxes, canvas pixels."""
    parts = []
    for rows, batch in batches_of(people, boxes):
        true_box = jnp.asarray(people.canvases.box[rows])
        found = judge(weights.variables, batch, true_box, experiment=weights.experiment)
        parts.append([np.asarray(array)[: len(np.unique(rows))] for array in found])
    correct, counted, error = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return {"correct": correct, "counted": counted & people.learnt[None], "error": error}


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
    undo = partial(sdtn, align_corners=experiment.hourglass.align_corners)
    heatmaps = jax.vmap(undo)(heatmaps, theta) if maps else heatmaps
    return read_poses(heatmaps, back, experiment=experiment)[0]


def applied(weights: Weights, people: TestPeople, boxes: np.ndarray) -> dict[str, dict[str, float]]:
    """One network's theta applied in each way: PCK, and how far the joints are from the first way's.

    The network was trained with the picture sampled once. Its time: benchmarks/sampling.py.
    """
    canvases, found = people.canvases, {}
    score = jax.vmap(partial(torso_length, skeleton=weights.experiment.joints))
    length = score(jnp.asarray(canvases.points), jnp.asarray(canvases.labelled))
    counted = jnp.asarray(canvases.labelled & people.learnt[None]) & (length > 0)[:, None]
    reference: np.ndarray | None = None
    for title, (source, maps) in APPLIED.items():
        localization = dataclasses.replace(weights.experiment.localization, source=source)
        experiment = dataclasses.replace(weights.experiment, localization=localization)
        joints = np.concatenate(
            [
                joints_of(weights.variables, batch, experiment=experiment, maps=maps)[: len(np.unique(rows))]
                for rows, batch in batches_of(people, boxes)
            ]
        )
        reference = joints if reference is None else reference
        correct = jax.vmap(correct_joints)(jnp.asarray(joints), jnp.asarray(canvases.points), counted, length)
        apart = np.linalg.norm(joints - reference, axis=-1)[np.asarray(counted)]
        found[title] = {"pck": float(pck(correct, counted)[0]), "median_distance": float(np.median(apart))}
        found[title]["mean_distance"] = float(apart.mean())
    return found


def summary(runs: list[dict[str, np.ndarray]], others: list[list[dict[str, np.ndarray]]], picture: np.ndarray):
    """PCK over the seeds, the gain over other ways with the same seeds, intervals over pictures, and theta's error."""

    def score(which, weight):
        values = [pck(jnp.asarray(run["correct"]), jnp.asarray(run["counted"]), weight=weight)[0] for run in which]
        return jnp.stack(values).mean()

    def all_of(weight):
        weight = weight[picture]
        count = [min(len(runs), len(other)) for other in others]
        gains = [score(runs[:n], weight) - score(o[:n], weight) for n, o in zip(count, others, strict=True)]
        return jnp.stack([score(runs, weight), *gains])

    pictures = int(picture.max()) + 1
    values = np.asarray(all_of(jnp.ones(pictures)))
    low, high = interval(bootstrap(jax.random.key(0), all_of, pictures, replicates=1000))
    each = [float(score([run], jnp.ones(len(picture)))) for run in runs]
    rows = [[float(v), float(a), float(b)] for v, a, b in zip(values, low, high, strict=True)]
    return {"pck": rows[0], "gains": rows[1:], "seeds": each} | {
        "theta_error": float(np.mean([run["error"].mean() for run in runs]))
    }


def people_to_test(
    options: argparse.Namespace,
    base: Experiment,
    learnt: np.ndarray,
    find: Callable[[str, str, str], FoundPeople] | None = None,
) -> Iterator[TestPeople]:
    """Each test set's people on canvases, in the experiment's skeleton; ``find`` gives a split's people their boxes."""
    sets = {"LSPET val": ("lspet", options.lspet, "val"), "COCO val2017": ("coco", options.coco, "val2017")}
    sets = {title: given for title, given in sets.items() if given[1]}
    if options.quick:
        sets = {"drawn": ("synthetic", ".", "val")}
    for title, (name, folder, split) in sets.items():
        people = in_skeleton(people_in(read_data(name, folder, split)), data_set(name).skeleton, base.joints)
        usable = np.array([person.labelled.sum() >= base.data.min_joints for person in people])
        best = None
        if find is not None:
            found = find(name, folder, split)
            who, first = np.unique(found.person, return_index=True)  # best first
            best = np.full((len(people), 4), np.nan, np.float32)
            best[who] = found.offsets[first]
            best = best[usable]
        people = [person for person, kept in zip(people, usable, strict=True) if kept]
        _, picture = np.unique([person.image_id for person in people], return_inverse=True)
        with Loader(people, base.data, memory=0.0) as loader:
            yield TestPeople(title, loader.load(np.arange(len(loader))), picture, learnt, best)


def found_by(detector: PersonDetector, name: str, folder: str, split: str) -> FoundPeople:
    """The people of a split with the boxes that a detector gives them."""
    pictures = read_data(name, folder, split)
    return find_people(pictures, detector, progress=lambda steps: tqdm(steps, f"{name} {split}", mininterval=5))


def summaries(trained: dict[str, list[Weights]], people: TestPeople, boxes: np.ndarray) -> dict[str, Any]:
    """The summary of every way in these boxes; the oracle has the people's own."""
    given = {way: people.canvases.box if way == "d" else boxes for way in trained}
    runs = {way: [measure(w, people, given[way]) for w in found] for way, found in trained.items()}
    others = {way: [runs["a"], runs[above]] for above, way in pairwise(runs)}
    found = {way: summary(run, others.get(way, []), people.picture) for way, run in runs.items()}
    return {way: {"people": len(people.canvases)} | each for way, each in found.items()}


def table(results: dict[str, Any]) -> str:
    """Markdown: one row for each set, law and way."""
    titles = "people, boxes | way | PCK@0.2 | seeds | gain over a | gain over the row above | theta error | ms/step"
    lines = [f"| {titles} |", "|---|---|---|---|---|---|---|---|"]
    for title, laws in results["sets"].items():
        for law, ways in laws.items():
            for way, found in ways.items():
                value, low, high = (100 * number for number in found["pck"])
                seeds = f"{100 * min(found['seeds']):.1f} to {100 * max(found['seeds']):.1f}"
                cells = [
                    f"{title}, {law} ({found['people']})",
                    f"{way}: {WAYS[way]}",
                    f"{value:.1f} ({low:.1f} to {high:.1f})",
                    seeds,
                ]
                cells += [_gain(gain) for gain in found["gains"]] + [""] * (2 - len(found["gains"]))
                cells += [f"{found['theta_error']:.3f}", f"{1000 * results['seconds_per_step'][way]:.0f}"]
                lines.append(f"| {' | '.join(cells)} |")
    for title, ways in results["applied"].items():
        lines += [
            "",
            f"| {title}, harsh boxes: theta applied | PCK@0.2 | joints moved, canvas pixels |",
            "|---|---|---|",
        ]
        for way, found in ways.items():
            moved = f"{found['median_distance']:.2f} (mean {found['mean_distance']:.2f})"
            lines.append(f"| {way} | {100 * found['pck']:.1f} | {moved} |")
    return "\n".join(lines)


def _gain(gain: list[float]) -> str:
    value, low, high = (100 * number for number in gain)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


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
    parser.add_argument(
        "--detector",
        default="",
        metavar="WEIGHTS",
        help="measure in the boxes of this person detector too: name or file",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument(
        "--seeds-of", action="append", default=[], metavar="WAY=N", help="other numbers of seeds, such as f=1"
    )
    parser.add_argument("--ways", default="abcfed", help="some of abcfed; a is always there")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="assignments")
    options = parser.parse_args()
    if not options.lspet and not options.quick:
        parser.error("say --lspet DIR, or --quick for drawn people")
    find = partial(found_by, PersonDetector(options.detector)) if options.detector else None
    first: Experiment = runpy.run_path(str(HERE / "rmpe_1_sppe.py"))["experiment"]
    base: Experiment = runpy.run_path(str(HERE / "rmpe_3_sstn.py"))["experiment"]
    toy = ["model.features=16", "model.depth=2", "model.input_size=48,48", "data.canvas=96", "data.min_joints=3"]
    toy += ["data.synthetic=48", "optim.batch=8", "optim.steps=40", "skeleton=coco_lsp_19"]
    given = [f"data.lspet={options.lspet}"] + (toy if options.quick else []) + options.assignments
    out = options.out / "quick" if options.quick else options.out
    # Phase 1 keeps its own boxes, and but at toy size its own number of steps and its rate.
    own = ("augment.proposals",) + (() if options.quick else ("optim.steps", "optim.learning_rate", "optim.warmup"))
    first = override(first, [text for text in given if not text.startswith(own)])
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
    seeds = dict.fromkeys(WAYS, 1 if options.quick else options.seeds)
    for text in options.seeds_of:
        way, _, number = text.partition("=")
        seeds[way] = int(number)
    for way in [way for way in WAYS if way in {"a", *options.ways}]:
        experiment = experiment_of(way, base)
        frozen, generator = (start if way in "cef" else None), read_generator(experiment)
        found = [
            fit(experiment, people, out / f"way-{way}-{seed}.safetensors", start, frozen, seed, generator)
            for seed in range(1, 1 + seeds[way])
        ]
        trained[way], seconds[way] = [weights for weights, _ in found], min(second for _, second in found)
    results: dict[str, Any] = {"jax": jax.__version__, "start": options.start or "phase 1", "sets": {}, "applied": {}}
    results |= {"seconds_per_step": seconds, "experiment": json.loads(to_json(without_paths(base)))}
    laws = {name: read_generator(with_proposals(base, name)) for name in (base.augment.proposals, *LAWS)}
    for tested in people_to_test(options, base, np.any([person.labelled for person in people], 0), find):
        given = {
            Path(name).name: (tested, proposals_of(tested.canvases, law))
            for name, law in laws.items()
            if law is not None  # jitter is drawn with the crop
        }
        if find is not None:
            given[DETECTED] = detected_alone(tested)
        kinds = results["sets"].setdefault(tested.title, {})
        for kind, (those, boxes) in given.items():
            kinds[kind] = summaries(trained, those, boxes)
        if last := [way for way in "ecb" if way in trained]:
            results["applied"][tested.title] = applied(trained[last[0]][0], *given["harsh"])
    write_json(out / "results.json", results)
    (out / "results.md").write_text(table(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
