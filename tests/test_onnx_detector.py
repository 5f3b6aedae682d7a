"""Detectors of others: small ONNX graphs in the layouts that such files have."""

import numpy as np
import pytest

from rmpe_jax.cli import main
from rmpe_jax.predict import onnx_detector as module
from rmpe_jax.predict.detectors import DetectorError
from rmpe_jax.predict.estimator import Estimator
from rmpe_jax.predict.onnx_detector import LAYOUTS, OnnxDetector

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper
SIZE = (64, 96)  # of the files' input: height, width
PICTURE = np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8)
FLOAT = TensorProto.FLOAT


def write(path, inputs, outputs, *, nodes=()):
    """A graph whose outputs are constants: name -> array; ``nodes`` go before."""
    constants, made = [], list(nodes)
    for name, array in outputs.items():
        if isinstance(array, np.ndarray):
            constants.append(numpy_helper.from_array(array, f"{name}_constant"))
            made.append(helper.make_node("Identity", [f"{name}_constant"], [name]))
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        if isinstance(array, np.ndarray)
        else helper.make_tensor_value_info(name, FLOAT, array)
        for name, array in outputs.items()
    ]
    graph = helper.make_graph(
        made, "detector", [helper.make_tensor_value_info(*given) for given in inputs], infos, initializer=constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def images(name="images", size=SIZE):
    return (name, FLOAT, [1, 3, *size])


# Two people and one thing, corners in the input's frame, edges between pixels.
CORNERS = np.array([[10, 12, 30, 44], [50, 20, 70, 60], [20, 14, 40, 40]], np.float32)
SCORES = np.array([0.6, 0.9, 0.8], np.float32)
KINDS = np.array([0, 0, 5])


def yolo_rows(count=40, classes=7):
    """(count, 4 + classes): the three above, and rows of nothing."""
    rows = np.zeros((count, 4 + classes), np.float32)
    rows[:3, :2], rows[:3, 2:4] = (CORNERS[:, :2] + CORNERS[:, 2:]) / 2, CORNERS[:, 2:] - CORNERS[:, :2]
    rows[np.arange(3), 4 + KINDS] = SCORES
    return rows


def yolox_rows(classes=7):
    """The same, not decoded, in the cells of their centres on the grid of stride 8."""
    columns, count = SIZE[1] // 8, sum(SIZE[0] // s * (SIZE[1] // s) for s in (8, 16, 32))
    rows = np.full((count, 5 + classes), -20, np.float32)
    rows[:, 4:] = 0
    plain = yolo_rows(3, classes)
    for row in plain:
        x, y = (row[:2] // 8).astype(int)
        place = y * columns + x
        rows[place, :2], rows[place, 2:4] = row[:2] / 8 - [x, y], np.log(row[2:4] / 8)
        rows[place, 4], rows[place, 5:] = 0.5, row[4:] * 2
    return rows


def file_of(layout, folder):
    """A file of a layout that finds the two people and the thing."""
    path = folder / f"{layout}.onnx"
    kinds = KINDS + module.PERSON[layout]
    if layout == "yolox":
        return write(path, [images()], {"output": yolox_rows()[None]})
    if layout == "yolo":
        return write(path, [images()], {"output0": yolo_rows().T[None].copy()})
    if layout == "end2end":
        rows = np.concatenate([CORNERS, SCORES[:, None], kinds[:, None]], 1, dtype=np.float32)
        return write(path, [images()], {"output0": rows[None]})
    if layout == "tensorflow":
        boxes = (CORNERS / np.tile(SIZE[::-1], 2))[None][..., [1, 0, 3, 2]].astype(np.float32)
        outputs = {"detection_boxes": boxes, "detection_scores": SCORES[None]}
        outputs |= {"detection_classes": kinds[None].astype(np.float32), "num_detections": np.array([3.0], np.float32)}
        return write(path, [("image_tensor", TensorProto.UINT8, [1, *SIZE, 3])], outputs)
    outputs = {"labels": kinds[None], "boxes": CORNERS[None], "scores": SCORES[None]}
    if layout == "boxes":
        return write(path, [images("input")], {name: array[0] for name, array in outputs.items()})
    inputs = [images(), ("orig_target_sizes", TensorProto.INT64, [1, 2])]
    # Boxes come in the picture: corners of the input's frame, scaled by the size that is given.
    frame = numpy_helper.from_array(np.tile(SIZE[::-1], 2).astype(np.float32), "frame")
    share = numpy_helper.from_array((CORNERS / np.tile(SIZE[::-1], 2)).astype(np.float32)[None], "share")
    nodes = [
        helper.make_node("Constant", [], ["share"], value=share),
        helper.make_node("Constant", [], ["frame"], value=frame),
        helper.make_node("Cast", ["orig_target_sizes"], ["size"], to=FLOAT),
        helper.make_node("Concat", ["size", "size"], ["twice"], axis=1),
        helper.make_node("Mul", ["share", "twice"], ["boxes"]),
    ]
    return write(path, inputs, outputs | {"boxes": [1, 3, 4]}, nodes=nodes)


def expected(layout):
    """The people's boxes in the picture, best first."""
    height, width = PICTURE.shape[:2]
    if layout in ("yolox", "yolo", "end2end"):
        ratio = np.array([0.96, 0.96])  # 96 / 100; the height becomes 48 of 64
        offset = np.array([0, 0 if layout == "yolox" else 8])
    else:
        ratio, offset = np.array(SIZE[::-1]) / [width, height], np.zeros(2)
    corners = (CORNERS[[1, 0]].reshape(2, 2, 2) - offset) / ratio - 0.5
    return np.clip(corners.reshape(2, 4), -0.5, np.tile([width, height], 2) - 0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised_and_its_people_stand_where_they_are_in_the_picture(tmp_path, layout):
    detector = OnnxDetector(file_of(layout, tmp_path))
    assert detector.layout == layout
    found = detector(PICTURE)
    np.testing.assert_allclose(found.xyxy, expected(layout), rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.score, [0.9, 0.6], rtol=0, atol=1e-5)
    assert found.valid.all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_class_is_found_by_its_number(tmp_path, layout):
    person = module.PERSON[layout] + 5
    found = OnnxDetector(file_of(layout, tmp_path), person=person)(PICTURE)
    np.testing.assert_allclose(found.score, [0.8], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("settings", "scores"), [({"threshold": 0.7}, [0.9]), ({"capacity": 1}, [0.9])])
def test_of_many_boxes_the_best_are_kept(tmp_path, settings, scores):
    found = OnnxDetector(file_of("end2end", tmp_path), **settings)(PICTURE)
    np.testing.assert_allclose(found.score, scores, rtol=0, atol=1e-6)


def test_raw_boxes_of_one_person_are_one_and_those_beside_stay(tmp_path):
    rows = yolo_rows()
    rows[3] = rows[1] + np.array([1, 1] + 9 * [0])
    rows[3, 4] = 0.85
    rows[4] = rows[1] + np.array([14] + 10 * [0])
    rows[4, 4] = 0.3
    found = OnnxDetector(write(tmp_path / "d.onnx", [images()], {"output0": rows.T[None].copy()}))(PICTURE)
    np.testing.assert_allclose(found.score, [0.9, 0.6, 0.3], rtol=0, atol=1e-6)


def test_numbers_that_are_not_finite_and_boxes_outside_are_left_out(tmp_path):
    rows = np.concatenate([CORNERS, SCORES[:, None], KINDS[:, None]], 1, dtype=np.float32)
    broken = np.tile(rows[:1], (6, 1))
    broken[0, 4], broken[1, 0], broken[2, 2] = np.nan, np.nan, np.inf
    broken[3, [0, 2]], broken[4, [1, 3]], broken[5, [0, 2]] = [30, 10], [-90, -20], [400, 500]
    found = OnnxDetector(
        write(tmp_path / "d.onnx", [images()], {"output0": np.concatenate([broken, rows[1:2]])[None]})
    )(PICTURE)
    # An infinite corner is cut at the picture's edge like any other that lies outside.
    np.testing.assert_allclose(found.score, [0.9, 0.6], rtol=0, atol=1e-6)
    assert np.isfinite(found.xyxy).all() and found.xyxy[1, 2] == 99.5


@pytest.mark.parametrize(
    ("layout", "channel", "unit"), [("yolox", 0, 1.0), ("yolo", 2, 255.0), ("boxes", 2, 255.0), ("detr", 2, 255.0)]
)
def test_a_file_sees_the_colours_that_its_layout_takes(tmp_path, layout, channel, unit):
    # The file gives the mean of one channel as its score, of a picture that is blue alone.
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[..., 2] = 51
    reduce = [
        helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([2, 3]), "a")),
        helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0),
    ]
    path = write(tmp_path / "d.onnx", [images()], {"means": [1, 3]}, nodes=reduce)
    seen, scale, offset = module._PREPARED[layout](picture, SIZE)
    means = module._session(path).run(None, {"images": seen})[0][0]
    assert means[channel] == pytest.approx(51 / unit, rel=1e-4) == means.sum()
    assert scale.tolist() == [1, 1] and offset.tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (400, 3), (1000, 900)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_of_every_size_are_looked_at(tmp_path, layout, shape):
    found = OnnxDetector(file_of(layout, tmp_path))(np.zeros((*shape, 3), np.uint8))
    height, width = shape
    assert np.isfinite(found.xyxy).all() and (found.xyxy >= -0.5).all()
    assert (found.xyxy <= np.tile([width, height], 2) - 0.5).all()


