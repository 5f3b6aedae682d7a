"""A small network on drawn people: every part of a run in a few minutes on a CPU, without any data set.

    rmpe train experiments/quickstart.py --dry-run        # what a step takes, in half a minute
    rmpe train experiments/quickstart.py                  # results in runs/quickstart
    tensorboard --logdir runs/quickstart/events           # curves, and predictions on the first people

The network is far too small, and drawn people too simple, for photographs.
"""

from rmpe_jax.config import DataConfig, Experiment, HourglassConfig, OptimConfig, RunConfig

experiment = Experiment(
    name="quickstart",
    model=HourglassConfig(stacks=2, features=32, depth=3, input_size=(128, 128), mean=(0.45, 0.45, 0.45)),
    data=DataConfig(synthetic=200, canvas=160),
    optim=OptimConfig(steps=400, batch=16, learning_rate=2e-3, warmup=20, average=0.99, sigma=1.5),
    run=RunConfig(log_every=20, evaluate_every=100, save_every=100),
)
