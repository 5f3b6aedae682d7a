import copy
import dataclasses
import functools
import json
import math
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from checks import assert_identical
from made_data import figure
from safetensors.numpy import load_file, save_file

from rmpe_jax import pretrained
from rmpe_jax.config import AugmentConfig, ConfigError, DataConfig, to_json
from rmpe_jax.models.proposal_scorer import apply_scorer, init_scorer
from rmpe_jax.nms.pose import PRESETS, PoseNMSParameters
from rmpe_jax.pretrained import (
    FORMAT,
    NMS_FORMAT,
    PROPOSALS_FORMAT,
    SCORER_FORMAT,
    Weights,
    WeightsError,
    load_nms,
    load_proposals,
    load_weights,
    read_arrays,
    save_nms,
    save_proposals,
    save_weights,
    shipped_proposals,
    shipped_weights,
    weights_path,
)
from rmpe_jax.proposals.generators import LAWS, Law, in_skeleton, sample_boxes
from rmpe_jax.proposals.mixtures import OffsetMixtures
from rmpe_jax.proposals.scored import ScoredProposals
from rmpe_jax.skeleton import COCO_17

LARGEST_FILE, LARGEST_PROPOSALS = 16 * 2**20, 2**20


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


def test_arrays_come_back_whatever_the_order_of_their_axes_in_memory(tmp_path, tiny_weights):
    turned = jax.tree.map(lambda leaf: np.asfortranarray(np.asarray(leaf)), tiny_weights.variables)
    save_weights(tmp_path / "w.safetensors", Weights(tiny_weights.experiment, turned))
    assert_identical(load_weights(tmp_path / "w.safetensors").variables, tiny_weights.variables)


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


def test_of_a_file_of_proposals_the_name_alone_is_stored(tmp_path, tiny_weights):
    for given, kept in (("secret/law.npz", "law.npz"), ("uniform", "uniform"), ("jitter", "jitter")):
        augment = dataclasses.replace(tiny_weights.experiment.augment, proposals=given)
        experiment = dataclasses.replace(tiny_weights.experiment, augment=augment)
        save_weights(tmp_path / "w.safetensors", Weights(experiment, tiny_weights.variables))
        assert b"secret" not in (tmp_path / "w.safetensors").read_bytes()
        assert load_weights(tmp_path / "w.safetensors").experiment.augment.proposals == kept


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


# Proposals


def law_arrays():
    """Two atomic poses, and everybody else; two components."""
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(2, 14, 2)).astype(np.float32)
    atoms[:, 3] = np.nan
    return {
        "atoms": atoms,
        "weight": np.array([[0.25, 0.75], [1, 0], [0.5, 0.5]], np.float32),
        "mean": rng.normal(size=(3, 2, 4)).astype(np.float32),
        "factor": np.tile(np.eye(4, dtype=np.float32), (3, 2, 1, 1)),
    }


def law():
    return OffsetMixtures(**law_arrays(), skeleton="lsp_14")


def write_law(path, **changes):
    """A file of proposals with some of its content replaced; None takes an entry out."""
    content = {"format": np.array(PROPOSALS_FORMAT), "skeleton": np.array("lsp_14"), **law_arrays(), **changes}
    np.savez(path, allow_pickle=True, **{key: value for key, value in content.items() if value is not None})
    return path


def test_proposals_are_read_back_in_every_bit(tmp_path):
    path = tmp_path / "new" / "law.npz"
    save_proposals(path, law(), about={"people": 3})
    for name in (path, str(path)):
        found = load_proposals(name)
        assert isinstance(found, OffsetMixtures) and found.skeleton == "lsp_14"
        assert_identical(found, law())
    content = read_arrays(path)
    assert sorted(content) == ["about", "atoms", "factor", "format", "mean", "skeleton", "weight"]
    assert json.loads(str(content["about"])) == {"people": 3}
    assert list(path.parent.iterdir()) == [path]


