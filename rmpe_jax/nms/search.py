"""Learning the four parameters of the pose NMS: two at a time as the paper does, and exhaustively, as it could not.

The paper maximises mAP by optimising two parameters at a time over a grid with the other two fixed, alternating until
nothing improves (``alternate``). ``try_grid`` tries every combination instead, a few thousand a second on a CPU core.
``sweep_eta`` goes beyond any grid in the last parameter: with the others fixed, average precision is constant between
the similarities that occur, so that all its values can be listed. ``fit_pose_nms`` does all three, and says how much is
gained on pictures that were not searched on.

Reference: RMPE section 3.4 (v1: 2.4). The authors did not release their search.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rmpe_jax.nms.objective import Count, Objective
from rmpe_jax.nms.pose import DEFAULT, PoseNMSParameters
from rmpe_jax.nms.sweep import Settings, average_precisions, eta_edges, make_tables, precision_by_picture

#: The four, in the order of a grid's axes.
NAMES = ("sigma1", "sigma2", "lambda_", "eta")
#: Which two the alternating search takes in turn: the inner constants of both similarities, then what weighs them.
PAIRS = ((0, 1), (2, 3))
# Average precisions closer than this are the same: they are sums in float32.
_SAME = 1e-6
#: A callback for progress: is given an iterator, how long it is, and what it does; goes through it.
Progress = Callable[[Iterator[Any], int, str], Iterable[Any]]


def _quiet(steps: Iterator[Any], total: int, what: str) -> Iterable[Any]:
    return steps


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values that are tried of each parameter, rising."""

    sigma1: tuple[float, ...]
    sigma2: tuple[float, ...]
    lambda_: tuple[float, ...]
    eta: tuple[float, ...]  # in the unit of ``PoseNMSParameters.eta_scale``

    def __post_init__(self):
        for name, values in zip(NAMES, self.axes, strict=True):
            if not values or not all(a < b for a, b in zip(values, values[1:], strict=False)):
                raise ValueError(f"{name}: expected rising values, got {values}")

    @property
    def axes(self) -> tuple[tuple[float, ...], ...]:
        """The values in the order of ``NAMES``."""
        return self.sigma1, self.sigma2, self.lambda_, self.eta

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each parameter has."""
        return tuple(len(values) for values in self.axes)

    def at(self, index: tuple[int, ...], parameters: PoseNMSParameters) -> PoseNMSParameters:
        """The definitions of ``parameters`` with the values at a place of the grid."""
        chosen = {name: float(axis[i]) for name, axis, i in zip(NAMES, self.axes, index, strict=True)}
        return dataclasses.replace(parameters, **chosen)

    def nearest(self, parameters: PoseNMSParameters) -> tuple[int, ...]:
        """The place of the grid's values that are nearest to given ones."""
        given = [getattr(parameters, name) for name in NAMES]
        return tuple(int(np.abs(np.array(axis) - value).argmin()) for axis, value in zip(self.axes, given, strict=True))


def learnable(parameters: PoseNMSParameters, joints: int) -> PoseNMSParameters:
    """The same elimination with eta as a share of the largest similarity, so that it carries over to other skeletons.

    Merging is switched off: the search judges poses as they were found.

    Args:
        parameters: any, such as one of ``PRESETS``.
        joints: k of the poses that eta is converted for.
    """
    largest = (1 + parameters.lambda_) * joints
    share = min(max(parameters.threshold(joints) / largest, 0.0), 1.0)
    return dataclasses.replace(parameters, eta=share, eta_scale="fraction", merge="none")


