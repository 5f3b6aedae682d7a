import copy
import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from checks import assert_identical
from safetensors.numpy import load_file, save_file

from rmpe_jax import pretrained
from rmpe_jax.config import ConfigError, DataConfig, to_json
from rmpe_jax.nms.pose import PRESETS, PoseNMSParameters
from rmpe_jax.pretrained import (
    FORMAT,
    NMS_FORMAT,
    Weights,
    WeightsError,
    load_nms,
    load_weights,
    save_nms,
    save_weights,
    shipped_weights,
    weights_path,
)

LARGEST_FILE = 16 * 2**20


@pytest.fixture
def path(tmp_path, tiny_weights):
    save_weights(tmp_path / "w.safetensors", tiny_weights)
    return tmp_path / "w.safetensors"


def rewrite(path, tiny_weights, change=lambda arrays: None, **metadata):
    """The file again, with arrays changed in place and metadata replaced; None takes an entry out."""
    arrays = load_file(path)
    change(arrays)
    metadata = {"format": FORMAT, "experiment": to_json(tiny_weights.experiment)} | metadata
    save_file(arrays, path, metadata={key: value for key, value in metadata.items() if value is not None})


def assert_refused(path, message):
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)


def test_weights_are_read_back_in_every_bit(path, tiny_weights):
    loaded = load_weights(path)
    assert_identical(loaded.variables, tiny_weights.variables)
    assert loaded.experiment == tiny_weights.experiment
    assert_identical(load_weights(str(path)).variables, tiny_weights.variables)


def test_saving_again_replaces_the_file_and_leaves_nothing_else(path, tiny_weights):
    doubled = Weights(tiny_weights.experiment, jax.tree.map(lambda leaf: 2 * leaf, tiny_weights.variables))
    save_weights(path, doubled)
    assert_identical(load_weights(path).variables, doubled.variables)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_leaves_the_old_file(path, tiny_weights):
    before = path.read_bytes()
    with pytest.raises(Exception, match="."):
        save_weights(path, Weights(tiny_weights.experiment, {"params": {"a": "no array"}}))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_paths_of_data_sets_are_not_stored(tmp_path, tiny_weights):
    data = DataConfig(lspet="secret/lspet", coco="secret/coco", coco_repeat=3)
    experiment = dataclasses.replace(tiny_weights.experiment, data=data)
    save_weights(tmp_path / "w.safetensors", Weights(experiment, tiny_weights.variables))
    assert b"secret" not in (tmp_path / "w.safetensors").read_bytes()
    assert load_weights(tmp_path / "w.safetensors").experiment.data == DataConfig(coco_repeat=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("params/stack_0/heatmaps/bias"), "missing array params/stack_0/heatmaps/bias"),
        (lambda a: a.update({"params/extra": np.zeros(3)}), "unknown array params/extra"),
        (
            lambda a: a.update({"params/stack_0/heatmaps/bias": np.zeros(5, np.float32)}),
            r"params/stack_0/heatmaps/bias has shape \(5,\), expected \(19,\)",
        ),
        (
            lambda a: a.update({"params/stack_0/heatmaps/bias": np.full(19, np.nan, np.float32)}),
            "params/stack_0/heatmaps/bias holds values that are not finite",
        ),
    ],
)
def test_a_wrong_array_is_named(path, tiny_weights, change, message):
    rewrite(path, tiny_weights, change)
    assert_refused(path, message)


def test_weights_of_another_architecture_are_refused(path, tiny_weights):
    experiment = tiny_weights.experiment
    wider = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, features=16))
    rewrite(path, tiny_weights, experiment=to_json(wider))
    assert_refused(path, "has shape .*, expected")


@pytest.mark.parametrize("length", [0, 5, 100, 5000])
def test_a_truncated_file_is_named(path, length):
    path.write_bytes(path.read_bytes()[:length])
    assert_refused(path, "damaged, or not a safetensors file")


def test_a_file_that_is_no_safetensors_is_named(path):
    path.write_text("weights, honestly\n" * 50)
    assert_refused(path, "damaged, or not a safetensors file")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "pt"}, "expected format .*got 'pt'"),
        ({"format": None}, "expected format .*got None"),
        ({"experiment": None}, "experiment"),
        ({"experiment": "{"}, "malformed JSON at line 1"),
        ({"experiment": '{"model": {"stacks": "two"}}'}, "stacks.*expected int"),
        ({"experiment": json.dumps({"skeleton": "octopus"})}, "unknown skeleton 'octopus'"),
    ],
)
def test_other_metadata_is_refused_with_what_was_expected(path, tiny_weights, metadata, message):
    rewrite(path, tiny_weights, **metadata)
    assert_refused(path, message)


def test_an_unknown_name_lists_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "shipped_weights", lambda: ["one", "two"])
    with pytest.raises(WeightsError, match="hourglass-9000: no such file, .*one, two"):
        load_weights("hourglass-9000")


