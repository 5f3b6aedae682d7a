"""PyTorch's files read without PyTorch, and the networks in them."""

import functools
import pickle
import re
import struct
import zipfile
from typing import Any

import jax
import numpy as np
import pytest
from checks import assert_identical
from safetensors.numpy import save_file

from rmpe_jax.cli import main
from rmpe_jax.config import Experiment, HourglassConfig, LocalizationConfig
from rmpe_jax.models.hourglass import apply_hourglass, hourglass_shapes, init_hourglass
from rmpe_jax.models.localization import apply_localization, localization_shapes
from rmpe_jax.models.rmpe import LOCALIZATION, SPPE, part_of
from rmpe_jax.pretrained import Weights, WeightsError, flatten_variables, load_weights, save_weights
from rmpe_jax.torch_files import TorchFileError, read_tensors
from rmpe_jax.torch_layouts import import_localization, import_weights

JOINTS = 16


# Files as PyTorch writes them, made by hand


class Storage:
    """Pickled as a reference to bytes elsewhere."""

    def __init__(self, key, array, kind):
        self.key, self.array, self.kind = key, array, kind


class Tensor:
    """Pickled as a call of PyTorch's function that makes a tensor of a storage."""

    def __init__(self, storage, size, stride, offset=0):
        self.parts = (storage, offset, size, stride, False, {})

    def __reduce__(self) -> Any:
        return Global("torch._utils", "_rebuild_tensor_v2"), self.parts