def test_arrays_of_the_device_are_written_like_those_of_the_host(tmp_path):
    save_proposals(tmp_path / "a.npz", jax.tree.map(jax.numpy.asarray, law()))
    assert_identical(load_proposals(tmp_path / "a.npz"), law())


def test_wider_floats_are_read_as_float32(tmp_path):
    path = write_law(tmp_path / "a.npz", **{key: value.astype(np.float64) for key, value in law_arrays().items()})
    assert_identical(load_proposals(path), law())


@pytest.mark.parametrize("name", LAWS)
def test_laws_of_proposals_are_known_by_name(name):
    assert load_proposals(name) == Law(name)


@pytest.mark.parametrize("name", ["", "jitter", "octopus", "law.npz", "new"])
def test_a_missing_file_of_proposals_lists_the_laws(tmp_path, name):
    (tmp_path / "new").mkdir()
    path = tmp_path / name
    with pytest.raises(
        ConfigError, match=f"^{path}: no such file, and not one of {', '.join([*LAWS, *shipped_proposals()])}$"
    ):
        load_proposals(path)


def test_all_shipped_proposals_load_by_name_and_are_small():
    for name in shipped_proposals():
        generator = load_proposals(name)
        # The name says what it is, and an experiment may give it.
        assert isinstance(generator, {"pgpg": OffsetMixtures, "dpg": ScoredProposals}[name.split("-")[0]])
        assert AugmentConfig(proposals=name).proposals == name
        path = weights_path("hourglass-lspet-coco").parent / f"{name}.npz"
        assert path.stat().st_size <= LARGEST_PROPOSALS
        box = np.array([10.0, 5.0, 60.0, 165.0], np.float32)
        points = figure(COCO_17.joints, box).astype(np.float32)
        there = in_skeleton(generator, COCO_17)
        boxes, _ = sample_boxes(
            jax.random.key(0), *map(jax.numpy.asarray, (box, points, np.ones(17, bool))), generator=there, num=5
        )
        assert np.isfinite(boxes).all() and len(np.unique(boxes, axis=0)) > 1


def test_generators_that_the_package_ships_are_known_by_name_and_it_may_ship_none(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained.resources, "files", lambda package: tmp_path)
    assert shipped_proposals() == []
    for name, generator in (("pgpg-here", law()), ("dpg-here", scorer())):
        save_proposals(tmp_path / "weights" / f"{name}.npz", generator)
        assert_identical(load_proposals(name), generator)
    assert shipped_proposals() == ["dpg-here", "pgpg-here"]
    with pytest.raises(ConfigError, match="^dpg-there: no such file, and not one of .*, dpg-here, pgpg-here$"):
        load_proposals("dpg-there")


def bytes_changed(whole, place, value):
    return whole[:place] + bytes([value]) + whole[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:5],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-30],
        lambda whole: b"proposals, honestly",
        lambda whole: bytes_changed(whole, whole.index(b"PK\1\2") + 10, 99),  # an unknown compression
        lambda whole: bytes_changed(whole, whole.index(b"PK\1\2") + 8, 1),  # encrypted
        lambda whole: bytes_changed(whole, 60, whole[60] ^ 255),
    ],
)
def test_a_damaged_file_of_proposals_is_named(tmp_path, damage):
    path = tmp_path / "law.npz"
    save_proposals(path, law())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=f"^{path}: damaged, or not an .npz file of plain arrays"):
        load_proposals(path)


def test_any_damaged_byte_is_an_error_or_changes_nothing(tmp_path):
    path = tmp_path / "law.npz"
    save_proposals(path, law())
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(bytes_changed(whole, place, whole[place] ^ 1))
        try:
            assert_identical(load_proposals(path), law())
        except ConfigError as error:
            assert str(error).startswith(f"{path}: ")


def test_a_single_array_is_no_file_of_proposals(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ConfigError, match=r"a\.npy: damaged, or not an \.npz file of plain arrays"):
        load_proposals(tmp_path / "a.npy")


