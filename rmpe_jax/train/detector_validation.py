"""What is looked at while a person detector is trained: how many validation people it finds, and boxes drawn."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.config import Experiment
from rmpe_jax.data.pipeline import Loader, rows_of
from rmpe_jax.data.scenes import SceneCanvases, SceneCutting, scenes_in
from rmpe_jax.data.sets import read_data
from rmpe_jax.draw import contact_sheet, draw_boxes
from rmpe_jax.geometry.boxes import box_iou
from rmpe_jax.models.person_detector import detect_people
from rmpe_jax.train.state import TrainState
from rmpe_jax.train.validation import first_local

# Scenes that are measured, at even distances in the validation set, and that are drawn.
_MEASURED, _DRAWN = 120, 8
# How many boxes of a scene may find its people, those of the highest scores: the labelled person of a picture is not
# always alone.
_BEST = 5
# Boxes of a lower score are not drawn.
_SURE = 0.3
_FOUND, _LABELLED = (255, 140, 60), (90, 220, 90)


class DetectorValidation:
    """Finds people with a run's average weights, on this process's first device."""

    measure, column = "people found on validation pictures", "validation_recall"

    def __init__(self, experiment: Experiment, loader: Loader, *, workers: int, report: Callable[[str], None]):
        """Reads scenes of LSPET's validation pictures, or else drawn ones, where the experiment trains on such.

        Args:
            experiment: the settings; the model is a person detector.
            loader: of the training scenes, open; the first of them are drawn where there are none for validation.
            workers: how many decode pictures at a time.
            report: receives a line for each picture that cannot be read.
        """
        settings: dict[str, Any] = {"config": experiment.model, "threshold": 0.0, "capacity": 100}
        find = partial(detect_people, size=(experiment.data.canvas, experiment.data.canvas), **settings)
        self._find = jax.jit(lambda variables, image: find(variables, image))
        self.scenes = _validation_scenes(experiment, workers, report)
        few = loader.load(np.arange(min(_DRAWN, len(loader)))) if self.scenes is None else self.scenes
        self._samples = rows_of(few, slice(_DRAWN))

    @property
    def scored(self) -> bool:
        """Whether there are validation scenes."""
        return self.scenes is not None

    def weights_of(self, state: TrainState) -> Any:
        """The average weights of a state on the device."""
        return jax.tree.map(jnp.asarray, first_local(state.average))

    def score(self, weights: Any) -> float | None:
        """The share of labelled people whom one of the five best boxes covers with an IoU of at least 0.5."""
        if self.scenes is None:
            return None
        found, people = 0, 0
        for image, boxes, person in zip(self.scenes.canvas, self.scenes.boxes, self.scenes.person, strict=True):
            best = np.asarray(self._find(weights, image).xyxy)[:_BEST]
            overlap = np.asarray(box_iou(jnp.asarray(boxes[person])[:, None], jnp.asarray(best)[None]))
            found += int((overlap.max(1, initial=0) >= 0.5).sum())
            people += int(person.sum())
        return found / max(people, 1)

    def sheet(self, weights: Any) -> np.ndarray:
        """The first scenes with the boxes found, and in green those labelled."""
        tiles = []
        for image, boxes, person in zip(self._samples.canvas, self._samples.boxes, self._samples.person, strict=True):
            found = self._find(weights, image)
            sure = np.asarray(found.valid & (found.score >= _SURE))
            tile = draw_boxes(image, boxes[person], colour=_LABELLED)
            tiles.append(draw_boxes(tile, np.asarray(found.xyxy)[sure], colour=_FOUND))
        return contact_sheet(tiles)


def _validation_scenes(experiment: Experiment, workers: int, report: Callable[[str], None]) -> SceneCanvases | None:
    name = next((name for name in ("lspet", "synthetic") if getattr(experiment.data, name)), None)
    if name is None:
        return None
    folder = experiment.data.lspet if name == "lspet" else "."
    scenes = [scene for scene in scenes_in(read_data(name, folder, "val"), complete=name == "synthetic")]
    scenes = [scene for scene in scenes if scene.around is None]
    scenes = scenes[:: -(-len(scenes) // _MEASURED) or 1]
    if not scenes:
        return None
    cutting = SceneCutting(experiment.data)
    with Loader(scenes, experiment.data, cutting=cutting, workers=workers, memory=0.0, report=report) as loader:
        return loader.load(np.arange(len(loader)))
