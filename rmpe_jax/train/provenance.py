"""Where a run's weights come from: settings, versions, revision and devices, written beside its log as ``run.json``."""

import dataclasses
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from rmpe_jax.config import Experiment
from rmpe_jax.files import write_json

# Distributions whose versions can change what a run computes.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "libtpu", "pillow")
# OpenCV, which like Pillow decides pixels, comes under one of these names.
_OPENCV = tuple(f"opencv-{kind}python{screen}" for kind in ("", "contrib-") for screen in ("", "-headless"))
# Seconds that git may take; a slow file system must not hold up a run.
_PATIENCE = 5.0


def write_provenance(path: str | Path, experiment: Experiment, *, devices: Sequence[Any] | None = None) -> None:
    """Writes what a run is made of as JSON, complete or not at all; an earlier file is replaced.

    ``date`` (UTC), ``revision`` (see ``revision``), ``versions`` (see ``versions``), ``devices`` (kind, count over all
    processes, and number of processes) and ``experiment`` with every setting.

    Args:
        path: such as ``run.json`` in the run's folder, which is made where it is missing.
        experiment: of the run.
        devices: that it uses; those of all processes by default.
    """
    used = jax.devices() if devices is None else devices
    kinds = sorted({device.device_kind for device in used})
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision(),
        "versions": versions(),
        "devices": {"kind": ", ".join(kinds), "count": len(used), "processes": jax.process_count()},
        "experiment": dataclasses.asdict(experiment),
    }
    write_json(path, content)


def versions() -> dict[str, str]:
    """The versions of this package, of Python, and of what computes or decodes; accelerator plugins included."""
    plugins = (entry.dist for entry in metadata.entry_points(group="jax_plugins"))
    found = {plugin.name: plugin.version for plugin in plugins if plugin is not None}
    for name in (*_PACKAGES, *_OPENCV):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    # An import of the whole package, which offers every part, would be one upwards.
    own = sys.modules[__name__.partition(".")[0]].__version__
    return {"rmpe_jax": own, "python": platform.python_version(), **dict(sorted(found.items()))}


def revision(package: str | Path | None = None) -> str | None:
    """The commit of the git checkout that a package runs from, with ``-dirty`` where tracked files differ from it.

    Args:
        package: folder of the package; this one's by default.

    Returns:
        None where there is no git or no checkout, or where the checkout is not the package's own: a package installed
        below somebody's repository is not part of it.
    """
    root = Path(package or Path(__file__).parents[1]).resolve().parent
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root or not (root / "pyproject.toml").is_file():
        return None
    # A tag can be moved, so its name is no revision.
    return _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *command: str) -> str | None:
    # Git's own variables, as in a hook, would name another repository; its lock would get in somebody's way.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    git = ["git", "--no-optional-locks", "-C", str(folder)]
    try:
        done = subprocess.run(
            [*git, *command], capture_output=True, text=True, check=True, timeout=_PATIENCE, env=environment
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