def test_nothing_in_a_file_of_proposals_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "bang",))

    for name in ("atoms", "format", "about"):
        path = write_law(tmp_path / "a.npz", **{name: np.array([Bomb()], object)})
        with pytest.raises(ConfigError, match="of plain arrays: .*allow_pickle=False"):
            load_proposals(path)
    assert not (tmp_path / "bang").exists()


def replaced(name, place, value):
    array = law_arrays()[name]
    array[place] = value
    return {name: array}


def alternating():
    """One atomic pose has the even joints, the other the odd ones and four more."""
    atoms = np.zeros((2, 14, 2))
    atoms[0, 1::2], atoms[1, 8::2] = np.nan, np.nan
    return atoms


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": None}, f"not a file of proposals .format '{PROPOSALS_FORMAT}'"),
        ({"format": np.array(NMS_FORMAT)}, "not a file of proposals"),
        ({"format": np.zeros(3)}, "not a file of proposals"),
        ({"skeleton": None}, "skeleton: unknown: 'None'"),
        ({"skeleton": np.array("octopus")}, "skeleton: unknown: 'octopus'"),
        ({"skeleton": np.array("coco_17")}, r"atoms: has shape \(2, 14, 2\), expected \(2, 17, 2\)"),
        *[({name: None}, f"{name}: expected an array of floats") for name in law_arrays()],
        *[
            ({name: np.ones(value.shape, int)}, f"{name}: expected an array of floats")
            for name, value in law_arrays().items()
        ],
        *[({name: value[0]}, f"{name}: expected an array of floats with") for name, value in law_arrays().items()],
        ({"atoms": law_arrays()["atoms"][:1]}, r"atoms: has shape \(1, 14, 2\), expected \(2, 14, 2\)"),
        ({"mean": np.zeros((3, 2, 5))}, r"mean: has shape \(3, 2, 5\), expected \(3, 2, 4\)"),
        ({"factor": np.zeros((3, 1, 4, 4))}, r"factor: has shape \(3, 1, 4, 4\), expected \(3, 2, 4, 4\)"),
        ({"weight": np.ones((1, 1))}, "weight: expected a row for each atomic pose and one for everybody else"),
        ({"weight": np.ones((0, 1))}, "weight: expected a row for each"),
        (replaced("weight", (0, 0), np.nan), "weight: holds values that are not finite"),
        (replaced("mean", (0, 0, 0), np.inf), "mean: holds values that are not finite"),
        (replaced("factor", (2, 1, 3, 3), np.nan), "factor: holds values that are not finite"),
        (replaced("weight", (0, 0), 10.5), "weight: holds values that are not finite, or larger than 10"),
        (replaced("mean", (2, 1, 3), -10.01), "mean: holds values that are not finite, or larger than 10"),
        (replaced("factor", (0, 0, 0, 0), 11), "factor: holds values that are not finite, or larger than 10"),
        ({"mean": np.full((3, 2, 4), 1e300)}, "mean: holds values that are not finite, or larger than 10"),
        (replaced("factor", (1, 0, 0, 3), 0.1), "factor: expected lower triangular matrices with a positive diagonal"),
        (replaced("factor", (1, 0, 2, 2), 0), "factor: expected lower triangular matrices with a positive diagonal"),
        (replaced("factor", (1, 0, 2, 2), -1), "factor: expected lower triangular matrices with a positive diagonal"),
        (replaced("atoms", (0, 0, 0), np.inf), "atoms: expected finite places of at least 6 joints"),
        (replaced("atoms", (1, 3, 1), -np.inf), "atoms: expected finite places"),
        ({"atoms": np.full((2, 14, 2), 1e300)}, "atoms: expected finite places"),
        ({"atoms": np.full((2, 14, 2), np.nan)}, "atoms: expected finite places"),
        (replaced("atoms", (slice(None), slice(5, 14)), np.nan), "atoms: expected finite places of at least 6 joints"),
        # The joints of both together are too few, though not those of each.
        ({"atoms": alternating()}, "atoms: expected finite places of at least 6 joints, the same of every pose"),
        (replaced("weight", 0, [0.5, 0.4]), "weight: expected rows of shares that sum to one"),
        (replaced("weight", 0, [1.5, -0.5]), "weight: expected rows of shares that sum to one"),
    ],
)
def test_a_wrong_file_of_proposals_is_named_with_what_is_wrong(tmp_path, changes, message):
    path = write_law(tmp_path / "law.npz", **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match=f"^{path}: {message}"):
            load_proposals(path)


