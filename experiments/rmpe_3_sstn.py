"""Phase 3 of RMPE: STN in front, SDTN behind, and the frozen parallel SPPE beside, at a lower rate.

    rmpe train experiments/rmpe_3_sstn.py --set data.lspet=LSPET

The original: 20 epochs at a rate of 0.5e-4, then 10 at 0.1e-4; a ResNet-18 (``localization.kind=resnet18``) and a
parallel SPPE of four stacks. Here the parallel SPPE is that of phase 1. Sizes as in phase 1. The original's
patches come with ``--set augment.patch=0.3``. Theta learns much faster by differences, from the parallel SPPE alone:

    --set localization.parallel_step=0.15 --set localization.paths=parallel --set localization.theta=scale_translation
"""

import dataclasses
import runpy
from pathlib import Path

from rmpe_jax.config import Experiment, LocalizationConfig

_second: Experiment = runpy.run_path(str(Path(__file__).with_name("rmpe_2_proposals.py")))["experiment"]
experiment = dataclasses.replace(
    _second,
    name="rmpe-3-sstn",
    start="runs/rmpe-2-proposals/rmpe-2-proposals.safetensors",
    # Adam moves each of the 1,024 weights behind one number of theta by the rate: all together they would move theta by
    # a quarter in one step.
    localization=LocalizationConfig(kind="small", rate=0.05, parallel="runs/rmpe-1-sppe/rmpe-1-sppe.safetensors"),
    optim=dataclasses.replace(_second.optim, steps=1500, learning_rate=5e-4),
)
