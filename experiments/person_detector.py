"""The shipped person detector: a small hourglass that finds people's centres and boxes (models/person_detector.py).

Reproduces no row of a paper: RMPE takes somebody else's detector (SSD). It gives ``rmpe predict`` boxes without any
download, from the public pictures at hand: COCO's with everybody labelled (or nearly: see the model card), LSPET's with
one person each (what is found elsewhere in them counts neither as right nor as wrong), and pictures without people.

    rmpe train experiments/person_detector.py --set data.lspet=LSPET --set data.coco=COCO --set data.negatives=FOLDER

It starts from the shipped single-person estimator, whose first layers know what limbs look like. Two sizes, one recipe:
as it stands for two CPU cores; on a GPU take

    --set start= --set model.features=152 --set optim.batch=64 --set optim.steps=30000 --set model.dtype=bfloat16

The shipped weights are of the size for two CPU cores, which went on twice for 3,000 steps, each time from the weights
before at half the rate:

    --out OTHER --set start=BEFORE.safetensors --set optim.steps=3000 --set optim.learning_rate=1e-3
    --set optim.warmup=100

Hardware, hours and measured figures: experiments/README.md.
"""

from rmpe_jax.config import AugmentConfig, DataConfig, Experiment, OptimConfig, PersonDetectorConfig, RunConfig

experiment = Experiment(
    name="person-detector",
    start="hourglass-lspet-coco",
    model=PersonDetectorConfig(
        stacks=2, features=64, input_size=(128, 128), lengths=(12, 128), sides=(384, 192, 128), mean=(0.44, 0.44, 0.43)
    ),
    data=DataConfig(canvas=256, coco_repeat=8, negatives_repeat=8),
    augment=AugmentConfig(mosaic=0.6, colour=0.3),
    optim=OptimConfig(steps=6000, batch=16, learning_rate=2e-3, warmup=300, clip=10.0, average=0.998),
    run=RunConfig(evaluate_every=1000, save_every=250),
)
