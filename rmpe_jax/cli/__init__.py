"""The ``rmpe`` command: predict, train, evaluate, compare, calibrate, fit-*, import-weights, export, data.

Thin: it parses, calls the library, and reports.

Exit status: 0 all done, 1 something failed (what could be done was done and written), 2 wrong usage.
"""

import argparse
import contextlib
import os
import platform
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import rmpe_jax
from rmpe_jax.cli.convert import add_export, add_import
from rmpe_jax.cli.data import add_data
from rmpe_jax.cli.evaluate import add_calibrate, add_compare, add_evaluate
from rmpe_jax.cli.fit import add_fit_nms, add_fit_proposals
from rmpe_jax.cli.predict import add_predict
from rmpe_jax.cli.train import add_train
from rmpe_jax.errors import RmpeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    _keep_compiled()
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("rmpe: interrupted", file=sys.stderr)
        return 130
    except (RmpeError, OSError) as error:
        print(f"rmpe: {error}", file=sys.stderr)
        return 1
    except (AssertionError, RuntimeError):
        problem = _device_problem()
        if problem is None:
            raise
        print(f"rmpe: {problem}", file=sys.stderr)
        return 1


def _device_problem() -> str | None:
    """Why JAX has no device, if that is so: JAX says it with an AssertionError or a RuntimeError (jax 0.10)."""
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        wanted = f" of JAX_PLATFORMS={asked}" if asked else ""
        return f"JAX finds no device{wanted} here" + (f": {str(error).splitlines()[0]}" if str(error) else "")
    return None


def _keep_compiled() -> None:
    """Programs compiled once are found again by later commands, in JAX_COMPILATION_CACHE_DIR; read by JAX's import."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return  # somebody without a home keeps nothing
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(caches / "rmpe_jax" / f"compiled-{_machine()}"))


def _machine() -> str:
    """Tells processors apart: on a CPU, what was compiled for one may not run on another that shares the folder."""
    with contextlib.suppress(OSError):
        flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Feat"))]
        return f"{platform.machine()}-{zlib.crc32(''.join(flags[:1]).encode()):08x}"
    return platform.machine()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rmpe", description="Regional multi-person pose estimation in JAX.")
    parser.add_argument("--version", action="version", version=f"rmpe_jax {rmpe_jax.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_predict(commands)
    add_train(commands)
    add_evaluate(commands)
    add_compare(commands)
    add_calibrate(commands)
    add_fit_nms(commands)
    add_fit_proposals(commands)
    add_import(commands)
    add_export(commands)
    add_data(commands)
    return parser