@pytest.mark.parametrize(
    "changes",
    [
        replaced("mean", (0, 0), [10, -10, 10, -10]),
        replaced("factor", (0, 0), 10 * np.tri(4)),
        replaced("factor", (0, 0), np.tri(4) - 2 * np.tri(4, k=-1)),
        replaced("atoms", (0, 0), 99),
        {"atoms": np.where(np.arange(14)[None, :, None] < 6, np.ones((2, 14, 2)), np.nan)},
    ],
)
def test_proposals_at_the_limits_are_read(tmp_path, changes):
    found = load_proposals(write_law(tmp_path / "law.npz", **changes))
    assert isinstance(found, OffsetMixtures)
    for key, value in changes.items():
        np.testing.assert_array_equal(getattr(found, key), value.astype(np.float32))


# DPG


@functools.cache
def scorer(**settings):
    variables = jax.tree.map(lambda leaf: leaf + np.float32(0.1), init_scorer(jax.random.key(0)))
    return ScoredProposals(variables, apply_scorer, "lsp_14", tuple(range(14)), **settings)


@functools.cache
def scorer_content():
    """What a file of DPG holds."""
    with tempfile.TemporaryDirectory() as folder:
        save_proposals(Path(folder) / "a.npz", scorer())
        return read_arrays(Path(folder) / "a.npz")


def write_scorer(path, changes):
    """A file of DPG with some of its content replaced; None takes an entry out."""
    content = {**scorer_content(), **changes}
    np.savez(path, allow_pickle=True, **{key: value for key, value in content.items() if value is not None})
    return path


def test_dpg_is_read_back_in_every_bit(tmp_path):
    path = tmp_path / "new" / "dpg.npz"
    given = scorer(candidates=77, threshold=0.25, draw="score")
    save_proposals(path, given, about={"people": 3})
    for name in (path, str(path)):
        found = load_proposals(name)
        assert_identical(found, given)  # settings too: they are part of the tree's structure
        assert isinstance(found, ScoredProposals) and found.score is apply_scorer
        assert (found.candidates, found.threshold, found.draw) == (77, 0.25, "score")
        assert (found.skeleton, found.order) == ("lsp_14", tuple(range(14)))
    content = read_arrays(path)
    assert {key for key in content if "/" not in key} == {
        *("about", "candidates", "draw", "format", "skeleton", "threshold")
    }
    assert str(content["format"]) == SCORER_FORMAT and json.loads(str(content["about"])) == {"people": 3}
    assert all(content[key].dtype.kind in "fiU" for key in content)
    assert list(path.parent.iterdir()) == [path]


def test_dpg_on_the_device_is_written_like_that_on_the_host_and_wider_floats_are_narrowed(tmp_path):
    save_proposals(tmp_path / "a.npz", jax.tree.map(jax.numpy.asarray, scorer()))
    assert_identical(load_proposals(tmp_path / "a.npz"), scorer())
    wide = {key: value.astype(np.float64) for key, value in scorer_content().items() if "/" in key}
    assert_identical(load_proposals(write_scorer(tmp_path / "a.npz", wide)), scorer())


def test_dpg_is_stored_in_the_order_of_its_own_skeleton(tmp_path):
    save_proposals(tmp_path / "a.npz", in_skeleton(scorer(), COCO_17))
    assert_identical(load_proposals(tmp_path / "a.npz"), scorer())


