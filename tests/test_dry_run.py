"""What one step takes, told without training."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jaxtyping
import numpy as np
import pytest
import tiny

from rmpe_jax.cli import main
from rmpe_jax.config import DataConfig, Experiment, HourglassConfig, OptimConfig, PersonDetectorConfig, override
from rmpe_jax.data.scenes import training_scenes
from rmpe_jax.models import person_detector
from rmpe_jax.models.person_detector import detector_shapes
from rmpe_jax.models.rmpe import init_estimator
from rmpe_jax.train import mosaics
from rmpe_jax.train.dry_run import dry_run, step_flops
from rmpe_jax.train.plan import TrainingError, plan_run

EXPERIMENT = Experiment(
    name="dry",
    skeleton=tiny.SKELETON,
    model=HourglassConfig(stacks=2, features=8, depth=1, input_size=(16, 16)),
    data=DataConfig(synthetic=3, canvas=tiny.CANVAS),
    optim=OptimConfig(steps=10, batch=4),
)


@pytest.fixture(autouse=True)
def unchecked_records():
    """To lower a function JAX fills records with descriptions of arrays, which the checks of the tests refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def flops(*assignments) -> float:
    found = step_flops(plan_run(override(EXPERIMENT, assignments)), tiny.random_batch())
    assert found is not None
    return found


@pytest.mark.slow
def test_loops_and_parts_do_not_hide_operations():
    plain = flops()
    assert flops("model.scan=true") == plain
    assert flops("optim.accumulate=1", "model.remat=true") > plain
    assert flops("model.stacks=4") > 1.5 * plain


@pytest.mark.slow
def test_convolutions_make_most_of_the_operations():
    # One 7x7 convolution of the stem, at half the resolution, two operations for each product, three passes.
    stem = 3 * 2 * 7 * 7 * 3 * 2 * 8 * 8 * 4
    wide = flops("model.features=64", "model.stacks=1")
    assert 64 / 8 * stem < wide
    # Nearly all layers have features on both sides.
    assert 3.4 < flops("model.features=128", "model.stacks=1") / wide < 4.1


@pytest.mark.slow
def test_a_dry_run_tells_of_one_step_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = dry_run(EXPERIMENT)
    variables = init_estimator(jax.random.key(0), EXPERIMENT)
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert found.devices == 4 and found.epochs == pytest.approx(40 / found.people)
    # Weights, their average and Adam's two moments.
    assert found.argument_bytes is not None and found.argument_bytes > 4 * 4 * found.parameters
    numbers = [found.flops, found.temporary_bytes, found.compile_seconds, found.images_per_second]
    assert all(np.isfinite(numbers)) and min(numbers) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_dry_run_of_a_person_detector_counts_four_scenes_to_an_example(monkeypatch):
    for module in (mosaics, person_detector):
        monkeypatch.setattr(module, "_LEVELS", 1)  # quicker to compile
    model = PersonDetectorConfig(
        stacks=1, features=8, depth=1, input_size=(32, 32), sides=(32,), lengths=(8.0, 24.0)
    )  # fmt: skip
    found = dry_run(dataclasses.replace(EXPERIMENT, model=model, data=DataConfig(synthetic=8, canvas=32)))
    shapes = jax.tree.leaves(detector_shapes(model)["params"])
    assert found.parameters == sum(shape.size for shape in shapes)
    # Ten steps of four examples.
    scenes = len(training_scenes(DataConfig(synthetic=8)))
    assert found.people == scenes and found.epochs == pytest.approx(160 / scenes)
    numbers = [found.flops, found.temporary_bytes, found.compile_seconds, found.images_per_second]
    assert all(np.isfinite(numbers)) and min(numbers) > 0 and found.read_per_second > 0


@pytest.mark.slow
def test_the_command_prints_a_line_for_each_number(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.py").write_text(
        "from rmpe_jax.config import *\n"
        "experiment = Experiment(skeleton='lsp_14', data=DataConfig(synthetic=3, canvas=24), "
        "model=HourglassConfig(stacks=1, features=8, depth=1, input_size=(16, 16)), optim=OptimConfig(batch=4))\n"
    )
    assert main(["train", "e.py", "--dry-run", "--mapping", "sharded"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["parameters", "people", "devices", "a step", "memory of each device", "compiled in", "expected"]
    assert [line.split(":")[0] for line in lines] == [*names, "pictures read"]
    assert "GFLOP" in lines[3] and "images/s" in lines[6]
    assert [path.name for path in tmp_path.iterdir()] == ["e.py"]


def test_no_ratio_is_told_where_the_losses_were_not_compared(monkeypatch):
    path = Path(__file__).parents[1] / "benchmarks" / "train_step.py"
    monkeypatch.syspath_prepend(path.parent)
    step = SimpleNamespace(**runpy.run_path(str(path)))

    def incomparable(*_):
        raise RuntimeError("the twin lost its device")

    made = {
        "torch_run": lambda *_: (lambda count: 1.0, SimpleNamespace(__version__="2")),
        "our_run": lambda *_: (lambda count: 1.0, {}),
        "first_losses": incomparable,
        "forward_flops": lambda config: 1.0,
    }
    step.measured.__globals__.update(made)
    options = SimpleNamespace(compile_torch=None, all_cores=True)
    figures = step.measured(EXPERIMENT.model, 1, 1, options)
    assert figures["ratio_torch"] is None and "torch_images_per_second" not in figures
    assert figures["ratio_torch_reason"] == "RuntimeError: the twin lost its device"
    assert figures["images_per_second"] > 0


def test_what_would_stop_a_run_stops_a_dry_run_before_anything_is_compiled():
    with pytest.raises(TrainingError, match="6 people cannot be split evenly over 4 devices"):
        dry_run(override(EXPERIMENT, ["optim.batch=6"]))
