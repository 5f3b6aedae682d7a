import json
import platform
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import jax
import PIL
import pytest

import rmpe_jax
from rmpe_jax.config import Experiment, from_value, override
from rmpe_jax.train import provenance
from rmpe_jax.train.provenance import revision, versions, write_provenance

AUTHOR = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")


def git(folder, *command):
    return subprocess.run(["git", "-C", folder, *command], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit that holds a package and its pyproject.toml."""
    (tmp_path / "rmpe_jax").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    try:
        git(tmp_path, "init", "-q")
    except FileNotFoundError:
        pytest.skip("there is no git")
    git(tmp_path, "add", ".")
    git(tmp_path, *AUTHOR, "commit", "-q", "-m", "first")
    return tmp_path


def test_a_run_can_be_made_again_from_what_is_written(tmp_path):
    experiment = override(Experiment(), ["model.stacks=2", "optim.drops=0.5,0.9", "name=two"])
    before = datetime.now(UTC) - timedelta(seconds=1)
    write_provenance(tmp_path / "new" / "run.json", experiment)
    written = json.loads((tmp_path / "new" / "run.json").read_text())
    assert list(written) == ["date", "revision", "versions", "devices", "experiment"]
    assert from_value(Experiment, written["experiment"], "experiment") == experiment
    assert before <= datetime.fromisoformat(written["date"]) <= datetime.now(UTC)
    assert written["versions"] == versions() and written["revision"] == revision()
    assert written["devices"] == {"kind": "cpu", "count": 4, "processes": 1}


def test_the_devices_that_a_run_uses_are_counted(tmp_path):
    write_provenance(tmp_path / "run.json", Experiment(), devices=jax.devices()[:3])
    assert json.loads((tmp_path / "run.json").read_text())["devices"]["count"] == 3


def test_what_computes_has_a_version():
    found = versions()
    assert found["rmpe_jax"] == rmpe_jax.__version__ and found["python"] == platform.python_version()
    assert found["jax"] == jax.__version__
    assert {"jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"} <= set(found)


def test_what_decodes_pictures_has_a_version():
    found = versions()
    assert found["pillow"] == PIL.__version__
    # Distributions of OpenCV add a number to its own version.
    assert any(found[name].startswith(cv2.__version__) for name in found if name.startswith("opencv-"))


def test_an_accelerators_plugin_has_a_version(tmp_path, monkeypatch):
    about = tmp_path / "jax_octopus-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: jax-octopus\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[jax_plugins]\noctopus = jax_octopus\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert versions()["jax-octopus"] == "1.2"


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(provenance, "_PACKAGES", ("numpy", "octopus"))
    assert "numpy" in versions() and "octopus" not in versions()


def test_a_checkout_has_its_commit_as_revision_and_says_where_it_was_changed(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert len(commit) == 40
    git(checkout, *AUTHOR, "tag", "-a", "v1", "-m", "first version")
    assert revision(checkout / "rmpe_jax") == commit
    (checkout / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert revision(checkout / "rmpe_jax") == f"{commit}-dirty"


def test_a_repository_that_only_surrounds_the_package_is_not_its_revision(checkout):
    installed = checkout / "site-packages" / "rmpe_jax"
    installed.mkdir(parents=True)
    (checkout / "site-packages" / "pyproject.toml").touch()
    assert revision(installed) is None
    (checkout / "pyproject.toml").unlink()
    assert revision(checkout / "rmpe_jax") is None


def test_another_repository_named_by_the_environment_is_not_asked(checkout, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("other")))
    assert len(revision(checkout / "rmpe_jax")) == 40


def test_outside_a_checkout_there_is_no_revision(tmp_path):
    assert revision(tmp_path / "rmpe_jax") is None
    assert revision(tmp_path / "missing" / "rmpe_jax") is None


def test_without_git_there_is_no_revision(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    assert revision(checkout / "rmpe_jax") is None


def test_a_git_that_does_not_answer_is_not_waited_for(checkout, monkeypatch):
    slow = checkout / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec /bin/sleep 20\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent))
    monkeypatch.setattr(provenance, "_PATIENCE", 0.2)
    begun = datetime.now(UTC)
    assert revision(checkout / "rmpe_jax") is None
    assert datetime.now(UTC) - begun < timedelta(seconds=10)


def test_this_checkout_or_none_is_the_packages_own():
    root = Path(rmpe_jax.__file__).parents[1]
    found = revision()
    if (root / ".git").exists() and found is not None:
        assert found.removesuffix("-dirty") == git(root, "rev-parse", "HEAD")