def test_nothing_in_a_file_of_dpg_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "bang",))

    for name in ("scorer/params/Conv_0/bias", "format", "draw"):
        path = write_scorer(tmp_path / "a.npz", {name: np.array([Bomb()], object)})
        with pytest.raises(ConfigError, match="of plain arrays: .*allow_pickle=False"):
            load_proposals(path)
    assert not (tmp_path / "bang").exists()


BIAS = "scorer/params/Conv_0/bias"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": np.array(FORMAT)}, f"not a file of proposals .format '{PROPOSALS_FORMAT}' or '{SCORER_FORMAT}'"),
        ({"format": None}, "not a file of proposals"),
        ({"format": np.array(PROPOSALS_FORMAT)}, "atoms: expected an array of floats with 3 axes"),
        ({"skeleton": None}, "skeleton: unknown: 'None'"),
        ({"skeleton": np.array("octopus")}, "skeleton: unknown: 'octopus'"),
        ({BIAS: None}, "missing array params/Conv_0/bias"),
        ({"scorer/params/Conv_9/bias": np.zeros(16)}, "unknown array params/Conv_9/bias"),
        ({"scorer/params": np.zeros(16)}, "unknown array params"),
        ({BIAS: np.zeros(17)}, r"params/Conv_0/bias has shape \(17,\), expected \(16,\)"),
        ({BIAS: np.full(16, np.nan)}, "params/Conv_0/bias holds values that are not finite"),
        ({BIAS: np.full(16, -np.inf)}, "params/Conv_0/bias holds values that are not finite"),
        ({BIAS: np.zeros(16, int)}, "params/Conv_0/bias: expected an array of floats"),
        ({BIAS: np.zeros(16, complex)}, "params/Conv_0/bias: expected an array of floats"),
        ({BIAS: np.full(16, "0")}, "params/Conv_0/bias: expected an array of floats"),
        ({"candidates": None}, "candidates: expected a whole number"),
        ({"candidates": np.array("many")}, "candidates: expected a whole number"),
        ({"candidates": np.array(3.5)}, "candidates: expected a whole number"),
        ({"candidates": np.array([512])}, "candidates: expected a whole number"),
        ({"candidates": np.array(0)}, "expected candidates >= 1, 0 <= threshold < 1 and draw odds or score, got 0, "),
        ({"candidates": np.array(2**20 + 1)}, "candidates: expected at most 1048576, got 1048577"),
        ({"candidates": np.array(2**62)}, "candidates: expected at most 1048576, got "),
        ({"threshold": None}, "threshold: expected a number"),
        ({"threshold": np.array("half")}, "threshold: expected a number"),
        ({"threshold": np.array(True)}, "threshold: expected a number"),
        ({"threshold": np.array(1.0)}, "expected candidates >= 1, 0 <= threshold < 1 and .*, got [0-9]+, 1.0, 'odds'"),
        ({"threshold": np.array(-0.5)}, "expected candidates >= 1, 0 <= threshold < 1"),
        ({"threshold": np.array(np.nan)}, "expected candidates >= 1, 0 <= threshold < 1"),
        ({"draw": None}, "draw: expected odds or score, got 'None'"),
        ({"draw": np.array("both")}, "draw: expected odds or score, got 'both'"),
        ({"draw": np.array(1)}, "draw: expected odds or score, got '1'"),
    ],
)
def test_a_wrong_file_of_dpg_is_named_with_what_is_wrong(tmp_path, changes, message):
    path = write_scorer(tmp_path / "dpg.npz", changes)
    with pytest.raises(ConfigError, match=f"^{path}: {message}"):
        load_proposals(path)


@pytest.mark.parametrize("length", [0, 100, 30_000])
def test_a_file_of_dpg_that_was_cut_off_is_named(tmp_path, length):
    path = tmp_path / "dpg.npz"
    save_proposals(path, scorer())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ConfigError, match=f"^{path}: damaged, or not an .npz file of plain arrays"):
        load_proposals(path)
