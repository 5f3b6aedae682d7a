"""Prints the paths of the two photographs of people that come with scikit-image, for `make demo`."""

from pathlib import Path

import skimage.data

folder = Path(skimage.data.__file__).parent
print(folder / "astronaut.png", folder / "camera.png")
