"""Skeletons and boxes drawn on pictures."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from rmpe_jax.nms.pose import Suppressed
from rmpe_jax.records import Poses
from rmpe_jax.skeleton import Skeleton

# Red-to-yellow limbs are the person's right, blue-to-green the left, white the middle.
_LEFT, _RIGHT, _MIDDLE = (80, 180, 255), (255, 140, 60), (255, 255, 255)
_GREY, _DARK, _FADED = (170, 170, 170), (20, 20, 20), 0.6
_SUBPIXEL_BITS = 4


def draw_poses(
    image: np.ndarray,
    points: np.ndarray,
    score: np.ndarray,
    skeleton: Skeleton,
    *,
    boxes: np.ndarray | None = None,
    smallest_score: float = 0.15,
    hidden_below: float = 0.0,
) -> np.ndarray:
    """A copy of a picture with each pose's limbs and joints, and its box, drawn on it.

    The person's left limbs are blue, the right ones orange, others white; joints and box have a colour of the pose.

    Args:
        image: uint8 RGB.
        points: (n, k, 2) joints, pixels.
        score: (n, k) confidences; joints below ``smallest_score`` and their limbs are left out.
        skeleton: of the poses.
        boxes: (n, 4) x0 y0 x1 y1, or None for no boxes.
        smallest_score: confidence from which a joint is drawn.
        hidden_below: joints of a lower confidence are drawn as rings.

    Returns:
        uint8 RGB of the same shape.
    """
    drawn = np.ascontiguousarray(image).copy()
    thickness = max(round(max(image.shape[:2]) / 320), 1)
    for number in range(len(points)):
        colour = _pose_colour(number)
        if boxes is not None and np.isfinite(boxes[number]).all():
            _rectangle(drawn, boxes[number], colour, thickness)
        seen, rings = _seen(points[number], score[number], smallest_score), score[number] < hidden_below
        _draw_pose(drawn, points[number], seen, skeleton, colour=colour, thickness=thickness, rings=rings)
    return drawn


def draw_boxes(image: np.ndarray, boxes: np.ndarray, *, colour: tuple[int, int, int] | None = None) -> np.ndarray:
    """A copy of a picture with boxes drawn on it, each in a colour of its own or all in one.

    Args:
        image: uint8 RGB.
        boxes: (n, 4) x0 y0 x1 y1; one that is not finite is left out.
        colour: of all boxes.
    """
    drawn = np.ascontiguousarray(image).copy()
    thickness = max(round(max(image.shape[:2]) / 320), 1)
    for number, box in enumerate(boxes):
        if np.isfinite(box).all():
            _rectangle(drawn, box, colour or _pose_colour(number), thickness)
    return drawn


def draw_suppressed(
    image: np.ndarray, poses: Poses, suppressed: Suppressed, skeleton: Skeleton, *, smallest_score: float = 0.15
) -> np.ndarray:
    """A copy of a picture with what the pose NMS made of its poses: those that stay, and faded those that went.

    The poses that stay are drawn as ``draw_poses`` draws them alone. A pose that went is faded, in the colour of the
    one that removed it, and a line leads from its middle, the mean of the joints drawn, to the middle of that one.
    Grey are those that nothing that stays removed (see ``min_best``). Entries that are not valid are not drawn.

    Args:
        image: uint8 RGB.
        poses: as given to ``suppress_poses``.
        suppressed: what it returned.
        skeleton: of the poses.
        smallest_score: confidence from which a joint is drawn.

    Returns:
        uint8 RGB of the same shape.

    Raises:
        ValueError: the two are of different numbers of poses.
    """
    eliminator, stays = np.asarray(suppressed.eliminator), np.asarray(suppressed.poses.valid)
    if len(eliminator) != len(poses.valid):
        raise ValueError(f"expected the {len(eliminator)} poses that were suppressed, got {len(poses.valid)}")
    points = np.where(stays[:, None, None], suppressed.poses.points, poses.points)
    score = np.where(stays[:, None], suppressed.poses.score, poses.score)
    seen = _seen(points, score, smallest_score)
    gone = np.flatnonzero(np.asarray(poses.valid) & ~stays)
    colour_of = {number: _pose_colour(place) for place, number in enumerate(np.flatnonzero(stays))}
    colours = {number: colour_of.get(eliminator[number], _GREY) for number in gone}

    clear = np.ascontiguousarray(image)
    faded, thickness = clear.copy(), max(round(max(image.shape[:2]) / 320), 1)
    thin = max(thickness // 2, 1)
    for number, colour in colours.items():
        _draw_pose(faded, points[number], seen[number], skeleton, colour=colour, thickness=thin, limbs=colour)
    faded = cv2.addWeighted(faded, _FADED, clear, 1 - _FADED, 0).reshape(image.shape)
    drawn = draw_poses(faded, points[stays], score[stays], skeleton, smallest_score=smallest_score)
    for number in gone[eliminator[gone] >= 0]:
        pair = number, eliminator[number]
        if all(seen[one].any() for one in pair):
            start, end = (_fixed_point(np.clip(points[one, seen[one]], -1e5, 1e5).mean(0)) for one in pair)
            # A dark edge tells it from limbs; the disc is in the middle of the pose that went.
            for colour, edge in ((_DARK, 2), (colours[number], 0)):
                radius = round((1.3 * thickness + edge / 2) * 2**_SUBPIXEL_BITS)
                cv2.line(drawn, start, end, colour, thin + edge, cv2.LINE_AA, _SUBPIXEL_BITS)
                cv2.circle(drawn, start, radius, colour, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
    return drawn


def suppression_sheet(
    image: np.ndarray, poses: Poses, suppressed: Suppressed, skeleton: Skeleton, *, smallest_score: float = 0.15
) -> np.ndarray:
    """Before and after the pose NMS, side by side: every pose, and ``draw_suppressed``. Arguments as there."""
    valid, stays = (np.asarray(record.valid) for record in (poses, suppressed.poses))
    points, score = (np.asarray(array)[valid] for array in (poses.points, poses.score))
    before = draw_poses(image, points, score, skeleton, smallest_score=smallest_score)
    after = draw_suppressed(image, poses, suppressed, skeleton, smallest_score=smallest_score)
    return contact_sheet(
        [caption(before, f"before: {valid.sum()} poses"), caption(after, f"after: {stays.sum()} stay")], columns=2
    )


def _seen(points: np.ndarray, score: np.ndarray, smallest_score: float) -> np.ndarray:
    return (score >= smallest_score) & np.isfinite(points).all(-1)


def _draw_pose(
    image: np.ndarray,
    points: np.ndarray,
    seen: np.ndarray,
    skeleton: Skeleton,
    *,
    colour: tuple[int, int, int],
    thickness: int,
    limbs: tuple[int, int, int] | None = None,
    rings: np.ndarray | None = None,
) -> None:
    """Limbs, of the colours of their sides or all of one, and joints of one pose, ``rings`` as such."""
    for a, b in skeleton.limb_indices:
        if seen[a] and seen[b]:
            start, end = _fixed_point(points[a]), _fixed_point(points[b])
            side = limbs or _side_colour(skeleton.joints[a], skeleton.joints[b])
            cv2.line(image, start, end, side, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
    for joint in np.flatnonzero(seen):
        # A ring is wider than a disc: its hole has to be seen.
        radius, filling = (1.3, -1) if rings is None or not rings[joint] else (2.6, thickness)
        radius = round(radius * thickness * 2**_SUBPIXEL_BITS)
        cv2.circle(image, _fixed_point(points[joint]), radius, colour, filling, cv2.LINE_AA, _SUBPIXEL_BITS)


def _rectangle(image: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], thickness: int) -> None:
    height, width = image.shape[:2]
    box = np.clip(box, -thickness, np.tile([width, height], 2) + thickness)
    cv2.rectangle(image, _fixed_point(box[:2]), _fixed_point(box[2:]), colour, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _fixed_point(point: np.ndarray) -> tuple[int, int]:
    x, y = np.clip(point, -1e5, 1e5) * 2**_SUBPIXEL_BITS
    return round(float(x)), round(float(y))


def _side_colour(a: str, b: str) -> tuple[int, int, int]:
    sides = {joint.partition("_")[0] for joint in (a, b)}
    if "left" in sides and "right" not in sides:
        return _LEFT
    return _RIGHT if "right" in sides and "left" not in sides else _MIDDLE


def _pose_colour(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((number * 0.381966) % 1, 0.75, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_grid(image: np.ndarray, image_from_target: np.ndarray, size: tuple[int, int], *, lines: int = 9) -> np.ndarray:
    """A copy of a picture with the grid along which a crop of ``size`` samples it; its upper edge is orange.

    Args:
        image: uint8 RGB.
        image_from_target: (2, 3), pixels of the crop to the picture's.
        size: (height, width) of the crop.
        lines: in each direction.
    """
    drawn = np.ascontiguousarray(image).copy()
    matrix, (height, width) = np.asarray(image_from_target, np.float64), size
    thickness = max(round(max(image.shape[:2]) / 400), 1)

    def line(start: tuple[float, float], end: tuple[float, float], colour: tuple[int, int, int], wide: int) -> None:
        first, last = (_fixed_point(matrix[:, :2] @ point + matrix[:, 2]) for point in (start, end))
        cv2.line(drawn, first, last, colour, wide, cv2.LINE_AA, _SUBPIXEL_BITS)

    for share in np.linspace(0, 1, lines):
        x, y = share * width - 0.5, share * height - 0.5
        line((x, -0.5), (x, height - 0.5), _LEFT, thickness)
        line((-0.5, y), (width - 0.5, y), _LEFT, thickness)
    line((-0.5, -0.5), (width - 0.5, -0.5), _RIGHT, 2 * thickness)
    return drawn


def draw_arrows(
    image: np.ndarray, starts: np.ndarray, vectors: np.ndarray, *, colour: tuple[int, int, int] = _RIGHT
) -> np.ndarray:
    """A copy of a picture with an arrow at each of n points.

    Args:
        image: uint8 RGB.
        starts: (n, 2) x y, pixels.
        vectors: (n, 2), pixels; one that is not finite is left out.
        colour: RGB.
    """
    drawn = np.ascontiguousarray(image).copy()
    thickness = max(round(max(image.shape[:2]) / 400), 1)
    for start, vector in zip(np.asarray(starts), np.asarray(vectors), strict=True):
        if np.isfinite(vector).all():
            (x0, y0), (x1, y1) = np.round(np.clip([start, start + vector], -1e4, 1e4)).astype(int).tolist()
            cv2.arrowedLine(drawn, (x0, y0), (x1, y1), colour, thickness, cv2.LINE_AA, tipLength=0.3)
    return drawn


def draw_heatmaps(image: np.ndarray, heatmaps: np.ndarray) -> np.ndarray:
    """A picture with its heat maps laid over it in warm colours: the largest value over the joints, from 0 to 1.

    Args:
        image: uint8 RGB.
        heatmaps: (h, w, k), resized to the picture, edges on edges.
    """
    strength = np.clip(np.asarray(heatmaps, np.float32).max(-1), 0, 1)
    strength = cv2.resize(strength, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)[..., None]
    warm = np.concatenate([np.ones_like(strength), strength, np.zeros_like(strength)], -1) * 255
    return np.round(image * (1 - 0.8 * strength) + warm * 0.8 * strength).astype(np.uint8)


def contact_sheet(tiles: Sequence[np.ndarray], *, columns: int = 4) -> np.ndarray:
    """Pictures side by side on one dark sheet, each centred in a cell of the largest one's size.

    Args:
        tiles: uint8 RGB, at least one.
        columns: cells in a row.
    """
    height, width = np.max([tile.shape[:2] for tile in tiles], 0)
    columns = min(columns, len(tiles))
    sheet = np.full((-(-len(tiles) // columns) * height, columns * width, 3), 30, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        y = row * height + (height - tile.shape[0]) // 2
        x = column * width + (width - tile.shape[1]) // 2
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return sheet


def caption(image: np.ndarray, text: str) -> np.ndarray:
    """The picture with a line of text above it."""
    strip = np.full((18, image.shape[1], 3), 30, np.uint8)
    ascii_text = text.encode("ascii", "replace").decode()
    cv2.putText(strip, ascii_text, (3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([strip, image])
