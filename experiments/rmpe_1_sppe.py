"""Phase 1 of RMPE: the single-person pose estimator alone, on perfect boxes with mild jitter.

The original starts from an hourglass trained on MPII's single people. As it stands: a small network that two CPU cores
train in minutes, on LSPET; at full size

    --set model.stacks=8 --set model.features=256 --set model.depth=4 --set model.input_size=256,256
    --set data.canvas=512 --set optim.batch=64 --set optim.steps=100000 --set model.dtype=bfloat16

    rmpe train experiments/rmpe_1_sppe.py --set data.lspet=LSPET

Hardware, time and measured figures: experiments/README.md, "Does re-mapping help?".
"""

from rmpe_jax.config import AugmentConfig, DataConfig, Experiment, HourglassConfig, OptimConfig, RunConfig

experiment = Experiment(
    name="rmpe-1-sppe",
    skeleton="lsp_14",
    model=HourglassConfig(stacks=1, features=48, depth=3, input_size=(96, 96), mean=(0.44, 0.44, 0.43)),
    # The canvas holds what the harshest proposal of the later phases can ask for.
    data=DataConfig(extension=0.3, canvas=192, canvas_margin=2.0),
    augment=AugmentConfig(scale=0.1, shift=0.03, rotation_probability=0.0, colour=0.2),
    optim=OptimConfig(steps=4000, batch=16, learning_rate=2e-3, warmup=200, average=0.998, sigma=1.5),
    run=RunConfig(log_every=100, evaluate_every=1000, save_every=1000),
)
