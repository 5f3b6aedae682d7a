"""Which boxes should an estimator be trained on? The same small one on the boxes of five generators.

a  the labelled boxes;  b  the same, shaken uniformly with an IoU above 0.5;  c  the published Gaussians;  d  PGPG;
e  DPG. The last two are fitted here to every window that the HOG detector lays on the training people of LSPET and
COCO; PGPG's atomic poses are those of all people of COCO's train2017, without the pictures of val2017.

A fifth of the people who have windows is set aside: nobody learns from them, and the boxes of generators are compared
with theirs. Then the five ways: all start from the first stack of the shipped weights and go on for the same steps with
the same seeds. Measured on people that none of them saw, LSPET's validation split and COCO's val2017: PCK@0.2 of the
torso, in labelled boxes, in the detector's (of everybody who has windows, the one with the best score), and in
detector-like ones: each person takes the offsets of somebody set aside who has the same atomic pose. Intervals are
bootstraps over pictures and say nothing of other seeds, of which the range is given; gains are over the same seeds.

    .venv/bin/python experiments/proposals_study.py --quick                      # drawn people, toy size, three minutes
    .venv/bin/python experiments/proposals_study.py --lspet DIR --coco DIR --out runs/proposals          # two hours

--coco holds poses_train2017.npz beside COCO's files: image_id (n,) and keypoints (n, 17, 3) of all its people. A run
that was interrupted goes on after its last finished part. Results: experiments/README.md. `pgpg-hog` and `dpg-hog`,
which the package ships, are what the first part writes.
"""

import argparse
import dataclasses
import json
import runpy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from remapping_study import (
    DETECTED,
    HERE,
    TestPeople,
    detected_alone,
    first_stacks,
    fit,
    like,
    measure,
    moved,
    people_to_test,
    summary,
    with_proposals,
)
from tqdm import tqdm

from rmpe_jax.config import Experiment, override, to_json
from rmpe_jax.data.images import write_image
from rmpe_jax.data.people import LabelledPicture, in_skeleton, people_in
from rmpe_jax.data.pipeline import training_people
from rmpe_jax.data.sets import data_set, read_data
from rmpe_jax.evaluate.compare_proposals import compare_boxes, pose_gain
from rmpe_jax.evaluate.fit_proposals import FoundPeople, find_people, held_out, read_poses_file
from rmpe_jax.evaluate.fit_report import HELD_OUT, fit_and_compare
from rmpe_jax.files import write_json
from rmpe_jax.models.rmpe import init_estimator
from rmpe_jax.predict.detectors import every_window_of_hog, read_boxes
from rmpe_jax.pretrained import Weights, load_proposals, load_weights, read_arrays, save_proposals, without_paths
from rmpe_jax.proposals.atoms import nearest_atom, normalized_pose
from rmpe_jax.proposals.generators import Generator, Law, sample_boxes
from rmpe_jax.proposals.mixtures import OffsetMixtures, offsets_of
from rmpe_jax.proposals.scored import ScoredProposals
from rmpe_jax.skeleton import COCO_17, LIMB_JOINTS, Skeleton, convert_points

WAYS = {"a": "exact", "b": "uniform", "c": "alphapose_global", "d": "pgpg", "e": "dpg"}
TITLES = {"exact": "labelled boxes", "uniform": "uniform jitter", "alphapose_global": "published Gaussians"}
# Pixels of the longer side in which HOG looks: LSPET's people fill their small pictures, COCO's do not.
SIDES = {"lspet": 480, "coco": 960}


def detections_of(name: str, pictures: Sequence[LabelledPicture], path: Path) -> Path:
    """A file of HOG's windows, best first in each picture; made where it is missing."""
    if not path.exists():
        detect = partial(every_window_of_hog, longest_side=SIDES[name])
        entries = []
        for record in tqdm(pictures, path.stem, mininterval=5):
            boxes = detect(record.picture.read())
            found = [
                (box, score) for box, score, valid in zip(boxes.xyxy, boxes.score, boxes.valid, strict=True) if valid
            ]
            for (x0, y0, x1, y1), score in sorted(found, key=lambda one: -one[1]):
                entry = {"image_id": record.image_id, "file_name": record.picture.name, "category_id": 1}
                bbox = [round(float(value), 2) for value in (x0, y0, x1 - x0, y1 - y0)]
                entries.append(entry | {"bbox": bbox, "score": round(float(score), 4)})
        write_json(path, entries)
    return path


