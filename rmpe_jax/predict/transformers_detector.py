"""A human detector of Hugging Face's transformers, such as RT-DETR or DETR: ``detect(image) -> Boxes``.

The model runs in PyTorch, on a GPU where PyTorch sees one. Weights are read from safetensors alone, and no code of a
repository is run.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from rmpe_jax.errors import MissingExtraError
from rmpe_jax.predict.detectors import THRESHOLD, DetectorError, best_boxes
from rmpe_jax.records import Boxes


class TransformersDetector:
    """A detector by name or folder; called with a picture it gives the people's boxes, best first."""

    def __init__(
        self, name: str | Path, *, person: int | None = None, threshold: float = THRESHOLD, capacity: int = 100
    ):
        """Reads the model; one that is not on this machine is downloaded.

        Args:
            name: of the hub, such as "PekingU/rtdetr_r50vd", or a folder.
            person: number of the class person; by default the class whose label is "person".
            threshold: boxes of a lower score are left out.
            capacity: most boxes of a picture; the best are kept.

        Raises:
            DetectorError: it is not there, has no detection model, or no class person.
            MissingExtraError: transformers or PyTorch is not installed.
        """
        try:
            import torch  # pyright: ignore[reportMissingImports]
            import transformers  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtraError(
                error.name or "transformers", "transformers", "a detector of transformers"
            ) from None
        self.name, self._threshold, self.capacity = str(name), threshold, capacity
        self._torch: Any = torch
        try:
            self._prepare: Any = transformers.AutoImageProcessor.from_pretrained(self.name)
            model: Any = transformers.AutoModelForObjectDetection.from_pretrained(self.name, use_safetensors=True)
        except (OSError, ValueError) as error:
            line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise DetectorError(f"{self.name}: no detector that transformers reads: {line}") from None
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self._device)
        labels: dict[int, str] = model.config.id2label
        people = [number for number, label in labels.items() if str(label).lower() == "person"]
        if person is None and not people:
            shown = ", ".join(map(str, list(labels.values())[:5]))
            raise DetectorError(f"{self.name}: none of its classes is called person ({shown}, ...): give its number")
        self._person = people[0] if person is None else person

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> Boxes:
        """People's boxes.

        Args:
            image: uint8 RGB.
        """
        size = self._torch.tensor([image.shape[:2]])
        with self._torch.inference_mode():
            inputs = self._prepare(images=image, return_tensors="pt", input_data_format="channels_last")
            outputs = self._model(**inputs.to(self._device))
            found = self._prepare.post_process_object_detection(outputs, threshold=0.0, target_sizes=size)[0]
        corners, score, kind = (found[name].float().cpu().numpy() for name in ("boxes", "scores", "labels"))
        # Their edges lie between pixels.
        settings = {"person": self._person, "threshold": self._threshold, "capacity": self.capacity}
        return best_boxes(corners - 0.5, score, kind, image.shape[:2], **settings)
