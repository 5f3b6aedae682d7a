"""A search for parameters of the pose NMS as a picture: average precision over every two of them."""

import itertools

import cv2
import numpy as np

from rmpe_jax.draw import caption, contact_sheet
from rmpe_jax.nms.search import NAMES, Fit, best_place

# Pixels: the longer side of a map, and the room for its axes.
_SIDE, _LEFT, _BELOW, _MARGIN = 288, 64, 38, 10
_TEXT, _PATH, _BEST = (235, 235, 235), (255, 255, 255), (255, 60, 60)
_DARK = 30
# Colours go from this share of the settings, ordered by value, to the best one; below it everything is dark.
_LOWEST = 0.5


def draw_fit(fit: Fit) -> np.ndarray:
    """Six maps, one for each two parameters, with the others where the search found its best.

    Yellow is high. The white line is the paper's search from its start, a disc, projected on every map; the red ring is
    the best setting of the grid.
    """
    best = best_place(fit.values)
    low, high = float(np.quantile(fit.values, _LOWEST)), float(fit.values.max())
    tiles = []
    for a, b in itertools.combinations(range(len(NAMES)), 2):
        others = tuple(slice(None) if axis in (a, b) else best[axis] for axis in range(4))
        tile = _map(fit.values[others], low, high)
        _mark(tile, fit, best, a, b)
        tile = _with_axes(tile, fit, a, b)
        fixed = ", ".join(f"{_name(c)} {fit.grid.axes[c][best[c]]:.3g}" for c in range(4) if c not in (a, b))
        tiles.append(caption(tile, f"{_name(a)} and {_name(b)} at {fixed}"))
    scale = f"AP in per cent: dark {100 * low:.2f} or less, yellow {100 * high:.2f}"
    return caption(contact_sheet(tiles, columns=3), f"{scale}; white: two parameters at a time; red: the best setting")


def _name(axis: int) -> str:
    return NAMES[axis].rstrip("_")


def _cell(size: int) -> int:
    return max(1, _SIDE // size)


def _map(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The first axis runs up, the second to the right."""
    # Seen from the best value, so that where all are equal all are the best.
    share = 1 - np.clip((high - values) / max(high - low, 1e-6), 0, 1)
    colours = cv2.applyColorMap(np.round(255 * share[::-1]).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return np.ascontiguousarray(np.kron(colours, np.ones((_cell(len(values)), _cell(values.shape[1]), 1), np.uint8)))


def _mark(tile: np.ndarray, fit: Fit, best: tuple[int, ...], a: int, b: int) -> None:
    def centre(index: tuple[int, ...]) -> tuple[int, int]:
        height, width = _cell(fit.grid.shape[a]), _cell(fit.grid.shape[b])
        return round((index[b] + 0.5) * width), round(tile.shape[0] - (index[a] + 0.5) * height)

    points = [centre(step.index) for step in fit.path]
    for start, end in itertools.pairwise(points):
        cv2.line(tile, start, end, _PATH, 2, cv2.LINE_AA)
    cv2.circle(tile, points[0], 4, _PATH, -1, cv2.LINE_AA)
    cv2.circle(tile, centre(best), 7, _BEST, 2, cv2.LINE_AA)


def _with_axes(tile: np.ndarray, fit: Fit, a: int, b: int) -> np.ndarray:
    height, width = tile.shape[:2]
    drawn = np.full((height + _BELOW + _MARGIN, width + _LEFT + _MARGIN, 3), _DARK, np.uint8)
    drawn[_MARGIN : _MARGIN + height, _LEFT : _LEFT + width] = tile

    def write(text: str, x: int, y: int) -> None:
        cv2.putText(drawn, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.36, _TEXT, 1, cv2.LINE_AA)

    for share in (0.0, 0.5, 1.0):
        up, right = (round(share * (size - 1)) for size in (fit.grid.shape[a], fit.grid.shape[b]))
        y = _MARGIN + height - round((up + 0.5) * height / fit.grid.shape[a])
        x = _LEFT + round((right + 0.5) * width / fit.grid.shape[b])
        write(f"{fit.grid.axes[a][up]:.3g}", 4, y + 4)
        write(f"{fit.grid.axes[b][right]:.3g}", x - 14, _MARGIN + height + 15)
    write(_name(a), 4, _MARGIN + height // 4)
    write(_name(b), _LEFT + width // 4 - 14, _MARGIN + height + 30)
    return drawn
