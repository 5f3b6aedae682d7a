"""Does the gradient of theta lead back to the person? Exact gradients, and differences over steps of several sizes.

For people of LSPET's training split, each in a box of the harsh law: the cosine between where the parallel SPPE's loss
would move theta's shift and where the person is, and the correlation of the two over people. The loss is that of the
shipped weights, or of others.

    .venv/bin/python experiments/gradient_directions.py --lspet DIR [--people 200] [--weights NAME] [--law harsh]

Results: experiments/README.md.
"""

import argparse
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.config import Experiment, LocalizationConfig
from rmpe_jax.data.people import in_skeleton, people_in
from rmpe_jax.data.pipeline import Canvases, Loader
from rmpe_jax.data.sets import data_set, read_data
from rmpe_jax.geometry.affine import (
    compose,
    image_from_person,
    invert_affine,
    pixels_from_unit,
    transform_points,
    unit_from_pixels,
)
from rmpe_jax.models.localization import theta_directions
from rmpe_jax.pretrained import Weights, load_weights
from rmpe_jax.proposals.offsets import Proposals, propose
from rmpe_jax.train.augment import heatmap_targets
from rmpe_jax.train.differences import by_differences
from rmpe_jax.train.gradient_paths import PATHS, ByPath, Scene, remapping_loss

STEPS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.4)
DIRECTIONS = theta_directions(LocalizationConfig(kind="small", theta="scale_translation"))


def people_of(folder: str, experiment: Experiment, count: int) -> Canvases:
    """So many people with at least ten labelled joints, evenly over the training split."""
    people = in_skeleton(people_in(read_data("lspet", folder, "train")), data_set("lspet").skeleton, experiment.joints)
    people = [person for person in people if person.labelled.sum() >= 10]
    with Loader(people[:: max(len(people) // count, 1)][:count], experiment.data, memory=0.0) as loader:
        return loader.load(np.arange(len(loader)))


def scenes_of(canvases: Canvases, experiment: Experiment, law: Proposals) -> tuple[Scene, jax.Array]:
    """What is looked at, and the theta that would show each person's perfect crop."""
    config, extension = experiment.hourglass, experiment.data.extension
    size, corners = config.input_size, {"align_corners": config.align_corners}
    target = partial(
        heatmap_targets, size=size, output_size=config.output_size, sigma=experiment.optim.sigma, **corners
    )

    def one(key, canvas, box, points, labelled):
        given, right = (
            image_from_person(chosen, size, extension=extension) for chosen in (propose(key, box, law), box)
        )
        in_crop, centred = (target(transform_points(invert_affine(m), points), labelled) for m in (given, right))
        pixels = compose(invert_affine(given), right)
        best = compose(compose(unit_from_pixels(size, **corners), pixels), pixels_from_unit(size, **corners))
        return Scene(canvas, given, in_crop, centred, labelled), best

    keys = jax.random.split(jax.random.key(1), len(canvases))
    arrays = (jnp.asarray(a) for a in (canvases.canvas, canvases.box, canvases.points, canvases.labelled))
    return jax.vmap(one)(keys, *arrays)


def agreement(moves: np.ndarray, best: np.ndarray) -> tuple[float, list[float]]:
    """Mean cosine of the shifts, and the correlations of x, y and scale over people."""
    wanted = best - np.eye(2, 3)
    shift, right = moves[:, :, 2], wanted[:, :, 2]
    cosine = (shift * right).sum(1) / np.linalg.norm(shift, axis=1) / np.linalg.norm(right, axis=1)
    pairs = [(shift[:, axis], right[:, axis]) for axis in range(2)]
    pairs.append((moves[:, 0, 0] + moves[:, 1, 1], wanted[:, 0, 0] + wanted[:, 1, 1]))
    return float(np.nanmean(cosine)), [float(np.corrcoef(*pair)[0, 1]) for pair in pairs]


def main() -> None:
    """Prints one row for each kind of gradient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lspet", required=True, metavar="DIR")
    parser.add_argument("--people", type=int, default=200, metavar="N")
    parser.add_argument("--weights", default="hourglass-lspet-coco", metavar="NAME")
    parser.add_argument("--law", default="harsh", choices=("harsh", "alphapose_global"))
    options = parser.parse_args()
    weights: Weights = load_weights(options.weights)
    experiment, identity = weights.experiment, jnp.eye(2, 3)
    scenes, best = scenes_of(people_of(options.lspet, experiment, options.people), experiment, options.law)

    def loss(theta, scene, path):
        held = {name: theta if name == path else identity for name in PATHS}
        frozen = weights.variables
        return remapping_loss(ByPath(**held), weights.variables, scene, experiment=experiment, frozen=frozen)

    def stepped(theta, scene, step):
        return by_differences(partial(loss, scene=scene, path="parallel"), theta, step=step, directions=DIRECTIONS)

    ways: dict[str, Callable[..., jax.Array]] = {f"exact, {path}": jax.grad(partial(loss, path=path)) for path in PATHS}
    ways |= {f"parallel, step {step}": jax.grad(partial(stepped, step=step)) for step in STEPS}
    print("| gradient | cosine to the person | correlation of x, y, scale |\n|---|---|---|")
    for name, way in ways.items():
        found = jax.jit(lambda way=way: jax.lax.map(lambda one: way(identity, one), scenes, batch_size=10))()
        cosine, correlations = agreement(-np.asarray(found), np.asarray(best))
        print(f"| {name} | {cosine:+.2f} | {', '.join(f'{value:+.2f}' for value in correlations)} |", flush=True)


if __name__ == "__main__":
    main()
