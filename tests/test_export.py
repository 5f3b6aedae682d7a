"""Exported programs, read back, compute what the package computes."""

import functools
import json
import sys
import zipfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from made_data import picture

import rmpe_jax
from rmpe_jax import export
from rmpe_jax.cli import main
from rmpe_jax.config import DeepPoseConfig, Experiment, HourglassConfig, LocalizationConfig
from rmpe_jax.errors import MissingExtraError, RmpeError
from rmpe_jax.export import ExportError, export_weights, load_exported
from rmpe_jax.geometry.affine import identity_affine
from rmpe_jax.models.rmpe import init_estimator
from rmpe_jax.models.single_person import estimate_heatmaps, estimate_joints
from rmpe_jax.predict.estimator import estimate_poses
from rmpe_jax.pretrained import Weights, save_weights
from rmpe_jax.records import Boxes

pytest.importorskip("flatbuffers", reason="the extra `export` is not installed")
onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

SIZE = (96, 128)
PICTURE = picture(*SIZE)
BROKEN = [[np.nan, 0, 20, 20], [30, 30, 10, 10], [500, 500, 600, 600]]
BOXES = np.array([[10, 5, 60, 90], [50.5, 20.25, 120, 80], [-20, -10, 40, 50], *BROKEN], np.float32)
NETWORKS = ("hourglass", "stn", "deep_pose")


