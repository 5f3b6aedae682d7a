import dataclasses
import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmpe_jax.config import (
    AugmentConfig,
    ConfigError,
    DeepPoseConfig,
    Experiment,
    HourglassConfig,
    OptimConfig,
    differences,
    from_json,
    from_value,
    override,
    to_json,
)
from rmpe_jax.proposals.generators import LAWS


def test_overrides_take_the_type_of_their_field():
    changed = override(
        Experiment(),
        ["model.stacks=2", "optim.learning_rate=3e-4", "model.remat=True", "name= two ", "model.input_size=128, 192"],
    )
    assert (changed.model.stacks, changed.optim.learning_rate, changed.model.remat) == (2, 3e-4, True)
    assert (changed.name, changed.model.input_size) == ("two", (128, 192))


def test_an_override_leaves_everything_else_and_the_original_alone():
    before = Experiment()
    after = override(before, ["optim.batch=64"])
    assert differences(before, after) == ["optim.batch: 32 against 64"]
    assert before == Experiment()


def test_the_last_override_of_a_setting_wins():
    assert override(OptimConfig(), ["batch=8", "batch=16"]).batch == 16


def test_an_override_of_a_text_may_contain_an_equals_sign():
    assert override(Experiment(), ["data.coco=a=b"]).data.coco == "a=b"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.stacks", "expected name=value"),
        ("model.layers=2", "no setting 'layers'; .*stacks"),
        ("optim.lerning_rate=2", "no setting 'lerning_rate', did you mean 'learning_rate'?"),
        ("optim.optimizer=sgd", "optimizer must be one of adamw, rmsprop, got 'sgd'"),
        ("optim.schedule=", "schedule must be one of cosine, steps, constant, got ''"),
        ("optim.drops=0.9,0.5", r"drops must be rising shares between 0 and 1, got \(0.9, 0.5\)"),
        ("optim.drops=0.5,1", "drops must be rising shares"),
        ("optim.drops=half", "expected float, got 'half'"),
        ("optim.accumulate=5", "batch: 32 people cannot be split evenly into 5 parts"),
        ("modle.stacks=2", "no setting 'modle'.*model"),
        ("optim=2", "'optim' is a group of settings"),
        ("name.first=2", "'name' is a single setting"),
        ("model.stacks=two", "expected int, got 'two'"),
        ("model.stacks=2.5", "expected int, got '2.5'"),
        ("optim.learning_rate=fast", "expected float"),
        ("model.remat=1", "expected true or false"),
        ("model.input_size=256", "expected 2 values"),
        ("model.input_size=256,wide", "expected int"),
        ("model.stacks=0", "stacks"),
        ("model.features=6", "features"),
        ("model.input_size=256,100", "multiples of 64 at depth 4"),
        ("model.dtype=float16", "float32, bfloat16"),
        ("skeleton=body_25", "unknown skeleton 'body_25'"),
        ("localization.kind=large", "kind must be one of none, small, resnet18, got 'large'"),
        ("localization.theta=rotation", "theta must be one of affine, scale_translation, got 'rotation'"),
        ("localization.source=canvas", "source must be one of picture, crop, got 'canvas'"),
        (
            "augment.proposals=detector",
            "proposals must be one of jitter, alphapose_global, harsh, exact, uniform, patch_15, patch_30, pgpg-NAME, "
            "dpg-NAME or an .npz file, got 'detector'",
        ),
        ("augment.proposals=gaussian", "got 'gaussian'"),
        ("augment.proposals=law.json", "or an .npz file, got 'law.json'"),
        ("augment.proposals=", "or an .npz file, got ''"),
    ],
)
def test_bad_overrides_are_refused_with_a_reason(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(Experiment(), [assignment])


def test_shares_at_which_the_rate_drops_are_as_many_as_one_likes():
    for text, drops in (("0.25,0.5,0.75", (0.25, 0.5, 0.75)), ("0.5", (0.5,)), ("", ())):
        changed = override(Experiment(), [f"optim.drops={text}"])
        assert changed.optim.drops == drops
        assert from_json(Experiment, to_json(changed)) == changed


@pytest.mark.parametrize(
    "name", ["jitter", *LAWS, "pgpg-builtin", "pgpg-hog", "dpg-hog", "law.npz", "some/where/law.npz"]
)
def test_proposals_are_a_law_or_learned_ones_by_name_or_a_file(name):
    experiment = override(Experiment(), [f"augment.proposals={name}"])
    assert experiment.augment.proposals == name
    assert from_json(Experiment, to_json(experiment)) == experiment


@given(
    stacks=st.integers(1, 9),
    side=st.integers(1, 5),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    rate=st.floats(1e-9, 1),
    remat=st.booleans(),
    name=st.text(),
    skeleton=st.sampled_from(["coco_17", "lsp_14", "mpii_16", "coco_lsp_19"]),
)
def test_settings_survive_json(stacks, side, mean, rate, remat, name, skeleton):
    model = HourglassConfig(stacks=stacks, input_size=(64 * side, 64), mean=mean, remat=remat)
    before = Experiment(name=name, skeleton=skeleton, model=model, optim=OptimConfig(learning_rate=rate))
    after = from_json(Experiment, to_json(before))
    assert after == before and isinstance(after.model.input_size, tuple)


def test_missing_settings_take_their_defaults():
    assert from_json(Experiment, '{"model": {"stacks": 2}}').model == HourglassConfig(stacks=2)


def test_a_whole_number_is_accepted_for_a_float():
    rate = from_json(OptimConfig, '{"learning_rate": 1}').learning_rate
    assert isinstance(rate, float) and rate == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a",\n "skeleton": }', "malformed JSON at line 2"),
        ("[]", "Experiment: expected an object"),
        ('{"model": 3}', "Experiment.model: expected an object"),
        ('{"model": {"layers": 3}}', "Experiment.model: no setting 'layers'"),
        ('{"model": {"stacks": "3"}}', "Experiment.model.stacks: expected int"),
        ('{"model": {"stacks": true}}', "Experiment.model.stacks: expected int"),
        ('{"model": {"stacks": 3.0}}', "Experiment.model.stacks: expected int"),
        ('{"model": {"remat": 1}}', "Experiment.model.remat: expected bool"),
        ('{"model": {"input_size": [256]}}', "Experiment.model.input_size: expected a list of 2"),
        ('{"model": {"input_size": [256, null]}}', "Experiment.model.input_size: expected int"),
        ('{"model": {"dtype": "int8"}}', "dtype must be"),
    ],
)
def test_bad_json_is_refused_with_the_place(text, message):
    with pytest.raises(ConfigError, match=message):
        from_json(Experiment, text)


