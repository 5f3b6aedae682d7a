import argparse
import dataclasses
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rmpe_jax.config import Experiment, LocalizationConfig, override
from rmpe_jax.data.people import Person
from rmpe_jax.models.rmpe import estimator_shapes
from rmpe_jax.pretrained import load_weights

FOLDER = Path(__file__).parents[1] / "experiments"
PHASES = ("rmpe_1_sppe", "rmpe_2_proposals", "rmpe_3_sstn")


def experiment(name) -> Experiment:
    return runpy.run_path(str(FOLDER / f"{name}.py"))["experiment"]


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(FOLDER))
    try:
        import remapping_study  # pyright: ignore[reportMissingImports]

        return remapping_study
    finally:
        sys.path.remove(str(FOLDER))


def output(phase):
    """Where ``rmpe train`` leaves the weights of an experiment."""
    return f"runs/{phase.name}/{phase.name}.safetensors"


def test_each_phase_starts_from_the_weights_of_the_one_before():
    first, second, third = map(experiment, PHASES)
    assert (first.start, second.start, third.start) == ("", output(first), output(second))
    assert third.localization.parallel == output(first)
    assert third.optim.learning_rate < second.optim.learning_rate < first.optim.learning_rate


def test_the_phases_have_one_estimator_and_only_the_last_an_stn():
    first, second, third = map(experiment, PHASES)
    assert first.model == second.model == third.model and first.skeleton == third.skeleton
    kinds = [phase.localization.kind for phase in (first, second, third)]
    assert kinds == ["none", "none", "small"]
    sppe, both = (estimator_shapes(phase)["params"] for phase in (first, third))
    assert jax.tree.structure(both["sppe"]) == jax.tree.structure(sppe)


def test_at_full_size_numbers_alone_make_the_original():
    full = ["model.stacks=8", "model.features=256", "model.depth=4", "model.input_size=256,256"]
    third = override(experiment(PHASES[2]), [*full, "localization.kind=resnet18"])
    sizes = jax.tree.map(lambda leaf: np.prod(leaf.shape), estimator_shapes(third)["params"])
    assert sum(jax.tree.leaves(sizes["localization"])) == 11_182_598


def test_the_ways_of_the_study_differ_in_what_they_are_about_alone(study):
    base = experiment(PHASES[2])
    ways = {way: study.experiment_of(way, base) for way in study.WAYS}
    plain = dataclasses.replace(ways["a"], name="")
    for way, changed in ways.items():
        same = dataclasses.replace(changed, name="", localization=plain.localization, augment=plain.augment)
        assert same == plain
        assert (changed.localization == LocalizationConfig(rate=base.localization.rate)) == (way in "ad")
    laws = {way: changed.augment.proposals for way, changed in ways.items()}
    assert laws == dict.fromkeys("abcfe", "harsh") | {"d": "exact"}
    assert ways["c"].localization.paths == "sampling,inverse,parallel" and ways["f"].localization.paths == "parallel"
    assert [ways[way].localization.parallel_step for way in "cfe"] == [0, 0, study.STEP]


def test_the_first_stack_of_the_shipped_weights_stands_alone(study):
    known = load_weights()
    one = override(known.experiment, ["model.stacks=1"])
    weights = study.first_stacks(known, one)
    shapes = jax.tree.map(lambda leaf: leaf.shape, estimator_shapes(one))
    assert jax.tree.map(lambda leaf: leaf.shape, weights.variables) == shapes


def test_the_studys_summary_by_hand(study):
    # Three people in two pictures; one joint each. Way x: all right; way y: the first and the second wrong.
    def run(correct, error):
        right = np.array(correct, bool)[:, None]
        return {"correct": right, "counted": np.ones((3, 1), bool), "error": np.full(3, error)}

    x, y, picture = [run([1, 1, 1], 0.1)], [run([0, 0, 1], 0.3), run([0, 1, 1], 0.5)], np.array([0, 0, 1])
    found = study.summary(y, [x], picture)
    assert found["seeds"] == pytest.approx([1 / 3, 2 / 3]) and found["theta_error"] == pytest.approx(0.4)
    assert found["pck"][0] == pytest.approx(0.5)
    # The gain is that of the seeds that both have.
    assert found["gains"][0][0] == pytest.approx(-2 / 3)
    # Drawn twice, the first picture gives the lowest score, the second picture the highest: people stay together.
    assert found["pck"][1:] == pytest.approx([0.25, 1.0])