def found_in(name: str, folder: str, split: str, out: Path, skeleton: Skeleton) -> FoundPeople:
    """The people of a split with HOG's windows, in another skeleton."""
    pictures = read_data(name, folder, split)
    boxes = read_boxes(detections_of(name, pictures, out / f"{name}-{split}.json"))
    people = find_people(pictures, boxes, progress=lambda steps: tqdm(steps, f"{name} {split}", mininterval=5))
    points, labelled = converted(people.points, people.labelled, data_set(name).skeleton, skeleton)
    return dataclasses.replace(people, points=points, labelled=labelled)


def converted(
    points: np.ndarray, labelled: np.ndarray, source: Skeleton, target: Skeleton
) -> tuple[np.ndarray, np.ndarray]:
    """Points and labels in another skeleton."""
    there, known = convert_points(jnp.asarray(points, jnp.float32), jnp.asarray(labelled), source, target)
    return np.asarray(there), np.asarray(known)


def together(groups: Sequence[FoundPeople]) -> FoundPeople:
    """The people of all groups."""
    before = np.cumsum([0, *(len(group.points) for group in groups)])
    person = np.concatenate([group.person + first for group, first in zip(groups, before[:-1], strict=True)])
    own, points, labelled, offsets = (
        np.concatenate([getattr(group, name) for group in groups])
        for name in ("boxes", "points", "labelled", "offsets")
    )
    return FoundPeople(own, points, labelled, offsets, person)


def found_people(options: argparse.Namespace, skeleton: Skeleton, out: Path) -> FoundPeople:
    """Those to fit generators to."""
    if options.quick:
        return simulated(options.base, skeleton)
    sets = (("lspet", options.lspet, "train"), ("coco", options.coco, "train2017"))
    return together([found_in(*given, out, skeleton) for given in sets])


def simulated(base: Experiment, skeleton: Skeleton, split: str = "train") -> FoundPeople:
    """Drawn people, whom no HOG would find, with four boxes each of the published Gaussians."""
    people = in_skeleton(people_in(read_data("synthetic", ".", split)), data_set("synthetic").skeleton, skeleton)
    boxes = np.stack([person.box for person in people])
    points, labelled = np.stack([p.points for p in people]), np.stack([p.labelled for p in people])
    draw = jax.vmap(partial(sample_boxes, generator=Law("alphapose_global"), num=4))
    given = (jax.random.split(jax.random.key(5), len(people)), *map(jnp.asarray, (boxes, points, labelled)))
    offsets = offsets_of(draw(*given)[0], jnp.asarray(boxes)[:, None].repeat(4, 1)).reshape(-1, 4)
    return FoundPeople(boxes, points, labelled, np.asarray(offsets), np.arange(len(people)).repeat(4))


def poses_to_cluster(options: argparse.Namespace, skeleton: Skeleton) -> tuple[np.ndarray, np.ndarray] | None:
    """All of COCO's poses but those of the pictures that are tested on."""
    if options.quick:
        return None
    path = Path(options.coco) / "poses_train2017.npz"
    tested = [record.image_id for record in read_data("coco", options.coco, "val2017")]
    points, labelled = read_poses_file(path, COCO_17)
    kept = ~np.isin(read_arrays(path)["image_id"], tested)
    return converted(points[kept], labelled[kept], COCO_17, skeleton)