def test_json_holds_every_setting():
    stored = json.loads(to_json(AugmentConfig()))
    assert set(stored) == {field.name for field in dataclasses.fields(AugmentConfig)}


def test_differences_name_nested_settings_with_both_values():
    ours = override(Experiment(), ["model.depth=2", "run.seed=3"])
    assert differences(ours, Experiment()) == ["model.depth: 2 against 4", "run.seed: 3 against 0"]
    assert differences(ours, ours) == []


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_heat_maps_are_a_quarter_of_the_input():
    assert HourglassConfig(input_size=(128, 192)).output_size == (32, 48)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("run.log_every=0", "log_every must be at least 1, got 0"),
        ("optim.batch=0", "batch must be at least 1"),
        ("optim.learning_rate=nan", "learning_rate must be at least 0, got nan"),
        ("augment.flip=1.5", "flip must be from 0 to 1, got 1.5"),
        ("data.canvas_margin=0.5", "canvas_margin must be at least 1"),
        ("augment.patch=1.5", "patch must be from 0 to 1, got 1.5"),
        ("localization.parallel_step=-1", "parallel_step must be at least 0, got -1"),
        ("localization.paths=inverse,sdtn", "paths must be some of sampling,inverse,parallel, got 'inverse,sdtn'"),
        ("localization.paths=inverse,inverse", "paths must be some of sampling,inverse,parallel"),
        ("localization.rate=-1", "rate must be at least 0, got -1"),
        ("localization.parallel_weight=nan", "parallel_weight must be at least 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(Experiment(), [assignment])


def test_a_parallel_sppe_needs_a_localization_network():
    with pytest.raises(ConfigError, match="localization: parallel: .* but kind is none"):
        override(Experiment(), ["localization.parallel=hourglass"])
    changed = override(Experiment(), ["localization.parallel=hourglass", "localization.kind=small"])
    assert (changed.localization.parallel, changed.localization.kind) == ("hourglass", "small")


def test_settings_that_depend_on_each_other_come_in_any_order():
    changed = override(Experiment(), ["model.input_size=16,16", "model.depth=1"])
    assert changed == override(Experiment(), ["model.depth=1", "model.input_size=16,16"])


def test_a_setting_of_named_choices_takes_these_alone():
    kind = Literal["laplace", "gaussian"]
    assert from_value(kind, "gaussian", "kernel") == "gaussian"
    for wrong in ("Gaussian", "", None, 1, ["gaussian"], {"gaussian": 1}):
        with pytest.raises(ConfigError, match="kernel: expected one of laplace, gaussian, got "):
            from_value(kind, wrong, "kernel")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Settings of which one is one of some names."""

    kernel: Literal["laplace", "gaussian"] = "laplace"
    width: float = 1.0


def test_named_choices_within_settings_are_read_and_named_by_their_path():
    assert from_value(Chosen, {"kernel": "gaussian"}, "nms") == Chosen("gaussian")
    with pytest.raises(ConfigError, match="nms.kernel: expected one of laplace, gaussian, got 'box'"):
        from_value(Chosen, {"kernel": "box"}, "nms")
    assert from_json(Chosen, to_json(Chosen("gaussian", 2.0))) == Chosen("gaussian", 2.0)


def test_another_kind_of_model_begins_with_its_own_settings_in_any_order():
    deep = override(Experiment(), ["model.stages=2", "optim.batch=4", "model=deep_pose"])
    assert deep.model == DeepPoseConfig(stages=2) and deep.optim.batch == 4
    # The kind that it has already changes nothing.
    assert override(deep, ["model=deep_pose", "model.side=0.5"]).model == DeepPoseConfig(stages=2, side=0.5)
    assert override(deep, ["model=hourglass"]).model == HourglassConfig()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model=vgg", "model: expected one of hourglass, deep_pose, person_detector, got 'vgg'"),
        ("model.kind=deep_pose", "kind is hourglass, and cannot be changed to 'deep_pose': say model=deep_pose"),
        ("model.stages=2", "no setting 'stages'"),
        ("optim=fast", "'optim' is a group of settings"),
    ],
)
def test_a_kind_of_model_is_chosen_by_its_name_alone(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(Experiment(), [assignment])


def test_json_tells_the_kind_of_model_and_means_an_hourglass_without():
    deep = Experiment(model=DeepPoseConfig(stages=2))
    assert from_json(Experiment, to_json(deep)) == deep
    old = json.loads(to_json(Experiment(model=HourglassConfig(stacks=3))))
    del old["model"]["kind"]
    assert from_json(Experiment, json.dumps(old)).model == HourglassConfig(stacks=3)
    for kind in ("vgg", 3):
        expected = "Experiment.model.kind: expected one of hourglass, deep_pose, person_detector"
        with pytest.raises(ConfigError, match=f"{expected}, got {kind!r}"):
            from_json(Experiment, json.dumps({"model": {"kind": kind}}))
    with pytest.raises(ConfigError, match="Experiment.model: expected an object, got 3"):
        from_json(Experiment, '{"model": 3}')


def test_models_of_two_kinds_differ_in_their_kind():
    found = differences(Experiment(), Experiment(model=DeepPoseConfig(), name="deep"))
    assert found == ["name: hourglass against deep", "model.kind: hourglass against deep_pose"]