def test_weights_of_other_settings_are_not_taken_for_those_of_this_run(study, tmp_path):
    known = load_weights()
    path = tmp_path / "way-a-1.safetensors"
    study.save_weights(path, known)
    path.with_suffix(".json").write_text("0.1")
    people: list[Person] = []
    found, seconds = study.fit(known.experiment, people, path, None, None, 1)
    assert seconds == 0.1 and found.experiment.model == known.experiment.model
    # Of a file of proposals the weights know the name.
    study.save_weights(path, dataclasses.replace(known, experiment=study.with_proposals(known.experiment, "law.npz")))
    elsewhere = study.with_proposals(known.experiment, str(tmp_path / "law.npz"))
    assert study.fit(elsewhere, people, path, None, None, 1)[1] == 0.1
    study.save_weights(path, known)
    other = override(known.experiment, ["optim.steps=7"])
    with pytest.raises(SystemExit, match="other settings .optim.steps: 7 against 12000"):
        study.fit(other, people, path, None, None, 1)


@pytest.fixture(scope="module")
def drawn(study):
    """Drawn people of whom a detector gives the third two boxes, the better one first, and nobody else any."""
    settings = ["data.canvas=32", "data.min_joints=3", "skeleton=coco_lsp_19"]
    base = override(experiment(PHASES[0]), settings)
    offsets = np.array([[0.1, 0.2, 0.3, -0.1], [0.5, 0, 0, 0]], np.float32)

    def find(name, folder, split):
        assert (name, folder, split) == ("synthetic", ".", "val")
        nothing = np.zeros((0, 19))
        return study.FoundPeople(np.zeros((0, 4)), np.zeros((0, 19, 2)), nothing > 0, offsets, np.array([2, 2]))

    options = argparse.Namespace(quick=True, lspet="LSPET", coco="COCO")
    (people,) = study.people_to_test(options, base, np.ones(19, bool), find)
    return people


def test_the_study_measures_in_the_best_box_of_those_whom_the_detector_found(study, drawn):
    alone, boxes = study.detected_alone(drawn)
    assert len(drawn.canvases) > 100 and len(alone.canvases) == 1 and alone.picture.tolist() == [0]
    np.testing.assert_array_equal(alone.canvases.points[0], drawn.canvases.points[2])
    x0, y0, x1, y1 = drawn.canvases.box[2]
    width, height = x1 - x0, y1 - y0
    by_hand = [x0 + 0.1 * width, y0 + 0.2 * height, x1 + 0.3 * width, y1 - 0.1 * height]
    np.testing.assert_allclose(boxes[0], by_hand, rtol=1e-5)


def test_the_studys_proposals_follow_a_law_by_name_or_a_learned_one(study, drawn):
    base = override(experiment(PHASES[2]), ["skeleton=coco_lsp_19"])
    own = drawn.canvases.box
    found = {}
    for name in ("exact", "harsh", "pgpg-builtin"):
        generator = study.read_generator(study.with_proposals(base, name))
        found[name] = study.proposals_of(drawn.canvases, generator)
        np.testing.assert_array_equal(found[name], study.proposals_of(drawn.canvases, generator))
    np.testing.assert_array_equal(found["exact"], own)
    # The harsh law moves centres by up to 0.3 of the side: further than the detector does on average.
    shift = {
        name: np.abs((boxes + np.roll(boxes, 2, 1) - own - np.roll(own, 2, 1))[:, :2] / 2 / (own[:, 2:] - own[:, :2]))
        for name, boxes in found.items()
    }
    assert shift["harsh"].max() < 0.301 and 0 < shift["pgpg-builtin"].mean() < shift["harsh"].mean()


def test_benchmarks_share_their_command_line(tmp_path, capsys):
    command = SimpleNamespace(**runpy.run_path(str(FOLDER.parent / "benchmarks" / "command.py")))
    options = command.parser("Times something.", quick="less").parse_args(["--quick", "--json", "-"])
    assert options.quick
    command.report({"ratio": 2.5}, options.json)
    assert capsys.readouterr().out == 'ratio: 2.5\n{"ratio": 2.5}\n'
    command.report({"ratio": 2.5}, str(tmp_path / "found.json"), "a table")
    assert capsys.readouterr().out == "a table\n" and json.loads((tmp_path / "found.json").read_text()) == {
        "ratio": 2.5
    }