def generators_of(
    options: argparse.Namespace, people: FoundPeople, skeleton: Skeleton, out: Path
) -> dict[str, Generator]:
    """PGPG and DPG, fitted where they are not there yet."""
    places = {kind: out / f"{kind}-hog.npz" for kind in ("pgpg", "dpg")}
    if not all(place.exists() for place in places.values()):

        def progress(title: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
            return lambda steps: tqdm(steps, title, mininterval=5)

        atoms, steps = (3, 60) if options.quick else (24, 4000)
        poses = poses_to_cluster(options, skeleton)
        found, _, sheet = fit_and_compare(people, skeleton, poses=poses, atoms=atoms, steps=steps, progress=progress)
        given = {"detector": "OpenCV's HOG, every window at a threshold of -0.4"}
        given |= {"boxes_of": "LSPET, training split; COCO train2017, 189 pictures"}
        for kind, (generator, about) in found.items():
            poses_of = {"poses_of": "COCO train2017"} if kind == "pgpg" else {}
            save_proposals(places[kind], generator, about=about | given | poses_of)
        write_image(out / "sheet.png", sheet)
    return {kind: load_proposals(place) for kind, place in places.items()}


def compared(people: FoundPeople, generators: dict[str, Generator], skeleton: Skeleton) -> dict[str, Any]:
    """Kolmogorov-Smirnov statistics of every generator's boxes, and what PGPG gains from the pose."""
    learnt, aside = held_out(people, HELD_OUT)
    pgpg, dpg = generators["pgpg"], generators["dpg"]
    assert isinstance(pgpg, OffsetMixtures) and isinstance(dpg, ScoredProposals)
    by_score = {"dpg, in proportion to the score": dataclasses.replace(dpg, draw="score")}
    distances, _ = compare_boxes(generators | by_score, learnt, aside, skeleton)
    found = {"people": len(np.unique(aside.person)), "detections": len(aside.offsets), "distances": distances}
    return found | {"pose_gain": pose_gain(aside, pgpg)}


@dataclasses.dataclass(frozen=True)
class Test:
    """People and their boxes of one kind, on canvases."""

    boxes: str
    people: TestPeople
    given: np.ndarray  # (n, 4)


def tests_of(options: argparse.Namespace, base: Experiment, aside: FoundPeople, learnt: np.ndarray, out: Path):
    """Each test set's people in labelled boxes, the detector's and detector-like ones."""

    def find(name, folder, split):
        if options.quick:
            return simulated(base, base.joints, split)
        return found_in(name, folder, split, out, base.joints)

    for people in people_to_test(options, base, learnt, find):
        own = people.canvases.box
        yield Test("labelled", people, own)
        yield Test(DETECTED, *detected_alone(people))
        yield Test("detector-like", people, moved(own, offsets_like(people.canvases, aside, base.joints)))


def offsets_like(canvases: Any, aside: FoundPeople, skeleton: Skeleton) -> np.ndarray:
    """For each person those of a detection of somebody set aside, of the one who is most alike, or else of anybody."""
    limbs = np.array([skeleton.joints.index(joint) for joint in LIMB_JOINTS])
    normal = jax.vmap(partial(normalized_pose, skeleton=skeleton))
    points = np.where(aside.labelled[..., None], aside.points, 0)
    poses, known = normal(jnp.asarray(points, jnp.float32), jnp.asarray(aside.labelled))
    donors = np.flatnonzero(np.asarray(known)[:, limbs].all(1) & np.isin(np.arange(len(poses)), aside.person))
    atoms = jnp.full((len(donors), *poses.shape[1:]), jnp.nan).at[:, limbs].set(poses[donors][:, limbs])
    row = jax.vmap(lambda points, known: nearest_atom(points, known, atoms, skeleton=skeleton))
    nearest = np.asarray(row(jnp.asarray(canvases.points), jnp.asarray(canvases.labelled)))
    rng, found = np.random.default_rng(17), []
    for number in nearest.tolist():
        theirs = aside.person == donors[number] if number < len(donors) else np.ones(len(aside.person), bool)
        found.append(aside.offsets[rng.choice(np.flatnonzero(theirs))])
    return np.array(found, np.float32)


def table(results: dict[str, Any]) -> str:
    """Markdown: how the offsets compare, then a row for each test and way."""
    held = results["held_out"]
    against = f"{held['detections']} boxes of {held['people']} people set aside, against"
    lines = [f"| {against} | x0 | y0 | x1 | y1 | width / height |", "|---|---|---|---|---|---|"]
    for name, distances in held["distances"].items():
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in distances)} |")
    lines += [
        "",
        "| people, boxes | trained on | PCK@0.2 | seeds | gain over a | gain over c |",
        "|---|---|---|---|---|---|",
    ]
    for test in results["tests"]:
        for way, found in test["ways"].items():
            value, low, high = (100 * number for number in found["pck"])
            seeds = f"{100 * min(found['seeds']):.1f} to {100 * max(found['seeds']):.1f}"
            gains = [f"{100 * v:+.1f} ({100 * a:+.1f} to {100 * b:+.1f})" for v, a, b in found["gains"]]
            name = TITLES.get(WAYS[way], WAYS[way].upper())
            cells = [f"{test['title']}, {test['boxes']} ({test['people']})", f"{way}: {name}"]
            lines.append(f"| {' | '.join([*cells, f'{value:.1f} ({low:.1f} to {high:.1f})', seeds, *gains])} |")
    return "\n".join(lines)