def test_a_file_that_leaves_its_size_open_sees_640_pixels(tmp_path):
    inputs = [("images", FLOAT, ["batch", 3, "height", "width"])]
    detector = OnnxDetector(write(tmp_path / "d.onnx", inputs, {"output0": np.zeros((1, 9, 100), np.float32)}))
    assert detector._input_size() == (640, 640)
    assert len(detector(PICTURE).score) == 0


def test_unknown_outputs_are_shown_with_what_is_supported(tmp_path):
    path = write(tmp_path / "d.onnx", [images()], {"logits": np.zeros((1, 5, 2, 2), np.float32)})
    with pytest.raises(DetectorError, match=r"d.onnx: not one of the known layouts \(yolox, .*logits.*\[1, 5, 2, 2\]"):
        OnnxDetector(path)
    with pytest.raises(DetectorError, match=r"its outputs are not those of yolo"):
        OnnxDetector(path, layout="yolo")(PICTURE)
    with pytest.raises(DetectorError, match="unknown layout 'rcnn'; known: yolox"):
        OnnxDetector(path, layout="rcnn")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"nothing", "not a model that ONNX Runtime")]
)
def test_a_file_that_is_no_model_is_named(tmp_path, content, message):
    path = tmp_path / "d.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DetectorError, match=f"{path}: {message}"):
        OnnxDetector(path)


