"""Detectors of transformers: a tiny one with random weights."""

import sys
import types

import numpy as np
import pytest

from rmpe_jax.errors import MissingExtraError
from rmpe_jax.predict.detectors import DetectorError
from rmpe_jax.predict.transformers_detector import TransformersDetector


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"transformers, which is not installed: pip install 'rmpe-jax\[transf"):
        TransformersDetector("anything")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A DETR-like detector of few parameters, as ``save_pretrained`` writes it."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.YolosConfig(
        num_hidden_layers=1, num_attention_heads=2, hidden_size=16, intermediate_size=16, image_size=[64, 96],
        num_detection_tokens=7, id2label={0: "thing", 1: "person"}, label2id={"thing": 0, "person": 1},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("detector")
    model = transformers.YolosForObjectDetection(config)
    # A fresh model says the same with every token.
    changed = [*model.class_labels_classifier.parameters(), *model.bbox_predictor.parameters()]
    for number, parameter in enumerate([*changed, model.vit.embeddings.detection_tokens]):
        torch.nn.init.normal_(parameter, std=0.4, generator=torch.Generator().manual_seed(number))
    model.save_pretrained(path)
    size = {"shortest_edge": 64, "longest_edge": 96}
    transformers.YolosImageProcessor(size=size).save_pretrained(path)
    return path


def test_the_boxes_are_those_of_the_library(folder):
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    image = np.random.default_rng(0).integers(0, 256, (50, 75, 3), dtype=np.uint8)
    found = TransformersDetector(folder, threshold=0.0)(image)
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    prepare = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**prepare(images=image, return_tensors="pt"))
    chance = outputs.logits.softmax(-1)[0, :, :2]
    people = chance.argmax(-1) == 1
    centre, side = outputs.pred_boxes[0, :, :2], outputs.pred_boxes[0, :, 2:]
    corners = torch.cat([centre - side / 2, centre + side / 2], 1) * torch.tensor([75, 50, 75, 50]) - 0.5
    corners = corners[people].clip(-0.5).minimum(torch.tensor([74.5, 49.5, 74.5, 49.5]))
    order = chance[people, 1].argsort(descending=True)
    assert len(order) >= 2
    np.testing.assert_allclose(found.xyxy, corners[order], rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.score, chance[people, 1][order], rtol=0, atol=1e-5)


def test_threshold_capacity_and_class_choose(folder):
    image = np.random.default_rng(0).integers(0, 256, (50, 75, 3), dtype=np.uint8)
    every = [TransformersDetector(folder, threshold=0.0, person=number)(image) for number in (0, 1)]
    assert sum(len(found.score) for found in every) == 7
    most = max(every, key=lambda found: len(found.score))
    person = 0 if most is every[0] else 1
    assert len(TransformersDetector(folder, threshold=0.0, person=person, capacity=2)(image).score) == 2
    cut = TransformersDetector(folder, threshold=float(most.score[1]), person=person)(image)
    np.testing.assert_array_equal(cut.score, most.score[:2])


def test_what_is_no_detector_is_named(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    with pytest.raises(DetectorError, match=f"{tmp_path}: no detector that transformers reads"):
        TransformersDetector(tmp_path)
    model = transformers.YolosForObjectDetection.from_pretrained(folder)
    model.config.id2label = {0: "cat", 1: "dog"}
    model.save_pretrained(tmp_path)
    transformers.AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(DetectorError, match=r"none of its classes is called person \(cat, dog, ...\)"):
        TransformersDetector(tmp_path)
