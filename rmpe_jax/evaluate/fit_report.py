"""Proposals generators fitted, compared with the detections of people set aside, and drawn on one sheet."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rmpe_jax.evaluate.compare_proposals import compare_boxes, pose_gain
from rmpe_jax.evaluate.fit_proposals import FoundPeople, fit_proposals, fit_scored, held_out
from rmpe_jax.evaluate.proposals_sheet import draw_mixtures, draw_offsets, draw_scored
from rmpe_jax.proposals.generators import Generator
from rmpe_jax.skeleton import Skeleton

# Of the people with detections, whom no generator learns from.
HELD_OUT = 0.2


def fit_and_compare(
    people: FoundPeople,
    skeleton: Skeleton,
    kinds: Sequence[str] = ("pgpg", "dpg"),
    *,
    poses: tuple[np.ndarray, np.ndarray] | None = None,
    atoms: int = 24,
    steps: int = 2000,
    seed: int = 0,
    progress: Callable[[str], Callable[[Iterable[Any]], Iterable[Any]]] = lambda title: iter,
) -> tuple[dict[str, tuple[Any, dict[str, Any]]], dict[str, list[float]], np.ndarray]:
    """Fits generators to four fifths of the people who have detections, and compares them on the others.

    Args:
        people: with their detections.
        skeleton: of the people.
        kinds: "pgpg", "dpg" or both.
        poses: to cluster instead of these people's, see ``fit_proposals``.
        atoms: number of PGPG's atomic poses.
        steps: of DPG's training.
        seed: of everything random.
        progress: gives for a title what wraps a loop.

    Returns:
        By kind the generator and what there is to say about it; how far boxes are from the detector's, by name
        (``compare_boxes``); and the sheet: atomic poses with their boxes, what DPG's network sees, clouds of offsets.

    Raises:
        DataError: too few people or detections.
        MissingExtraError: scikit-learn is not installed.
        RmpeError: the training of DPG diverged.
    """
    learnt, aside = held_out(people, HELD_OUT, seed=seed)
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    pictures = []
    if "pgpg" in kinds:
        shown = progress("atomic poses")
        mixtures, about = fit_proposals(learnt, skeleton, poses=poses, atoms=atoms, seed=seed, progress=shown)
        found["pgpg"] = mixtures, about
        about["pose_gain"] = pose_gain(aside, mixtures, seed=seed)
        pictures.append(draw_mixtures(mixtures, learnt, own=about["own_mixture"]))
    if "dpg" in kinds:
        scored, about = fit_scored(learnt, skeleton, steps=steps, seed=seed, progress=progress("steps of DPG"))
        found["dpg"] = scored, about
        pictures.append(draw_scored(aside, scored))
    generators: dict[str, Generator] = {name: generator for name, (generator, _) in found.items()}
    distances, drawn = compare_boxes(generators, learnt, aside, skeleton, seed=seed)
    for name, (_, about) in found.items():
        about |= {"held_out": len(aside.offsets), "distances": distances[name]}
    pictures.append(draw_offsets(aside.offsets, drawn))
    return found, distances, _stacked(pictures)


def _stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    width = max(picture.shape[1] for picture in pictures)
    dark = [np.full((len(picture), width - picture.shape[1], 3), 30, np.uint8) for picture in pictures]
    return np.concatenate([np.concatenate(pair, 1) for pair in zip(pictures, dark, strict=True)])