def test_an_estimator_finds_poses_in_its_boxes(tmp_path, tiny_weights):
    detector = OnnxDetector(file_of("end2end", tmp_path))
    poses = Estimator(tiny_weights, detector=detector, batch=4, nms=None, flip_test=False)(PICTURE)
    assert len(poses.valid) == 2
    order = np.lexsort(np.asarray(poses.boxes).T)
    wanted = expected("end2end").astype(np.float32)
    np.testing.assert_allclose(np.asarray(poses.boxes)[order], wanted[np.lexsort(wanted.T)], rtol=0, atol=1e-3)


WANTED = "--detector: expected builtin, builtin:FILE, file:FILE, onnx:FILE, hf:NAME or hog"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "hog", "--boxes", "b.json"], "--detector hog: with --boxes it has no use"),
        (["--detector", "yolo"], f"{WANTED}, got 'yolo'"),
        (["--detector", "onnx:"], f"{WANTED}, got 'onnx:'"),
        (["--detector", "file:"], f"{WANTED}, got 'file:'"),
        (["--detector", "file"], f"{WANTED}, got 'file'"),
        (["--detector", "hog:x"], f"{WANTED}, got 'hog:x'"),
        (["--detector", "onnx:none.onnx"], "none.onnx: no such file"),
        (["--detector", "file:none.json"], "none.json: no such file"),
        (["--detector", "builtin:none.safetensors"], "none.safetensors: no such file"),
        (["--detector", "builtin:hourglass-lspet-coco"], "weights of kind hourglass, not of a person detector"),
        (["--weights", "person-detector"], "person-detector: weights of a person detector, which estimates no poses"),
        (["--person", "0"], "--person is of onnx:FILE and hf:NAME: with builtin it has no use"),
        (["--detector", "hog", "--detector-score", "0.1"], "--detector-score: with hog it has no use"),
        (["--detector", "builtin:"], f"{WANTED}, got 'builtin:'"),
        (["--detector", ""], f"{WANTED}, got ''"),
        (["--detector", "hf:x", "--detector-layout", "yolo"], "--detector-layout is of onnx:FILE"),
    ],
)
def test_a_detector_that_cannot_be_is_one_line(capsys, options, message):
    assert main(["predict", "picture.jpg", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rmpe: ") and message in line
