"""The shipped single-person estimator: one hourglass network for LSPET's 14 and COCO's 17 joints.

Reproduces no row of a paper: it shows that the method trains, on the public pictures at hand, and gives ``rmpe
predict`` its default weights.

    rmpe train experiments/hourglass_lspet_coco.py --set data.lspet=LSPET --set data.coco=COCO

Two sizes, one recipe: as it stands for two CPU cores; on a GPU take the paper's size with

    --set model.features=256 --set model.input_size=256,256 --set data.canvas=384 --set optim.batch=64
    --set optim.steps=30000 --set model.dtype=bfloat16

Hardware, hours and measured figures: experiments/README.md.
"""

from rmpe_jax.config import AugmentConfig, DataConfig, Experiment, HourglassConfig, OptimConfig, RunConfig

experiment = Experiment(
    name="hourglass-lspet-coco",
    skeleton="coco_lsp_19",
    model=HourglassConfig(stacks=2, features=64, input_size=(128, 128), mean=(0.44, 0.44, 0.43)),
    data=DataConfig(extension=0.2, canvas=192, canvas_margin=1.4, coco_repeat=2),
    augment=AugmentConfig(scale=0.15, shift=0.05, rotation=20.0, rotation_probability=0.5, colour=0.2),
    optim=OptimConfig(steps=12000, batch=16, learning_rate=2e-3, warmup=300, average=0.999),
    run=RunConfig(evaluate_every=1500, save_every=500),
)
