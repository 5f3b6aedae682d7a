"""What the command lines of all benchmarks share."""

import argparse
import json
from pathlib import Path
from typing import Any

from rmpe_jax.files import write_json


def parser(description: str, *, quick: str) -> argparse.ArgumentParser:
    """The options of every benchmark; ``quick`` says what is less with --quick."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--json", metavar="FILE", help="write the figures there too; - prints them as the last line")
    return made


def report(figures: dict[str, Any], where: str | None, text: str | None = None) -> None:
    """Prints a text, or the figures line by line, and writes the figures where ``--json`` says."""
    print("\n".join(f"{name}: {value}" for name, value in figures.items()) if text is None else text)
    if where == "-":
        print(json.dumps(figures))
    elif where:
        write_json(Path(where), figures)
