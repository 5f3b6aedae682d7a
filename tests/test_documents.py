"""The documents tell the truth: their examples run."""

import json
import re
import shutil
from pathlib import Path

import pytest

from rmpe_jax import cli, pretrained

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

skimage_data = pytest.importorskip("skimage.data", reason="needs scikit-image for its pictures")
PHOTOGRAPH = Path(skimage_data.__file__).parent / "camera.png"


@pytest.mark.slow
def test_the_examples_of_the_readme_run_one_after_the_other(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    shutil.copy(PHOTOGRAPH, tmp_path / "people.jpg")
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "drawn.jpg").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert "assert" in "".join(cells[-1]["source"]), "the last cell says what was shown"
    assert sum(len(cell["source"]) for cell in cells) <= 150
    names: dict[str, object] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)


def test_the_readme_names_only_commands_that_exist():
    parser = cli._parser()
    for line in re.findall(r"^rmpe (.+?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE):
        words = line.replace("PICTURE...", "PICTURE").split()
        parser.parse_args(words)


def test_every_shipped_network_has_a_model_card():
    for name in pretrained.shipped_weights():
        card = pretrained.weights_path(name).with_suffix(".md")
        assert any(measure in card.read_text() for measure in ("PCK@0.2", "AP50"))


def test_every_shipped_generator_of_proposals_is_described_by_a_card():
    cards = [path.read_text() for path in pretrained.weights_path(pretrained.DEFAULT).parent.glob("proposals-*.md")]
    for name in pretrained.shipped_proposals():
        assert any(name in text.splitlines()[0] for text in cards)


def test_make_targets_named_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
