"""Settings of every test: four fake CPU devices, shape checks at run time, no silent rank promotion."""

import os
from pathlib import Path

# Programs that a command keeps are not those that a test should run.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Annotations with shapes are checked while the tests run; users pay nothing.
install_import_hook("rmpe_jax", "beartype.beartype")
settings.register_profile("suite", max_examples=30, deadline=None, derandomize=True, database=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Frees what a file of tests compiled: each program takes a dozen memory maps, of which Linux gives 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture
def key(request):
    """A PRNG key of the test's own."""
    return jax.random.key(sum(request.node.name.encode()))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with LSPET and COCO pictures: RMPE_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("RMPE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "lspet").is_dir() or not (folder / "coco").is_dir():
        pytest.skip(f"no real data: {folder} has no folders lspet and coco")
    return folder


@pytest.fixture(scope="session")
def tiny_experiment():
    """Settings of the smallest network that the tests predict and train with."""
    from rmpe_jax.config import DataConfig, Experiment, HourglassConfig

    model = HourglassConfig(stacks=1, features=8, depth=1, input_size=(32, 32))
    return Experiment(name="tiny", model=model, data=DataConfig(canvas=48, min_joints=1))


@pytest.fixture(scope="session")
def tiny_weights(tiny_experiment):
    """Untrained weights of the smallest network."""
    from rmpe_jax.models.hourglass import init_hourglass
    from rmpe_jax.pretrained import Weights

    joints = tiny_experiment.joints.size
    return Weights(tiny_experiment, init_hourglass(jax.random.key(0), tiny_experiment.model, joints=joints))


@pytest.fixture(scope="session")
def tiny_estimator(tiny_weights):
    """The smallest network ready to use, without NMS: a pose for every usable box."""
    from rmpe_jax.predict.detectors import detect_with_hog
    from rmpe_jax.predict.estimator import Estimator

    return Estimator(tiny_weights, detector=detect_with_hog, batch=4, nms=None, flip_test=False)