def default_grid(parameters: PoseNMSParameters, *, size: int = 16) -> Grid:
    """``size`` values of each parameter, over what makes a difference; those of ``parameters`` are among them.

    sigma1 from 0.01, where every joint counts fully, to 3, where it counts by its score; sigma2 from a tenth of the
    unit of distance to ten of them; lambda from a tenth to ten; eta from 2 to 90 % of the largest similarity.

    Args:
        parameters: the definitions, with ``eta_scale`` "fraction": see ``learnable``.
        size: values of each.

    Raises:
        ValueError: eta is not a fraction, or ``size`` is below 2.
    """
    if parameters.eta_scale != "fraction" or size < 2:
        raise ValueError(f"expected eta as a fraction and two values or more, got {parameters.eta_scale!r} and {size}")
    axes = {
        "sigma1": np.geomspace(0.01, 3.0, size),
        "sigma2": np.geomspace(0.1, 10.0, size),
        "lambda_": np.geomspace(0.1, 10.0, size),
        "eta": np.linspace(0.02, 0.9, size),
    }
    for name, values in axes.items():
        given = getattr(parameters, name)
        values[np.abs(np.log(np.maximum(values, 1e-9)) - math.log(max(given, 1e-9))).argmin()] = given
    return Grid(**{name: tuple(float(value) for value in np.sort(values)) for name, values in axes.items()})


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of an alternating search: where it went, along which two parameters, and the value there."""

    index: tuple[int, ...]
    pair: tuple[int, int] | None  # None for the start
    value: float


def alternate(
    plane: Callable[[tuple[int, int], tuple[int, ...]], Float[np.ndarray, "a b"]],
    start: tuple[int, ...],
    *,
    pairs: tuple[tuple[int, int], ...] = PAIRS,
) -> tuple[Step, ...]:
    """The paper's search: the best of all values of two parameters, then of the other two, until nothing improves.

    The value never falls from one step to the next.

    Args:
        plane: the values over a pair of axes, the other parameters fixed at a place of the grid.
        start: a place of the grid.
        pairs: axes that are optimised together, in turn.
    """
    first = plane(pairs[0], start)
    path = [Step(start, None, float(first[tuple(start[axis] for axis in pairs[0])]))]
    idle = turn = 0
    while idle < len(pairs):
        pair, here = pairs[turn % len(pairs)], path[-1]
        values = plane(pair, here.index)
        best = np.unravel_index(int(values.argmax()), values.shape)
        turn, idle = turn + 1, idle + 1
        if values[best] > here.value + _SAME:
            index = list(here.index)
            for axis, place in zip(pair, best, strict=True):
                index[axis] = int(place)
            path.append(Step(tuple(index), pair, float(values[best])))
            idle = 1
    return tuple(path)


def planes_of(values: Float[np.ndarray, "a b c d"]) -> Callable[[tuple[int, int], tuple[int, ...]], np.ndarray]:
    """The planes of a grid whose values are all known, for ``alternate``."""

    def plane(pair: tuple[int, int], index: tuple[int, ...]) -> np.ndarray:
        return values[tuple(slice(None) if axis in pair else index[axis] for axis in range(4))]

    return plane


def try_grid(
    objective: Objective,
    grid: Grid,
    parameters: PoseNMSParameters,
    *,
    counts: list[Count] | None = None,
    progress: Progress = _quiet,
) -> Float[np.ndarray, "f a b c d"]:
    """The average precision of every combination of the grid's values.

    Args:
        objective: what is maximised.
        grid: the values.
        parameters: the definitions, such as the kernel.
        counts: over which pictures, see ``Objective.count``; by default over all.
        progress: is given the chunks as they are done.
    """
    definitions = _definitions(parameters)
    tables = make_tables(objective, np.array(grid.sigma1), np.array(grid.sigma2), definitions)
    first, second = (places.ravel() for places in np.meshgrid(*map(range, grid.shape[:2]), indexing="ij"))
    lambda_, eta = (values.ravel() for values in np.meshgrid(grid.lambda_, grid.eta, indexing="ij"))
    settings = Settings(first, second, lambda_, _absolute(lambda_, eta, parameters, objective.joints))
    counts = [objective.count()] if counts is None else counts

    def bar(chunks: Iterator[None], total: int) -> Iterable[None]:
        return progress(chunks, total, f"{math.prod(grid.shape):,} settings")

    values = average_precisions(objective, tables, settings, counts, definitions, progress=bar)
    return values.reshape(len(counts), *grid.shape)


def _definitions(parameters: PoseNMSParameters) -> PoseNMSParameters:
    """Without the four numbers, which tables and settings carry: one compilation serves all of them."""
    return dataclasses.replace(parameters, **dict.fromkeys(NAMES, 1.0), eta_scale="absolute")


def _absolute(lambda_, eta, parameters: PoseNMSParameters, joints: int) -> Float[np.ndarray, "n"]:
    """The thresholds of some values of lambda and eta."""
    pairs = zip(np.asarray(lambda_).tolist(), np.asarray(eta).tolist(), strict=True)
    return np.array([dataclasses.replace(parameters, lambda_=a, eta=b).threshold(joints) for a, b in pairs], np.float32)


def precision_of(
    objective: Objective, parameters: PoseNMSParameters, *, counts: list[Count] | None = None
) -> Float[np.ndarray, "f"]:
    """The average precision of one setting; eta may be infinite, so that every pose stays."""
    definitions = _definitions(parameters)
    tables = make_tables(objective, np.array([parameters.sigma1]), np.array([parameters.sigma2]), definitions)
    eta = np.array([parameters.threshold(objective.joints)], np.float32)
    settings = Settings(np.zeros(1, int), np.zeros(1, int), np.array([parameters.lambda_], np.float32), eta)
    counts = [objective.count()] if counts is None else counts
    return average_precisions(objective, tables, settings, counts, definitions)[:, 0, 0]


@dataclasses.dataclass(frozen=True)
class EtaSweep:
    """Average precision as a function of eta, exactly: ``values[n]`` from ``edges[n - 1]`` up to ``edges[n]``."""

    edges: Float[np.ndarray, "m"]  # rising, in the unit of ``PoseNMSParameters.eta_scale``
    values: Float[np.ndarray, "n"]  # one more than edges
    largest: float  # the largest possible similarity, in the same unit

    def best(self) -> tuple[float, float]:
        """The highest value, and the middle of the widest stretch of eta on which it is reached."""
        top = np.concatenate([[False], self.values >= self.values.max() - _SAME, [False]])
        starts, stops = (np.flatnonzero(top[1:] & ~top[:-1]), np.flatnonzero(top[:-1] & ~top[1:]))
        low, high = min([0.0, *self.edges[:1]]), max([self.largest, *self.edges[-1:]])
        ends = np.concatenate([[low], self.edges, [high]])
        low, high = ends[starts], ends[stops]
        widest = int(np.argmax(high - low))
        # An edge may lie beyond the largest similarity by rounding.
        return float(self.values.max()), float(min((low[widest] + high[widest]) / 2, self.largest))


def sweep_eta(objective: Objective, parameters: PoseNMSParameters, *, count: Count | None = None) -> EtaSweep:
    """Every value that average precision takes as eta changes, the other three fixed.

    Args:
        objective: what is counted.
        parameters: all but eta.
        count: over which pictures; by default over all.
    """
    definitions = _definitions(parameters)
    tables = make_tables(objective, np.array([parameters.sigma1]), np.array([parameters.sigma2]), definitions)
    edges = eta_edges(objective, tables, parameters.lambda_, definitions).astype(np.float64)
    # Tried between the edges, so that rounding decides nothing.
    ends = np.concatenate([edges[:1] - 2, edges, edges[-1:] + 2]) if len(edges) else np.array([-1.0, 1.0])
    between = (ends[:-1] + ends[1:]) / 2
    # As many as a power of two, so that few shapes are compiled.
    tried = np.pad(between, (0, 2 ** math.ceil(math.log2(len(between))) - len(between)), "edge").astype(np.float32)
    zero, lambda_ = np.zeros(1, int), np.full(len(tried), parameters.lambda_, np.float32)
    count = objective.count() if count is None else count
    settings = Settings(zero, zero, lambda_, tried)
    values = average_precisions(objective, tables, settings, [count], definitions)[0, 0, : len(between)]
    unit = _with_eta(parameters, 1.0).threshold(objective.joints)
    return EtaSweep(edges / unit, values, (1 + parameters.lambda_) * objective.joints / unit)


def _with_eta(parameters: PoseNMSParameters, eta: float) -> PoseNMSParameters:
    return dataclasses.replace(parameters, eta=eta)


@dataclasses.dataclass(frozen=True)
class Fit:
    """What ``fit_pose_nms`` finds. Values are average precisions, on all pictures unless they say otherwise."""

    parameters: PoseNMSParameters  # learned
    value: float  # of the learned ones
    given: float  # of those that the search was given
    nobody: float  # where no pose is eliminated
    grid: Grid
    values: Float[np.ndarray, "a b c d"]  # of every place of the grid
    path: tuple[Step, ...]  # the paper's search from the parameters given
    ends: tuple[float, ...]  # what the paper's search reaches from places drawn at random
    fold: Int[np.ndarray, "i"]  # of each picture
    learned_without: tuple[PoseNMSParameters, ...]  # for each fold, from all pictures of the others
    held_out: float | None  # with each picture's poses eliminated by what was learned without it


def fit_pose_nms(
    objective: Objective,
    *,
    parameters: PoseNMSParameters = DEFAULT,
    grid: Grid | None = None,
    folds: int = 5,
    starts: int = 100,
    seed: int = 0,
    progress: Progress = _quiet,
) -> Fit:
    """Learns the four parameters: every place of a grid, then eta exactly; the same without each fold of the pictures.

    Args:
        objective: what is maximised.
        parameters: the definitions, and where the paper's search starts; merging is switched off, and eta becomes a
            share of the largest similarity, see ``learnable``.
        grid: the values to try; by default ``default_grid``.
        folds: of the pictures, for an honest value: what is learned without a fold is applied to it. 0 for none.
        starts: random places that the paper's search is started from besides.
        seed: of folds and starts.
        progress: is given the chunks of settings as they are done.

    Raises:
        ValueError: more folds than pictures, or one fold.
    """
    names, picture = np.unique(objective.together, return_inverse=True)
    if folds and not 2 <= folds <= len(names):
        raise ValueError(f"expected from 2 to {len(names)} folds (the number of pictures), got {folds}")
    parameters = learnable(parameters, objective.joints)
    grid = default_grid(parameters) if grid is None else grid
    rng = np.random.default_rng(seed)
    fold = (rng.permutation(len(names)) % max(folds, 1))[picture]
    counts = [objective.count(), *_counts_without(objective, fold, folds)]
    tried = try_grid(objective, grid, parameters, counts=counts, progress=progress)
    learned = [
        _refined(objective, grid, values, count, parameters) for values, count in zip(tried, counts, strict=True)
    ]
    random = zip(*(rng.integers(size, size=starts).tolist() for size in grid.shape), strict=True)
    plane = planes_of(tried[0])
    return Fit(
        parameters=learned[0],
        value=_precision(objective, learned[0]),
        given=_precision(objective, parameters),
        nobody=_precision(objective, _keeping_all(parameters)),
        grid=grid,
        values=tried[0],
        path=alternate(plane, grid.nearest(parameters)),
        ends=tuple(alternate(plane, start)[-1].value for start in random),
        fold=fold,
        learned_without=tuple(learned[1:]),
        held_out=_held_out(objective, learned[1:], fold) if folds else None,
    )


def _counts_without(objective: Objective, fold: Int[np.ndarray, "i"], folds: int) -> list[Count]:
    """Counting over all folds but one, for each, in arrays of the same shape."""
    counts = [objective.count(fold != number) for number in range(folds)]
    room, worth = (max((getattr(c, name).shape[1] for c in counts), default=0) for name in ("row", "worth"))
    return [objective.count(fold != number, room=room, worth=worth) for number in range(folds)]


def best_place(values: Float[np.ndarray, "a b c d"]) -> tuple[int, ...]:
    """The place of the highest value; of equal ones that which is nearest to the middle of them all."""
    places = np.argwhere(values >= values.max() - _SAME)
    middle = int(((places - places.mean(0)) ** 2).sum(1).argmin())
    return tuple(places[middle].tolist())


def _refined(
    objective: Objective, grid: Grid, values: np.ndarray, count: Count, parameters: PoseNMSParameters
) -> PoseNMSParameters:
    """The best place of the grid, with the best of all values of eta."""
    found = grid.at(best_place(values), parameters)
    value, eta = sweep_eta(objective, found, count=count).best()
    if value <= values.max() + _SAME:
        return found
    refined = _with_eta(found, eta)
    # A stretch of eta may be narrower than its rounding as a share.
    return refined if precision_of(objective, refined, counts=[count])[0] > values.max() + _SAME else found


def _keeping_all(parameters: PoseNMSParameters) -> PoseNMSParameters:
    """The pose NMS that leaves nobody out, for any reason."""
    never: dict[str, Any] = {"eta": math.inf, "eta_scale": "absolute", "criterion": "similarity"}
    return dataclasses.replace(parameters, **never, match_joints=0, min_best=0.0)


def _precision(objective: Objective, parameters: PoseNMSParameters) -> float:
    return float(precision_of(objective, parameters)[0])


def _held_out(objective: Objective, learned: list[PoseNMSParameters], fold: Int[np.ndarray, "i"]) -> float:
    places = np.arange(len(learned))
    columns = {name: np.array([getattr(each, name) for each in learned]) for name in NAMES}
    definitions = _definitions(learned[0])
    tables = make_tables(objective, columns["sigma1"], columns["sigma2"], definitions)
    eta = _absolute(columns["lambda_"], columns["eta"], learned[0], objective.joints)
    settings = Settings(places, places, columns["lambda_"].astype(np.float32), eta)
    return precision_by_picture(objective, tables, settings, fold, objective.count(), definitions)