class Global:
    """A class or function by its name alone."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError("never called")


class Pickler(pickle._Pickler):
    """Writes what a program that has PyTorch would write."""

    legacy = False

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        more = (None,) if self.legacy else ()
        return ("storage", Global("torch", obj.kind), obj.key, "cpu", obj.array.size, *more)

    def save_global(self, obj, name=None):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        else:
            super().save_global(obj, name)

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.save_global(obj)
        else:
            super().save(obj, save_persistent_id)


def tensor(key, array, kind="FloatStorage"):
    array = np.ascontiguousarray(array)
    stride = tuple(step // array.itemsize for step in array.strides)
    return Tensor(Storage(key, array, kind), array.shape, stride)


def write_archive(path, content, storages, folder="model"):
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(f"{folder}/data.pkl", "w") as file:
            Pickler(file, 2).dump(content)
        for key, array in storages.items():
            archive.writestr(f"{folder}/data/{key}", array.tobytes())
    return path


def write_stream(path, content, storages):
    with path.open("wb") as file:
        for first in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(first, file, 2)
        pickler = Pickler(file, 2)
        pickler.legacy = True
        pickler.dump(content)
        pickle.dump(list(storages), file, 2)
        for array in storages.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())
    return path


def write_state(path, arrays, *, write=write_archive, wrap=""):
    """A checkpoint whose ``state_dict`` has these arrays."""
    storages = {str(number): np.ascontiguousarray(array) for number, array in enumerate(arrays.values())}
    kinds = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage"}
    state = {
        wrap + name: tensor(key, array, kinds[array.dtype.str[1:]])
        for name, (key, array) in zip(arrays, storages.items(), strict=True)
    }
    return write(path, {"epoch": 3, "arch": "hg", "state_dict": state, "best_acc": 0.5}, storages)


ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7), "h": np.array([0.5, 2], np.float16)}


@pytest.mark.parametrize("write", [write_archive, write_stream], ids=["archive", "stream"])
def test_tensors_are_read_from_both_formats(tmp_path, write):
    found = read_tensors(write_state(tmp_path / "c.pth.tar", ARRAYS, write=write))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_views_of_one_storage_are_read_by_their_strides(tmp_path):
    storage = Storage("0", np.arange(12, dtype=np.float32), "FloatStorage")
    content = {"turned": Tensor(storage, (3, 2), (1, 3)), "later": Tensor(storage, (2,), (1,), offset=10)}
    found = read_tensors(write_archive(tmp_path / "c.pt", content, {"0": storage.array}))
    np.testing.assert_array_equal(found["turned"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["later"], [10, 11])


def test_bfloat16_is_read_as_the_upper_half_of_float32(tmp_path):
    bits = (np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    content = {"x": tensor("0", bits, "BFloat16Storage")}
    found = read_tensors(write_archive(tmp_path / "c.pt", content, {"0": bits}))
    np.testing.assert_array_equal(found["x"], np.array([1.5, -2.0], np.float32))


class OldTensor(Tensor):
    """As before PyTorch 0.4: without gradients and hooks."""

    def __reduce__(self):
        # Only its first four parts were there.
        return Global("torch._utils", "_rebuild_tensor"), self.parts[:4]


def test_tensors_of_old_checkpoints_are_read(tmp_path):
    array = ARRAYS["a"]
    content = {"state_dict": {"a": OldTensor(Storage("0", array, "FloatStorage"), (2, 3), (3, 1))}}
    np.testing.assert_array_equal(read_tensors(write_stream(tmp_path / "c.pth", content, {"0": array}))["a"], array)


class Foreign:
    """Would run a command when it is unpickled."""

    def __reduce__(self):
        return Global("os", "system"), ("touch hacked",)


@pytest.mark.parametrize("write", [write_archive, write_stream], ids=["archive", "stream"])
def test_a_foreign_class_is_refused_by_its_name_and_never_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "c.pth", {"state_dict": {}, "hook": Foreign()}, {})
    with pytest.raises(TorchFileError, match=r"c.pth: holds os.system, which is not loaded: only tensors are"):
        read_tensors(path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((4,), (4,), 0), ((2,), (1,), 11), ((2,), (-1,), 3), ((2, 9), (9, 1), 0)]
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, size, stride, offset):
    storage = Storage("0", np.arange(12, dtype=np.float32), "FloatStorage")
    path = write_archive(tmp_path / "c.pt", {"x": Tensor(storage, size, stride, offset)}, {"0": storage.array})
    with pytest.raises(TorchFileError, match="beyond its storage"):
        read_tensors(path)


@pytest.mark.parametrize("write", [write_archive, write_stream], ids=["archive", "stream"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_named(tmp_path, write, share):
    path = write_state(tmp_path / "c.pth", ARRAYS, write=write)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(TorchFileError, match="c.pth: damaged, or not a checkpoint of PyTorch"):
        read_tensors(path)


@pytest.mark.parametrize("content", [[], {}, {"state_dict": {}}, {"a": 1}, 3])
def test_a_file_without_tensors_is_named(tmp_path, content):
    with pytest.raises(TorchFileError, match="holds no state of a model"):
        read_tensors(write_archive(tmp_path / "c.pt", content, {}))


# Hourglasses


def their_names(layout, config):
    """A random network in the names and shapes of a layout, made from our shapes by the mapping's opposite."""
    from rmpe_jax import torch_layouts as module

    rng = np.random.default_rng(0)
    expected = flatten_variables(hourglass_shapes(config, joints=JOINTS))
    layers = (module._princeton if layout == "princeton" else module._bearpaw)(config)
    arrays = {}
    for kind, there, here in layers:
        for theirs, ours in module._arrays_of(kind, there, here):
            if ours in expected:
                array = rng.uniform(0.5, 1.5, expected[ours].shape).astype(np.float32)
                if theirs.endswith("weight") and kind != "norm":
                    array = array.reshape((1, 1, *array.shape) if array.ndim == 2 else array.shape)
                    array = array.transpose(3, 2, 0, 1)
                arrays[theirs] = array
        if kind == "norm":
            arrays[f"{there}.num_batches_tracked"] = np.array(100)
    return arrays


SMALL = {
    "bearpaw": HourglassConfig(stacks=2, features=16, residuals=2, layout="bearpaw", mean=(0.4404, 0.4440, 0.4327)),
    "princeton": HourglassConfig(stacks=2, features=16),
}


@functools.cache
def small(layout):
    return their_names(layout, SMALL[layout])


@pytest.mark.parametrize("layout", SMALL)
@pytest.mark.parametrize("wrap", ["", "module.", "model.module."])
def test_every_array_of_a_layout_finds_its_place(tmp_path, layout, wrap):
    weights = import_weights(write_state(tmp_path / "net.pth.tar", small(layout), wrap=wrap), layout)
    assert weights.experiment.model == SMALL[layout]
    assert (weights.experiment.name, weights.experiment.skeleton) == ("net", "mpii_16")
    found = flatten_variables(weights.variables)
    expected = flatten_variables(hourglass_shapes(SMALL[layout], joints=JOINTS))
    assert {name: array.shape for name, array in found.items()} == {n: s.shape for n, s in expected.items()}
    assert all(array.dtype == np.float32 for array in found.values())
    stem = small(layout)["pre.0.conv.weight" if layout == "princeton" else "conv1.weight"]
    # out, in, height, width there; height, width, in, out here.
    assert found["params/Conv_0/kernel"][2, 5, 1, 3] == stem[3, 1, 2, 5]


