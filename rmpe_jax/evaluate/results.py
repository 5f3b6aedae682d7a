"""A result: the numbers of a protocol with their intervals, as the paper's table, Markdown or JSON; and two compared.

Besides each number a result keeps its bootstrap replicates. They are drawn from (seed, number of pictures) alone, so
two results on the same pictures are resampled alike, and their difference has an interval of its own, which is much
narrower than the two intervals suggest.
"""

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmpe_jax.data.files import DataError, read_json
from rmpe_jax.metrics.intervals import bootstrap, difference_interval, interval

#: A result as it is written: plain values, see ``make_result``.
Result = dict[str, Any]
FORMAT = "rmpe_jax.result.1"
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Table:
    """A paper's table: its columns, and for each row the numbers (by their path) that stand in them."""

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a protocol gives: numbers as a function of how often each picture counts, and how they are laid out."""

    statistic: Callable[[Any, jax.Array], dict[str, Any]]  # data, weights (i,) -> numbers in [0, 1], nested by name
    data: Any  # its arrays; not closed over, or XLA would spend a minute folding them as constants
    tables: tuple[Table, ...]
    about: dict[str, Any] = dataclasses.field(default_factory=dict)  # further facts, kept as they are
    exact: dict[str, Any] | None = None  # numbers of the reference implementation, which go before our own
    x64: bool = False  # whether the statistic is computed in float64


def make_result(
    about: dict[str, Any], measured: Measured, pictures: Sequence[str], *, replicates: int, seed: int
) -> Result:
    """Computes the numbers and their intervals.

    Args:
        about: data set, split, weights and so on; they come first.
        measured: from a protocol.
        pictures: names of the pictures, in the order of the weights.
        replicates: of the bootstrap over pictures; 0 leaves the intervals out.
        seed: of the bootstrap.

    Returns:
        ``about``; the numbers by name, None for the share of nothing; ``intervals`` (95 %) and ``bootstrap`` by path;
        ``tables``.
    """
    count = len(pictures)

    def counted(data: Any, weight: jax.Array) -> dict[str, Any]:
        return _in_order(measured.statistic(data, weight))

    with jax.enable_x64(measured.x64):
        values = _plain(jax.jit(counted)(measured.data, np.ones(count)))
        numbers = _merged(values, measured.exact or {})
        result = {"format": FORMAT, **about, "pictures": count, **measured.about, **numbers}
        if replicates:

            def replicate(key: jax.Array, data: Any) -> dict[str, Any]:
                return bootstrap(key, partial(counted, data), count, replicates=replicates)

            drawn = jax.jit(replicate)(jax.random.key(seed), measured.data)
            low, high = interval_of(drawn)
            paths = list(_leaves(numbers))
            result["intervals"] = {path: [_leaves(low)[path], _leaves(high)[path]] for path in paths}
            result["bootstrap"] = {
                "seed": seed,
                "replicates": replicates,
                "pictures_sha256": hashlib.sha256("\n".join(pictures).encode()).hexdigest(),
                "values": {path: _rounded(values) for path, values in _leaves(drawn).items()},
            }
    return result | {"tables": [_as_lists(table) for table in measured.tables]}


def _in_order(tree: Any) -> Any:
    """The same numbers as ordered dictionaries: JAX sorts the names of others."""
    return OrderedDict((name, _in_order(value)) for name, value in tree.items()) if isinstance(tree, dict) else tree


def _as_lists(table: Table) -> dict[str, Any]:
    rows = {label: list(paths) for label, paths in table.rows.items()}
    return {"title": table.title, "columns": list(table.columns), "rows": rows}


def interval_of(drawn: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The percentile interval of every number, from replicates nested by name; None where nothing was ever there."""
    pairs = jax.tree.map(lambda values: interval(values, level=LEVEL), drawn)
    ends = [jax.tree.map(lambda pair, end=end: pair[end], pairs, is_leaf=_is_pair) for end in (0, 1)]
    return _plain(ends[0]), _plain(ends[1])


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple)


def _plain(tree: Any) -> Any:
    """Python numbers; None for NaN, which JSON cannot hold."""
    if isinstance(tree, dict):
        return {name: _plain(value) for name, value in tree.items()}
    return None if np.isnan(tree) else float(tree)


def _merged(values: dict[str, Any], exact: dict[str, Any]) -> dict[str, Any]:
    merged = {}
    for name, value in values.items():
        merged[name] = _merged(value, exact.get(name, {})) if isinstance(value, dict) else exact.get(name, value)
    return merged


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in tree.items():
        found |= _leaves(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return found


def _rounded(values: Any) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 6) for value in np.asarray(values)]


