"""Phase 2 of RMPE: the estimator of phase 1 learns from boxes as a detector gives them.

    rmpe train experiments/rmpe_2_proposals.py --set data.lspet=LSPET

The original: 20 epochs at a rate of 2.5e-4, then 10 at 0.5e-4. Sizes as in phase 1, from which the weights must come.
"""

import dataclasses
import runpy
from pathlib import Path

from rmpe_jax.config import Experiment

_first: Experiment = runpy.run_path(str(Path(__file__).with_name("rmpe_1_sppe.py")))["experiment"]
experiment = dataclasses.replace(
    _first,
    name="rmpe-2-proposals",
    start="runs/rmpe-1-sppe/rmpe-1-sppe.safetensors",
    augment=dataclasses.replace(_first.augment, proposals="harsh"),
    optim=dataclasses.replace(_first.optim, steps=1500, learning_rate=1e-3),
)