def test_a_folder_is_no_weight_file(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        load_weights(tmp_path)


def test_a_package_without_weights_ships_none(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained.resources, "files", lambda package: tmp_path)
    assert shipped_weights() == []
    with pytest.raises(WeightsError, match="no such file"):
        weights_path("hourglass-lspet-coco")


def test_loading_does_not_touch_the_file(path):
    before = copy.copy(path.read_bytes())
    load_weights(path)
    assert path.read_bytes() == before


def test_all_shipped_weights_load_and_are_small():
    names = shipped_weights()
    if not names:
        pytest.skip("the package ships no weights yet")
    for name in names:
        weights = load_weights(name)
        assert weights_path(name).stat().st_size <= LARGEST_FILE
        assert weights.experiment.data.lspet == weights.experiment.data.coco == ""
    assert pretrained.DEFAULT in names


# Parameters of the pose NMS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_of_the_pose_nms_are_known_by_name_and_go_through_a_file(tmp_path, name):
    assert load_nms(name) is PRESETS[name]
    save_nms(tmp_path / "new" / "nms.json", PRESETS[name])
    assert load_nms(tmp_path / "new" / "nms.json") == load_nms(str(tmp_path / "new" / "nms.json")) == PRESETS[name]


def test_none_is_no_nms():
    assert load_nms("none") is None


def test_learned_parameters_are_read_back_with_what_is_said_about_them(tmp_path):
    parameters = PoseNMSParameters(sigma1=0.3, eta=0.7, eta_scale="fraction", kernel="gaussian", match_joints=4)
    save_nms(tmp_path / "nms.json", parameters, about={"fit": {"value": 0.5}})
    content = json.loads((tmp_path / "nms.json").read_text())
    assert content["format"] == NMS_FORMAT and content["fit"] == {"value": 0.5}
    assert content["parameters"]["sigma1"] == 0.3 and "merge_limit" not in content["parameters"]
    assert load_nms(tmp_path / "nms.json") == parameters


@pytest.mark.parametrize("changes", [{"match_limit": math.inf}, {"eta": math.inf}, {"eta": -math.inf}])
def test_an_infinite_setting_that_json_cannot_hold_is_not_lost_but_refused(tmp_path, changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"^{name} is infinite"):
        save_nms(tmp_path / "nms.json", PoseNMSParameters(**changes))
    assert not list(tmp_path.iterdir())


def test_missing_settings_of_the_pose_nms_take_their_defaults(tmp_path):
    (tmp_path / "nms.json").write_text(
        json.dumps({"format": NMS_FORMAT, "parameters": {"eta": 20, "merge": "weighted"}})
    )
    assert load_nms(tmp_path / "nms.json") == PoseNMSParameters(eta=20.0, merge="weighted")


def as_nms(**parameters):
    return json.dumps({"format": NMS_FORMAT, "parameters": parameters})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format":\n 1,,}', "malformed JSON at line 2, column 4"),
        ("", "malformed JSON at line 1"),
        (b"\xff\xfe", "JSON that cannot be held"),
        ("[" * 100_000, "JSON that cannot be held"),
        ("[]", f"not parameters of the pose NMS .format '{NMS_FORMAT}'"),
        ('{"parameters": {}}', "not parameters of the pose NMS"),
        (json.dumps({"format": FORMAT, "parameters": {}}), "not parameters of the pose NMS"),
        (json.dumps({"format": NMS_FORMAT}), "parameters: expected an object"),
        (as_nms(sigma3=1.0), "parameters: no setting 'sigma3'; known: sigma1, sigma2, lambda_, eta, "),
        (as_nms(sigma1="large"), "parameters.sigma1: expected float, got 'large'"),
        (as_nms(sigma1=True), "parameters.sigma1: expected float, got True"),
        (as_nms(match_joints=2.5), "parameters.match_joints: expected int, got 2.5"),
        (as_nms(kernel="box"), "parameters.kernel: expected one of laplace, gaussian, got 'box'"),
        (as_nms(sigma1=0.0), "sigma1 must be positive, got 0.0"),
        (as_nms(lambda_=-1), "lambda_ must not be negative, got -1"),
        (as_nms(eta=1.5, eta_scale="fraction"), r"eta must be a number, in \[0, 1\] as a fraction, got 1.5"),
        (as_nms(eta=float("nan")), "eta must be a number"),
    ],
)
def test_a_wrong_file_of_the_pose_nms_is_named_with_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "nms.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=f"^{path}: {message}"):
        load_nms(path)


@pytest.mark.parametrize("name", ["", "octopus", "new"])
def test_a_missing_file_of_the_pose_nms_lists_the_names(tmp_path, name):
    (tmp_path / "new").mkdir()
    path = tmp_path / name
    with pytest.raises(ConfigError, match=f"^{path}: no such file, and not one of none, {', '.join(PRESETS)}$"):
        load_nms(path)