@pytest.mark.parametrize(
    ("stacks", "layout", "parameters"), [(1, "bearpaw", 3_586_960), (8, "bearpaw", 25_594_624), (8, "rmpe", 25_434_112)]
)
def test_networks_have_the_published_number_of_parameters(stacks, layout, parameters):
    shapes = hourglass_shapes(HourglassConfig(stacks=stacks, layout=layout), joints=JOINTS)["params"]
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == parameters


def test_half_precision_and_safetensors_are_read_too(tmp_path):
    halves = {name: np.ascontiguousarray(array, np.float16) for name, array in small("princeton").items() if array.ndim}
    save_file(halves, tmp_path / "half.safetensors")
    weights = import_weights(tmp_path / "half.safetensors", "princeton")
    again = import_weights(write_state(tmp_path / "half.pth", halves), "princeton")
    ours, theirs = (flatten_variables(found.variables) for found in (weights, again))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])
    assert weights.variables["params"]["Conv_0"]["kernel"].dtype == np.float32


def test_princeton_s_unused_shortcuts_are_left_out(tmp_path):
    arrays = small("princeton") | {
        "pre.3.skip_layer.conv.weight": np.ones((8, 8, 1, 1), np.float32),
        "pre.3.skip_layer.conv.bias": np.ones(8, np.float32),
    }
    plain = import_weights(write_state(tmp_path / "a.pth", small("princeton")), "princeton")
    assert_identical(import_weights(write_state(tmp_path / "b.pth", arrays), "princeton").variables, plain.variables)


def test_all_arrays_that_do_not_fit_are_listed(tmp_path):
    arrays = dict(small("bearpaw"))
    del arrays["hg.0.hg.0.3.1.bn2.running_var"]
    arrays["fc_.0.bias"] = np.zeros(3, np.float32)
    arrays["layer1.0.conv9.weight"] = np.zeros(3, np.float32)
    arrays["score.1.bias"] = np.full(JOINTS, np.nan, np.float32)
    with pytest.raises(WeightsError) as error:
        import_weights(write_state(tmp_path / "net.pth", arrays), "bearpaw")
    assert re.sub("^.*net.pth: ", "", str(error.value)).split("; ") == [
        "not of layout bearpaw: missing hg.0.hg.0.3.1.bn2.running_var",
        "fc_.0.bias has the shape (3,), turned (3,), expected (16,)",
        "score.1.bias holds values that are not finite",
        "unknown layer1.0.conv9.weight",
    ]


def test_the_wrong_layout_is_told_from_the_names(tmp_path):
    path = write_state(tmp_path / "net.pth", small("bearpaw"))
    with pytest.raises(
        WeightsError, match="not of layout princeton, which has outs.0.conv.weight; it begins with conv1"
    ):
        import_weights(path, "princeton")
    with pytest.raises(WeightsError, match="unknown layout 'newell'"):
        import_weights(path, "newell")


def test_other_joints_need_a_new_head_which_starts_fresh(tmp_path):
    path = write_state(tmp_path / "net.pth", small("princeton"))
    with pytest.raises(WeightsError, match="its maps are of 16 joints, coco_17 has 17"):
        import_weights(path, "princeton", skeleton="coco_17")
    weights = import_weights(path, "princeton", skeleton="coco_17", new_head=True)
    plain = import_weights(path, "princeton")
    fresh = init_hourglass(jax.random.key(0), SMALL["princeton"], joints=17)
    for number in range(2):
        ours, theirs = (each["params"][f"stack_{number}"] for each in (weights.variables, plain.variables))
        assert_identical(ours["heatmaps"], fresh["params"][f"stack_{number}"]["heatmaps"])
        assert_identical(ours["Hourglass_0"], theirs["Hourglass_0"])