def numbers_of(result: Result) -> dict[str, float | None]:
    """The numbers of a result by path, such as ``pck_per_joint/left_knee``: those that stand in its tables, and more.

    Raises:
        KeyError: not a result.
    """
    in_tables = [path for table in result["tables"] for row in table["rows"].values() for path in row]
    names = dict.fromkeys(path.split("/")[0] for path in (*in_tables, *result.get("intervals", {})))
    found = _leaves({name: result[name] for name in names})
    return {path: found[path] for path in dict.fromkeys((*in_tables, *found))}


def as_text(result: Result) -> str:
    """A result for the terminal: what was measured, the paper's tables in per cent, each row with its intervals."""
    hidden = {"format", "tables", "intervals", "bootstrap", *(path.split("/")[0] for path in numbers_of(result))}
    shown = {name: value for name, value in result.items() if name not in hidden and not isinstance(value, dict)}
    lines = [f"{name}: {value}" for name, value in shown.items()]
    for table in result["tables"]:
        lines += ["", table["title"], *_aligned(_cells(result, table))]
    return "\n".join(lines)


def as_markdown(result: Result) -> str:
    """A result as Markdown: a line of what was measured, and the paper's tables in per cent with intervals."""
    names = ("dataset", "split", "protocol", "detector", "weights", "boxes", "pictures")
    about = ", ".join(f"{name} {result[name]}" for name in names if name in result)
    parts = [about]
    for table in result["tables"]:
        header, *rows = _cells(result, table)
        lines = [f"**{table['title']}**", "", _pipes(header), _pipes(["---"] * len(header)), *map(_pipes, rows)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cells(result: Result, table: dict[str, Any]) -> list[list[str]]:
    numbers, intervals = numbers_of(result), result.get("intervals", {})
    rows = [["", *table["columns"]]]
    for label, paths in table["rows"].items():
        rows.append([label, *(_per_cent(numbers[path]) for path in paths)])
        if any(path in intervals for path in paths):
            rows.append([f"  {100 * LEVEL:.0f} %", *(_between(*intervals.get(path, (None, None))) for path in paths)])
    return rows


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _between(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{_per_cent(low)}..{_per_cent(high)}"


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def read_result(path: str | Path) -> Result:
    """Reads a result that ``rmpe evaluate --json`` wrote.

    Raises:
        DataError: not a result.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: not a result of `rmpe evaluate --json FILE` (format {FORMAT!r})")
    try:
        sound = all(_is_number(value) for value in numbers_of(content).values())
        drawn = content.get("bootstrap", {"values": {}, "replicates": 0})
        for values in drawn["values"].values():
            sound &= len(values) == drawn["replicates"] and all(_is_number(value) for value in values)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise DataError(f"{path}: a damaged result")
    return content


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


@dataclasses.dataclass(frozen=True)
class Difference:
    """One number in two results."""

    name: str
    first: float
    second: float
    low: float | None  # of second - first; None without bootstrap replicates
    high: float | None


def compare(first: Result, second: Result) -> list[Difference]:
    """Second minus first for every number, with the interval of the difference.

    Raises:
        DataError: the two were measured on other data or by another protocol, on other pictures, or were resampled
            otherwise.
    """
    for name in ("dataset", "split", "protocol", "denominator", "pictures"):
        if first.get(name) != second.get(name):
            raise DataError(
                f"not comparable: {name} is {first.get(name)!r} in one and {second.get(name)!r} in the other"
            )
    a, b = first.get("bootstrap", {}), second.get("bootstrap", {})
    for name in ("pictures_sha256", "seed", "replicates"):
        if a and b and a.get(name) != b.get(name):
            raise DataError(f"not comparable: {name} of the bootstrap differs; evaluate both on the same pictures")
    found, others = [], numbers_of(second)
    for name, value in numbers_of(first).items():
        other = others.get(name)
        if value is None or other is None:
            continue
        low = high = None
        if name in a.get("values", {}) and name in b.get("values", {}):
            ours, theirs = (np.array(of["values"][name], float) for of in (b, a))
            low, high = (float(end) for end in difference_interval(jax.numpy.array(ours), jax.numpy.array(theirs)))
        found.append(Difference(name, value, other, low, high))
    return found


def comparison_table(differences: Sequence[Difference], *, markdown: bool = False) -> str:
    """Both numbers, their difference and its interval, in per cent; a star where the interval leaves out zero."""
    rows = [["", "first", "second", "difference", "95 %", ""]]
    for entry in differences:
        sure = entry.low is not None and entry.high is not None and not entry.low <= 0 <= entry.high
        ends = "-" if entry.low is None or entry.high is None else f"{100 * entry.low:+.1f}..{100 * entry.high:+.1f}"
        change = f"{100 * (entry.second - entry.first):+.1f}"
        rows.append([entry.name, _per_cent(entry.first), _per_cent(entry.second), change, ends, "*" if sure else ""])
    if not markdown:
        return "\n".join(line.rstrip() for line in _aligned(rows))
    return "\n".join([_pipes(rows[0]), _pipes(["---"] * len(rows[0])), *map(_pipes, rows[1:])]) + "\n"
