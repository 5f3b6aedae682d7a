"""Other people's hourglasses, and torchvision's ResNet-18, as weights of this package.

Layouts are named after their repositories: ``bearpaw`` (pytorch-pose; ``anibali`` has the same arrays), whose stem is
wider, and ``princeton`` (pytorch_stacked_hourglass), whose network is that of Newell and of RMPE. Both are pre-activation
throughout and compute what ``models.hourglass`` computes, so that arrays are copied one by one: kernels from (out, in,
height, width) to (height, width, in, out), 1x1 convolutions to matrices.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rmpe_jax.config import Experiment, HourglassConfig
from rmpe_jax.errors import RmpeError
from rmpe_jax.models.hourglass import init_hourglass
from rmpe_jax.models.rmpe import estimator_shapes
from rmpe_jax.pretrained import Weights
from rmpe_jax.skeleton import SKELETONS, skeleton_named
from rmpe_jax.torch_files import read_tensors

LAYOUTS = ("bearpaw", "anibali", "princeton")
#: Mean colour of MPII, which pytorch-pose subtracts (its standard deviation is computed, but not used).
_BEARPAW_MEAN = (0.4404, 0.4440, 0.4327)
# What frameworks wrap around the names of a network's arrays.
_WRAPPERS = re.compile(r"^(module\.|model\.)+")
#: (kind, their name, our path); kind is conv, dense or norm.
_Pair = tuple[str, str, tuple[str, ...]]


class ImportError_(RmpeError):
    """Weights that do not have the layout that was named; the message lists the arrays."""
'''