def test_the_command_writes_weights_that_load(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_state(tmp_path / "net.pth.tar", small("bearpaw"), wrap="module.")
    assert main(["import-weights", "net.pth.tar", "--layout", "bearpaw"]) == 0
    assert capsys.readouterr().out == "2 stacks, 16 features, 16 joints: net.safetensors\n"
    written = load_weights(tmp_path / "net.safetensors")
    assert written.experiment.model == SMALL["bearpaw"] and written.experiment.optim.sigma == 1.0
    assert_identical(written.variables, import_weights(tmp_path / "net.pth.tar", "bearpaw").variables)
    assert main(["import-weights", "net.safetensors", "--layout", "bearpaw"]) == 1
    assert "not of layout bearpaw" in capsys.readouterr().err
    save_file(small("bearpaw"), tmp_path / "theirs.safetensors")
    before = (tmp_path / "theirs.safetensors").read_bytes()
    assert main(["import-weights", "theirs.safetensors", "--layout", "bearpaw"]) == 1
    assert capsys.readouterr().err == "rmpe: --out theirs.safetensors: is the file that is read\n"
    assert (tmp_path / "theirs.safetensors").read_bytes() == before
    assert main(["import-weights", "net.pth.tar", "--layout", "bearpaw", "--skeleton", "nobody"]) == 1
    assert main(["import-weights", "none.pth", "--layout", "bearpaw"]) == 1
    assert main(["import-weights", "net.pth.tar", "--layout", "bearpaw", "--out", "net.pth"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in errors] == ["unknown skeleton 'nobody'; known", "none.pth", "--out net.pth"]


def shake(net):
    """Random statistics, scales and biases; ready to predict."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, array in [*net.named_buffers(), *net.named_parameters()]:
            if name.endswith("var"):
                array.copy_(torch.rand(array.shape, generator=generator) + 0.5)
            elif name.endswith(("mean", "bias")) or array.ndim == 1:
                array.add_(0.3 * torch.randn(array.shape, generator=generator))
    net.eval()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["bearpaw", "princeton"])
def test_maps_are_those_of_the_network_in_pytorch(tmp_path, layout):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import torch_twins

    net = torch_twins.Bearpaw(2, 16, 4, 2, 16) if layout == "bearpaw" else torch_twins.Princeton(2, 16, 4, 16)
    shake(net)
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "n.pth")
    weights = import_weights(tmp_path / "n.pth", layout)
    images = jax.random.uniform(jax.random.key(0), (2, 256, 256, 3))
    centred = np.asarray(images) - np.array(weights.experiment.model.mean, np.float32)
    with torch.no_grad():
        expected = np.stack(
            [maps.numpy().transpose(0, 2, 3, 1) for maps in net(torch.tensor(centred.transpose(0, 3, 1, 2)))]
        )
    with jax.default_matmul_precision("highest"):
        found = apply_hourglass(weights.variables, images, weights.experiment.model, joints=16)
    assert np.abs(found - expected).max() <= 1e-4
    assert np.abs(expected).max() > 1


PUBLISHED = {
    "bearpaw": [
        *(
            "conv1.weight",
            "bn1.running_var",
            "layer1.0.downsample.0.bias",
            "layer2.0.conv3.weight",
            "layer3.0.bn2.bias",
        ),
        *("hg.0.hg.3.0.0.conv2.weight", "hg.0.hg.0.3.1.bn3.running_mean", "hg.1.hg.2.2.0.conv1.bias"),
        *(
            "res.1.1.conv2.weight",
            "fc.0.0.weight",
            "fc.1.1.running_mean",
            "score.1.bias",
            "fc_.0.weight",
            "score_.0.bias",
        ),
    ],
    "princeton": [
        *("pre.0.conv.weight", "pre.0.bn.running_var", "pre.1.skip_layer.conv.bias", "pre.4.bn3.weight"),
        *("hgs.0.0.up1.conv1.conv.weight", "hgs.1.0.low2.low2.low2.low2.conv2.conv.bias", "hgs.0.0.low2.low3.bn1.bias"),
        *("features.0.0.conv3.conv.weight", "features.1.1.conv.bias", "features.0.1.bn.running_mean"),
        *("outs.1.conv.weight", "merge_features.0.conv.conv.weight", "merge_preds.0.conv.conv.bias"),
    ],
}


@pytest.mark.parametrize("layout", PUBLISHED)
def test_the_names_of_a_layout_are_the_published_ones(layout):
    assert set(PUBLISHED[layout]) <= set(small(layout))
    assert not [name for name in small(layout) if re.search(r"fc_\.1|score_\.1|merge_\w+\.1", name)]


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("bearpaw", {"score.0.weight": np.zeros(16, np.float32)}, r"score.0.weight has the shape \(16,\)"),
        ("bearpaw", {"fc.0.0.weight": np.float32(1)}, r"fc.0.0.weight has the shape \(1,\)"),
        ("princeton", {"hgs.0.0.up1.conv1.conv.weight": np.zeros((3, 7, 1, 1), np.float32)}, "features"),
    ],
)
def test_arrays_of_other_axes_are_named_with_their_file(tmp_path, layout, change, message):
    with pytest.raises(WeightsError, match=r"net.pth: not of layout .*" + message):
        import_weights(write_state(tmp_path / "net.pth", small(layout) | change), layout)


# Localization networks


@functools.cache
def resnet18(outputs=6):
    """Random arrays of torchvision's ResNet-18 under its names."""
    rng, arrays = np.random.default_rng(0), {}

    def convolution(name, inputs, features, side):
        arrays[f"{name}.weight"] = rng.normal(0, 0.05, (features, inputs, side, side)).astype(np.float32)

    def norm(name, features):
        for part in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{name}.{part}"] = rng.uniform(0.5, 1.5, features).astype(np.float32)
        arrays[f"{name}.num_batches_tracked"] = np.array(7)

    convolution("conv1", 3, 64, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, features in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            for number in (1, 2):
                convolution(f"layer{stage}.{block}.conv{number}", inputs, features, 3)
                norm(f"layer{stage}.{block}.bn{number}", features)
                inputs = features
            if stage > 1 and block == 0:
                convolution(f"layer{stage}.0.downsample.0", features // 2, features, 1)
                norm(f"layer{stage}.0.downsample.1", features)
    if outputs:
        arrays["fc.weight"] = rng.normal(0, 0.01, (outputs, 512)).astype(np.float32)
        arrays["fc.bias"] = rng.normal(0, 0.1, outputs).astype(np.float32)
    return arrays


@functools.cache
def behind():
    """The hourglass behind the STN."""
    experiment = Experiment(name="hourglass", model=HourglassConfig(stacks=1, features=8, depth=1, input_size=(64, 64)))
    return Weights(experiment, init_hourglass(jax.random.key(0), experiment.model, joints=experiment.joints.size))


def localization_in(path):
    return part_of(import_localization(path, behind()).variables, LOCALIZATION)


def test_every_array_of_resnet18_finds_its_place(tmp_path):
    weights = import_localization(write_state(tmp_path / "r.pth", resnet18(), wrap="module."), behind())
    assert weights.experiment.localization == LocalizationConfig(kind="resnet18")
    assert_identical(part_of(weights.variables, SPPE), behind().variables)
    found = flatten_variables(part_of(weights.variables, LOCALIZATION))
    expected = flatten_variables(localization_shapes(LocalizationConfig(kind="resnet18"), (64, 64)))
    assert {name: array.shape for name, array in found.items()} == {n: s.shape for n, s in expected.items()}
    assert all(array.dtype == np.float32 for array in found.values())
    theirs = resnet18()["layer3.1.conv2.weight"]
    assert found["params/_BasicBlock_5/_ConvNorm_1/Conv_0/kernel"][2, 0, 7, 9] == theirs[9, 7, 2, 0]
    np.testing.assert_array_equal(found["params/theta_zero/kernel"], resnet18()["fc.weight"].T)
    np.testing.assert_allclose(
        found["params/theta_zero/bias"], resnet18()["fc.bias"] - [1, 0, 0, 0, 1, 0], rtol=0, atol=1e-7
    )


def test_the_batch_norm_of_a_shortcut_goes_into_its_convolution(tmp_path):
    found = localization_in(write_state(tmp_path / "r.pth", resnet18()))["params"]["_BasicBlock_4"]["shortcut"]
    arrays, x = resnet18(), np.random.default_rng(1).normal(size=128)
    there = {name: arrays[f"layer3.0.downsample.{name}"] for name in ("0.weight", "1.weight", "1.bias")}
    mean, variance = (arrays[f"layer3.0.downsample.1.running_{name}"] for name in ("mean", "var"))
    y = there["0.weight"][:, :, 0, 0] @ x
    expected = (y - mean) / np.sqrt(variance + 1e-5) * there["1.weight"] + there["1.bias"]
    np.testing.assert_allclose(x @ found["kernel"][0, 0] + found["bias"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outputs", [0, 1000])
def test_a_network_that_was_trained_to_classify_begins_with_the_identity(tmp_path, outputs):
    variables = localization_in(write_state(tmp_path / "r.pth", resnet18(outputs)))
    crops = jax.random.uniform(jax.random.key(0), (2, 64, 64, 3))
    theta = apply_localization(variables, crops, LocalizationConfig(kind="resnet18"))
    np.testing.assert_array_equal(theta, np.broadcast_to(np.eye(2, 3, dtype=np.float32), (2, 2, 3)))
    # Its first layer sees what it saw when it was trained: normalised colours.
    first = variables["params"]["_ConvNorm_0"]["Conv_0"]
    patch = np.random.default_rng(1).random((7, 7, 3))
    normalised = (patch - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = np.einsum("fcij,ijc->f", resnet18(outputs)["conv1.weight"], normalised)
    np.testing.assert_allclose(
        np.einsum("ijcf,ijc->f", first["kernel"], patch) + first["bias"], expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer2.0.downsample.0.weight": None}, "missing layer2.0.downsample.0.weight"),
        ({"layer3.0.downsample.1.bias": np.zeros(7, np.float32)}, r"layer3.0.downsample.1.bias has the shape \(7,\)"),
        ({"fc.bias": np.zeros(5, np.float32)}, r"fc.bias has the shape \(5,\)"),
        ({"fc.bias": None}, "missing fc.bias"),
        ({"layer4.1.bn2.weight": None}, "missing layer4.1.bn2.weight"),
        ({"conv1.weight": np.zeros((64, 1, 7, 7), np.float32)}, r"conv1.weight has the shape \(64, 1, 7, 7\)"),
        ({"layer1.2.conv1.weight": np.zeros((64, 64, 3, 3), np.float32)}, "unknown layer1.2.conv1.weight"),
    ],
)
def test_what_a_resnet18_lacks_or_has_too_much_is_named(tmp_path, change, message):
    arrays = {name: array for name, array in (resnet18() | change).items() if array is not None}
    with pytest.raises(WeightsError, match="not of layout resnet18: .*" + message):
        localization_in(write_state(tmp_path / "r.pth", arrays))


def test_the_command_joins_a_localization_network_and_an_hourglass(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_state(tmp_path / "r.pth", resnet18(1000))
    save_weights(tmp_path / "sppe.safetensors", behind())
    given = ["import-weights", "r.pth", "--layout", "resnet18"]
    assert main([*given, "--sppe", "sppe.safetensors"]) == 0
    assert capsys.readouterr().out == "an STN and 1 stacks, 8 features, 19 joints: hourglass-stn.safetensors\n"
    written = load_weights(tmp_path / "hourglass-stn.safetensors")
    assert written.experiment.localization.kind == "resnet18"
    assert_identical(written.variables, import_localization(tmp_path / "r.pth", behind()).variables)
    assert main(given) == 1
    assert main([*given, "--sppe", "sppe.safetensors", "--new-head"]) == 1
    assert main(["import-weights", "r.pth", "--layout", "bearpaw", "--sppe", "sppe.safetensors"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("rmpe: --") for line in errors)


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [6, 1000])
def test_theta_is_that_of_the_network_in_pytorch(tmp_path, outputs):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import torch_twins

    net = torch_twins.ResNet18(outputs)
    shake(net)
    torch.save(net.state_dict(), tmp_path / "r.pth")
    variables = localization_in(tmp_path / "r.pth")
    images = jax.random.uniform(jax.random.key(0), (3, 64, 64, 3))
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)))
    head = np.random.default_rng(1).normal(0, 0.01, (512, 6)).astype(np.float32)
    if outputs != 6:
        padded = ((padded - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
        # Theta is the identity; what lies before it shows through a head of its own.
        variables["params"]["theta_zero"] = {"kernel": head, "bias": np.zeros(6, np.float32)}
    with torch.no_grad():
        seen = torch.tensor(padded.transpose(0, 3, 1, 2))
        expected = net(seen).numpy() if outputs == 6 else net.features(seen).numpy() @ head + np.eye(2, 3).ravel()
    with jax.default_matmul_precision("highest"):
        theta = apply_localization(variables, images, LocalizationConfig(kind="resnet18"))
    assert np.abs(theta.reshape(3, 6) - expected).max() <= 1e-4
    assert np.abs(expected).max() > 0.1