@functools.cache
def weights(kind, dtype="float32", remat=False):
    """A tiny network whose batch norm does something and whose theta is not the identity."""
    model = HourglassConfig(stacks=1, features=8, depth=1, input_size=(64, 64), dtype=dtype, remat=remat)
    localization = LocalizationConfig()
    if kind == "stn":
        model = HourglassConfig(
            stacks=1, features=8, depth=1, input_size=(64, 64), decoder="dark", calibration=(1.5, -0.5)
        )
        localization = LocalizationConfig(kind="small", source="picture")
    if kind == "deep_pose":
        model = DeepPoseConfig(width=1 / 16, stages=2, input_size=(64, 64))
    experiment = Experiment(name=f"tiny-{kind}", skeleton="lsp_14", model=model, localization=localization)
    rng = np.random.default_rng(0)

    def disturbed(path, leaf):
        name = "/".join(str(entry.key) for entry in path)
        if "theta_zero" in name:
            return rng.normal(0, 0.02, leaf.shape).astype(np.float32)
        if name.endswith("var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if name.endswith("kernel"):
            return leaf
        return leaf + rng.normal(0, 0.2, leaf.shape).astype(np.float32)

    variables = init_estimator(jax.random.key(0), experiment)
    return Weights(experiment, jax.tree_util.tree_map_with_path(disturbed, variables))


def arrays(program, count=3):
    if program == "poses":
        return PICTURE, BOXES[:count]
    return (np.random.default_rng(1).random((3, 64, 64, 3), np.float32)[:count],)


@functools.cache
def computed(kind, program):
    """What a program has to give for three people, by the package's own functions; ``sppe`` with the flip test."""
    network, settings = weights(kind), {"experiment": weights(kind).experiment, "flip_test": program == "sppe"}

    def poses(image, boxes):
        given = Boxes(boxes, jnp.ones(3), jnp.ones(3, bool))
        found = estimate_poses(network.variables, image, given, nms=None, **settings)
        return {"points": found.points, "score": found.score, "valid": found.valid}

    def heatmaps(crops):
        return {"heatmaps": estimate_heatmaps(network.variables, crops, **settings)}

    @jax.jit
    def joints(crop):
        return estimate_joints(network.variables, crop * 255, crop[None], identity_affine()[None], **settings)

    given = arrays(program)
    if program == "sppe" and kind == "deep_pose":
        points, score = zip(*(joints(crop) for crop in given[0]), strict=True)
        return {"points": np.concatenate(points), "score": np.concatenate(score)}
    return jax.tree.map(np.asarray, jax.jit(poses if program == "poses" else heatmaps)(*given))


def run_onnx(path, *given):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    inputs = {each.name: array for each, array in zip(session.get_inputs(), given, strict=True)}
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        found_array = np.asarray(found[name])
        assert found_array.dtype == array.dtype and found_array.shape == array.shape
        tolerance = {"points": 1e-3, "valid": 0}.get(name, 1e-5)
        np.testing.assert_allclose(found_array, array, rtol=0, atol=tolerance, err_msg=name)


def first(found, count):
    return {name: array[:count] for name, array in found.items()}


CASES = [(kind, program) for kind in NETWORKS[:2] for program in export.PROGRAMS]
CASES += [pytest.param("deep_pose", program, marks=pytest.mark.slow) for program in export.PROGRAMS]


@pytest.mark.parametrize(("kind", "program"), CASES)
def test_the_stablehlo_file_computes_what_the_package_does_at_any_batch(tmp_path, kind, program):
    settings = {"program": program, "picture_size": SIZE, "flip_test": program == "sppe"}
    export_weights(weights(kind), tmp_path / "p.zip", "stablehlo", **settings)
    loaded, expected = load_exported(tmp_path / "p.zip"), computed(kind, program)
    for count in (1, 3):
        assert_equal(loaded(*arrays(program, count)), first(expected, count))


@pytest.mark.parametrize(("kind", "program"), CASES)
def test_the_onnx_file_computes_what_the_package_does_at_any_batch(tmp_path, kind, program):
    settings = {"program": program, "picture_size": SIZE, "flip_test": program == "sppe"}
    export_weights(weights(kind), tmp_path / "p.onnx", "onnx", **settings)
    expected = computed(kind, program)
    for count in (1, 3):
        assert_equal(run_onnx(tmp_path / "p.onnx", *arrays(program, count)), first(expected, count))


def test_unusable_boxes_are_not_valid_score_nothing_and_leave_the_others_alone(tmp_path):
    for format in export.FORMATS:
        export_weights(weights("stn"), tmp_path / format, format, picture_size=SIZE)
    for found in (load_exported(tmp_path / "stablehlo")(PICTURE, BOXES), run_onnx(tmp_path / "onnx", PICTURE, BOXES)):
        assert np.asarray(found["valid"]).tolist() == [True] * 3 + [False] * 3
        assert np.isfinite(found["points"]).all() and not np.asarray(found["score"])[3:].any()
        assert_equal(first(found, 3), computed("stn", "poses"))


def test_pictures_of_floats_and_a_fixed_batch_are_options(tmp_path):
    settings = {"picture_size": SIZE, "picture_dtype": "float32", "batch": 2}
    about = export_weights(weights("hourglass"), tmp_path / "p.zip", "stablehlo", **settings)
    assert about["inputs"]["picture"]["dtype"] == "float32" and about["inputs"]["boxes"]["shape"] == [2, 4]
    export_weights(weights("hourglass"), tmp_path / "p.onnx", "onnx", **settings)
    expected = first(computed("hourglass", "poses"), 2)
    given = PICTURE.astype(np.float32), BOXES[:2]
    assert_equal(load_exported(tmp_path / "p.zip")(*given), expected)
    assert_equal(run_onnx(tmp_path / "p.onnx", *given), expected)


def test_onnx_of_a_network_that_trained_in_bfloat16_computes_in_float32(tmp_path):
    trained = weights("hourglass", "bfloat16", remat=True)
    export_weights(trained, tmp_path / "p.onnx", "onnx", program="sppe", flip_test=True)
    assert_equal(run_onnx(tmp_path / "p.onnx", *arrays("sppe")), computed("hourglass", "sppe"))


# What the files say


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The sppe program in both formats, and its metadata."""
    folder = tmp_path_factory.mktemp("exported")
    settings = {"program": "sppe", "flip_test": True}
    about = [export_weights(weights("hourglass"), folder / format, format, **settings) for format in export.FORMATS]
    assert about[0] == about[1]
    return folder / "stablehlo", folder / "onnx", about[0]


def test_both_files_tell_inputs_outputs_joints_and_versions(files):
    stablehlo, path, about = files
    assert about["inputs"]["crops"] == {
        "shape": ["b", 64, 64, 3],
        "dtype": "float32",
        "meaning": "RGB in [0, 1], one person each",
    }
    assert about["outputs"]["heatmaps"]["shape"] == ["b", 16, 16, 14]
    assert about["joints"] == list(rmpe_jax.LSP_14.joints) and about["skeleton"] == "lsp_14"
    assert (about["jax"], about["rmpe_jax"]) == (jax.__version__, rmpe_jax.__version__)
    assert load_exported(stablehlo).metadata == about
    texts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert texts.keys() == about.keys() and texts["program"] == "sppe"
    assert {key: value if isinstance(about[key], str) else json.loads(value) for key, value in texts.items()} == about


def test_plain_jax_reads_the_program_of_the_archive(files):
    with zipfile.ZipFile(files[0]) as archive:
        exported = jax.export.deserialize(bytearray(archive.read("program")))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert_equal(exported.call(*arrays("sppe")), computed("hourglass", "sppe"))


def test_the_same_weights_give_the_same_file_which_names_no_sources(files, tmp_path):
    for path, format in zip(files, export.FORMATS, strict=False):
        export_weights(weights("hourglass"), tmp_path / format, format, program="sppe", flip_test=True)
        content = (tmp_path / format).read_bytes()
        assert content == path.read_bytes()
        assert not any(name in content for name in (b"hourglass.py", b"test_export", b"site-packages"))


# What cannot be read


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(files, tmp_path, share):
    content = files[0].read_bytes()
    (tmp_path / "p.zip").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ExportError, match="p.zip: damaged, or not a StableHLO file of rmpe export"):
        load_exported(tmp_path / "p.zip")


@pytest.mark.parametrize("place", [60, 0.3, 0.6, 0.9])
def test_a_flipped_bit_is_told(files, tmp_path, place):
    content = bytearray(files[0].read_bytes())
    content[place if isinstance(place, int) else int(place * len(content))] ^= 1
    (tmp_path / "p.zip").write_bytes(content)
    with pytest.raises(ExportError, match="p.zip: damaged"):
        load_exported(tmp_path / "p.zip")


def write_archive(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)


GOOD = json.dumps({"format": export.FORMAT, "jax": "9.9.9", "inputs": {}})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"program": b""}, "damaged, or not a StableHLO file of rmpe export: .*no item named 'metadata.json'"),
        ({"metadata_json": b"{", "program": b""}, "damaged, or not a StableHLO file"),
        ({"metadata_json": b"\xff", "program": b""}, "damaged, or not a StableHLO file"),
        ({"metadata_json": b"[]", "program": b""}, "not a StableHLO file of rmpe export .format"),
        ({"metadata_json": b'{"format": "other"}', "program": b""}, "not a StableHLO file of rmpe export .format"),
        (
            {"metadata_json": GOOD, "program": b"\x00" * 200},
            "not a program that this JAX reads .written with jax 9.9.9, read with",
        ),
        ({"metadata_json": GOOD, "program": b"cos\nsystem\n(S'true'\ntR."}, "not a program that this JAX reads"),
    ],
)
def test_a_foreign_archive_is_one_error(tmp_path, members, message):
    write_archive(tmp_path / "p.zip", **members)
    with pytest.raises(ExportError, match=message):
        load_exported(tmp_path / "p.zip")


def test_a_program_of_a_newer_jax_is_one_error_when_it_is_compiled(files, tmp_path):
    with zipfile.ZipFile(files[0]) as archive:
        metadata, program = (archive.read(name) for name in ("metadata.json", "program"))
    newer = program.replace(b"custom_call_v1", b"custom_call_v9")
    assert newer != program
    write_archive(tmp_path / "p.zip", metadata_json=metadata, program=newer)
    with pytest.raises(ExportError, match="the program: not a program that this JAX reads .written with jax"):
        load_exported(tmp_path / "p.zip")(*arrays("sppe"))


def test_what_is_no_archive_is_one_error(files, tmp_path):
    with pytest.raises(ExportError, match="onnx: damaged, or not a StableHLO file"):
        load_exported(files[1])
    with pytest.raises(ExportError, match="none.zip: cannot be read: No such file"):
        load_exported(tmp_path / "none.zip")
    with pytest.raises(ExportError, match="cannot be read: Is a directory"):
        load_exported(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), r"expected 1 arrays \(crops\), got 0"),
        (
            (np.zeros((2, 64, 32, 3), np.float32),),
            r"float32 crops of shape \(b, 64, 64, 3\), got float32 \(2, 64, 32, 3",
        ),
        ((np.zeros((64, 64, 3), np.float32),), r"got float32 \(64, 64, 3\)"),
        ((np.zeros((1, 64, 64, 3), complex),), r"got complex128 \(1, 64, 64, 3\)"),
    ],
)
def test_a_program_names_what_it_takes(files, given, message):
    with pytest.raises(ValueError, match=message):
        load_exported(files[0])(*given)


# What cannot be written


@pytest.mark.parametrize(
    ("format", "settings", "message"),
    [
        ("tflite", {}, "expected a format of stablehlo, onnx, got 'tflite'"),
        ("onnx", {"program": "nms"}, "expected a program of poses, sppe, got 'nms'"),
        ("onnx", {"picture_dtype": "int8"}, "expected a picture_dtype of uint8, float32, got 'int8'"),
        ("onnx", {"picture_size": (0, 10)}, "two numbers from 1 to 32768, got"),
        ("onnx", {"picture_size": (10, 40000)}, "two numbers from 1 to 32768, got"),
        ("onnx", {"batch": 0}, "a batch of at least 1, got 0"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_written(tmp_path, format, settings, message):
    with pytest.raises(ExportError, match=message):
        export_weights(weights("hourglass"), tmp_path / "p", format, **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("format", "library"), [("stablehlo", "flatbuffers"), ("onnx", "onnx")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, capsys, format, library):
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"needs {library}, which is not installed: pip install 'rmpe-jax\[export\]'"
    with pytest.raises(MissingExtraError, match=message):
        export_weights(weights("hourglass"), tmp_path / "p", format, program="sppe")
    save_weights(tmp_path / "w.safetensors", weights("hourglass"))
    arguments = ["--weights", str(tmp_path / "w.safetensors"), "--program", "sppe", "--out", str(tmp_path / "p")]
    assert main(["export", "--format", format, *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and library in err
    assert not (tmp_path / "p").exists()


def test_reading_without_flatbuffers_names_it(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(MissingExtraError, match="reading StableHLO needs flatbuffers"):
        load_exported(files[0])


# The command


def test_the_command_writes_a_program_and_says_what_it_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_weights("w.safetensors", weights("hourglass"))
    command = ["export", "--weights", "w.safetensors", "--flip"]
    assert main([*command, "--format", "stablehlo", "--picture-size", "96,128", "--batch", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:5]] == [
        ["input", "picture"],
        ["input", "boxes"],
        ["output", "points"],
        ["output", "score"],
        ["output", "valid"],
    ]
    assert "uint8 (96, 128, 3)" in lines[0] and "float32 (3, 4)" in lines[1]
    assert lines[5].startswith("poses of 14 joints, 0.") and lines[5].endswith("tiny-hourglass-poses.stablehlo.zip")
    loaded = load_exported("tiny-hourglass-poses.stablehlo.zip")
    assert loaded.metadata["flip_test"] is True
    assert main([*command, "--format", "onnx", "--program", "sppe", "--out", "new/heatmaps.onnx"]) == 0
    assert run_onnx("new/heatmaps.onnx", *arrays("sppe", 2))["heatmaps"].shape == (2, 16, 16, 14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "nobody"], "nobody: no such file, and not one of the shipped weights"),
        (["--weights", "broken.safetensors"], "broken.safetensors: damaged"),
        (["--picture-size", "0,640"], "expected a picture size of two numbers from 1 to 32768, got (0, 640)"),
        (["--program", "sppe", "--picture-size", "96,128"], "--picture-size and --picture-dtype are for --program"),
        (["--out", "."], ".: cannot be written: is a folder"),
        (["--out", "broken.safetensors/p.onnx"], "cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_text("dear diary")
    assert main(["export", "--format", "onnx", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and message in err


@pytest.mark.parametrize(
    "arguments",
    [[], ["--format", "tflite"], ["--format", "onnx", "--picture-size", "640"], ["--format", "onnx", "--batch", "0"]],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", *arguments])
    assert stopped.value.code == 2 and "usage: rmpe export" in capsys.readouterr().err


def test_errors_of_an_export_are_those_of_the_package():
    assert issubclass(ExportError, RmpeError) and issubclass(ExportError, ValueError)
