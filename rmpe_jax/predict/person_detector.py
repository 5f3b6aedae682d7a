"""The built-in person detector: ``detect(image) -> Boxes``, compiled, with weights that come with the package."""

from functools import partial
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from rmpe_jax.config import PersonDetectorConfig
from rmpe_jax.models.person_detector import detect_people
from rmpe_jax.predict.detectors import THRESHOLD, DetectorError, check_image
from rmpe_jax.pretrained import DEFAULT_DETECTOR, Weights, load_weights
from rmpe_jax.records import Boxes


class PersonDetector:
    """A detector trained by ``rmpe train``; called with a picture it gives the people's boxes, best first."""

    #: See ``detectors.needed_score``; with the shipped weights it leaves as many poses on people as elsewhere.
    needed_score = 0.12

    def __init__(
        self,
        weights: Weights | str | Path = DEFAULT_DETECTOR,
        *,
        threshold: float = THRESHOLD,
        capacity: int = 100,
    ):
        """Compiles nothing yet; the first picture does.

        Args:
            weights: the trained network, or its shipped name or path.
            threshold: boxes of a lower score are left out.
            capacity: most boxes of a picture; the best are kept.

        Raises:
            DetectorError: the weights are of another kind of network.
            WeightsError: they cannot be read.
        """
        self.weights = weights if isinstance(weights, Weights) else load_weights(weights)
        config = self.weights.experiment.model
        if not isinstance(config, PersonDetectorConfig):
            raise DetectorError(
                f"{self.weights.experiment.name}: weights of kind {config.kind}, not of a person detector"
            )
        self.capacity, self._config = capacity, config
        self._variables = jax.tree.map(jnp.asarray, self.weights.variables)
        self._detect = jax.jit(partial(detect_people, config=config, threshold=threshold, capacity=capacity))

    def __call__(self, image: np.ndarray) -> Boxes:
        """People's boxes, as host arrays without padding.

        Args:
            image: uint8 RGB.

        Raises:
            ValueError: the picture has another shape or type.
        """
        check_image(image)
        # Pictures of every size become one square on the host, so that one program is compiled.
        longest, (height, width) = max(self._config.sides), image.shape[:2]
        scale = longest / max(height, width)
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        square = np.zeros((longest, longest, 3), np.uint8)
        square[: size[0], : size[1]] = cv2.resize(image, size[::-1], interpolation=way)
        found = jax.tree.map(np.asarray, self._detect(self._variables, jnp.asarray(square), jnp.array(size)))
        grown = np.tile([width / size[1], height / size[0]], 2)
        boxes = (found.xyxy[found.valid] + 0.5) * grown - 0.5
        return Boxes.from_arrays(boxes, found.score[found.valid])