def main() -> None:
    """Fits and trains what is missing, measures, and writes results.json and results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="drawn people, toy size, one seed")
    parser.add_argument("--lspet", default="", metavar="DIR")
    parser.add_argument("--coco", default="", metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/proposals"), metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--fit-only", action="store_true", help="the first part alone")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="assignments")
    options = parser.parse_args()
    if not options.quick and not (options.lspet and options.coco):
        parser.error("say --lspet DIR and --coco DIR, or --quick for drawn people")
    out = options.out / "quick" if options.quick else options.out
    out.mkdir(parents=True, exist_ok=True)
    base, start = base_and_start(options)
    options.base = base
    people = found_people(options, base.joints, out)
    generators = generators_of(options, people, base.joints, out)
    results: dict[str, Any] = {
        "jax": jax.__version__,
        "held_out": compared(people, generators, base.joints),
        "tests": [],
    }
    results["experiment"] = json.loads(to_json(without_paths(base)))
    if not options.fit_only:
        training = training_people(base.data, base.joints)
        learnt = np.any([person.labelled for person in training], 0)
        trained = train_all(options, base, start, training, generators, out)
        _, aside = held_out(people, HELD_OUT)
        for test in tests_of(options, base, aside, learnt, out):
            runs = {way: [measure(w, test.people, test.given) for w in found] for way, found in trained.items()}
            ways = {way: summary(run, [runs["a"], runs["c"]], test.people.picture) for way, run in runs.items()}
            count = len(test.people.canvases)
            results["tests"].append({"title": test.people.title, "boxes": test.boxes, "people": count, "ways": ways})
    write_json(out / "results.json", results)
    (out / "results.md").write_text(table(results) + "\n")
    print(table(results))


def base_and_start(options: argparse.Namespace) -> tuple[Experiment, Weights]:
    """The settings of all ways but for their boxes, and the weights from which they start."""
    base: Experiment = runpy.run_path(str(HERE / "rmpe_2_proposals.py"))["experiment"]
    if options.quick:
        given = ["model.features=16", "model.depth=2", "model.input_size=48,48", "data.canvas=96", "data.min_joints=3"]
        given += ["data.synthetic=48", "optim.batch=8", "optim.steps=40", "skeleton=coco_lsp_19"]
        base = dataclasses.replace(override(base, given + options.assignments), start="")
        return base, Weights(base, init_estimator(jax.random.key(0), base))
    known = load_weights()
    given = ["model.stacks=1", "data.canvas=256", "optim.steps=900", "optim.warmup=50"]
    given += [f"data.lspet={options.lspet}", f"data.coco={options.coco}", *options.assignments]
    base = dataclasses.replace(override(like(base, known.experiment), given), start="")
    return base, first_stacks(known, base)


def train_all(options, base, start, people, generators, out) -> dict[str, list[Weights]]:
    """The weights of every way and seed."""
    trained: dict[str, list[Weights]] = {way: [] for way in WAYS}
    for seed in range(1, 2 if options.quick else 1 + options.seeds):
        for way, law in WAYS.items():
            boxes = f"{law}-hog" if law in generators else law
            experiment = dataclasses.replace(with_proposals(base, boxes), name=f"way-{way}")
            path = out / f"way-{way}-{seed}.safetensors"
            weights, _ = fit(experiment, people, path, start, None, seed, generators.get(law))
            trained[way].append(weights)
    return trained


if __name__ == "__main__":
    main()
