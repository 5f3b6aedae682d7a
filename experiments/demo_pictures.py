"""Prints the quoted paths of the two photographs of people that come with scikit-image, for `make demo`."""

from pathlib import Path

import skimage.data

folder = Path(skimage.data.__file__).parent
for name in ("astronaut.png", "camera.png"):
    print(f'"{folder / name}"')
