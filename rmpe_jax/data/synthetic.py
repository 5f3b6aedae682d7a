"""Drawn people: pictures with full labels and true occlusion, a pure function of (seed, number), for first steps.

Each person is a set of capsules (limbs), a torso and a head in clothes and skin of their own, drawn from the farthest
to the nearest. A joint is visible where the person's own pixels still stand after everybody nearer has been drawn.
"""

import dataclasses
from typing import Any

import cv2
import numpy as np

from rmpe_jax.data.files import DataError
from rmpe_jax.data.images import encode_png
from rmpe_jax.data.people import LabelledPicture, label
from rmpe_jax.skeleton import COCO_LSP_19

SYNTHETIC_SPLITS = {"train": 0, "val": 1}
#: Pictures of a set that is prepared or read without naming a number.
SYNTHETIC_PICTURES = {"train": 400, "val": 100}
_SIZE = (240, 320)  # height, width
_MOST_PEOPLE = 5
_BITS = 4
# Lengths over the person's height, roughly those of an adult.
_LENGTHS = {
    "shoulder": 0.12,
    "hip": 0.07,
    "torso": 0.29,
    "neck": 0.05,
    "head": 0.13,
    "upper_arm": 0.17,
    "forearm": 0.15,
}
_LENGTHS |= {"thigh": 0.24, "shin": 0.23}


@dataclasses.dataclass(frozen=True)
class DrawnPicture:
    """A picture that is drawn when it is read."""

    seed: int
    number: int

    def __str__(self) -> str:
        return f"synthetic/{self.name}"

    @property
    def name(self) -> str:
        """As if it were a file."""
        return f"{self.seed}-{self.number:06}.png"

    def read(self) -> np.ndarray:
        """Draws it: uint8 RGB, (240, 320, 3)."""
        return draw_scene(self.seed, self.number)[0]

    def read_bytes(self) -> bytes:
        """The picture as a PNG file."""
        return encode_png(self.read())


def read_synthetic(split: str, *, pictures: int | None = None, seed: int = 0) -> list[LabelledPicture]:
    """Labels of drawn pictures, in ``COCO_LSP_19``; the pixels are drawn when they are read.

    Args:
        split: "train" or "val"; no picture is in both.
        pictures: how many (400 and 100 by default).
        seed: of the drawing.

    Raises:
        DataError: an unknown split.

    Example:
        >>> record = read_synthetic("val", pictures=1)[0]
        >>> record.points.shape == (len(record), 19, 2)
        True
    """
    if split not in SYNTHETIC_SPLITS:
        raise DataError(f"the drawn people have the splits train and val, not {split!r}")
    count = SYNTHETIC_PICTURES[split] if pictures is None else pictures
    seed = 2 * seed + SYNTHETIC_SPLITS[split]
    return [label(DrawnPicture(seed, n), n, draw_scene(seed, n)[1], COCO_LSP_19.size) for n in range(count)]


def draw_scene(seed: int, number: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draws one picture and labels its people.

    Args:
        seed: of the set.
        number: of the picture in the set.

    Returns:
        uint8 RGB (240, 320, 3), and for each person what ``label`` takes: joints of ``COCO_LSP_19`` (0 outside the
        picture, 1 hidden, 2 visible), the box and the area of the whole outline within the picture, the head's box.
    """
    rng = np.random.default_rng([seed, number])
    image = _background(rng)
    owner = np.full(_SIZE, -1, np.int16)
    poses = [_pose(rng) for _ in range(int(rng.integers(1, _MOST_PEOPLE + 1)))]
    people = []
    for row, joints in enumerate(sorted(poses, key=_height)):
        mask = _draw_person(rng, image, joints)
        owner[mask] = row
        people.append((joints, mask))
    labels = [_label(joints, mask, owner == row) for row, (joints, mask) in enumerate(people)]
    noise = rng.normal(0, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), [found for found in labels if found is not None]


def _background(rng: np.random.Generator) -> np.ndarray:
    coarse = rng.integers(40, 216, (4, 5, 3)).astype(np.float32)
    image = cv2.resize(coarse, _SIZE[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    for _ in range(6):
        corner, size = rng.integers(0, _SIZE[::-1]), rng.integers(10, 90, 2)
        end = (corner + size).tolist()
        cv2.rectangle(image, corner.tolist(), end, rng.integers(0, 256, 3).tolist(), -1)
    return image


def _pose(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Joints of one person in pixels, upright, with bent arms and legs; a third is seen from behind."""
    height = rng.uniform(0.45, 0.95) * _SIZE[0]
    lean, turn = rng.normal(0, 0.12), (-1 if rng.random() < 1 / 3 else 1) * rng.uniform(0.55, 1)
    down = np.array([np.sin(lean), np.cos(lean)])
    left = np.array([down[1], -down[0]]) * turn
    thorax = np.array([rng.uniform(0.08, 0.92) * _SIZE[1], rng.uniform(0.22, 0.4) * _SIZE[0]])
    size = {name: length * height * rng.uniform(0.92, 1.08) for name, length in _LENGTHS.items()}
    pelvis, neck = thorax + size["torso"] * down, thorax - size["neck"] * down
    nod = rng.normal(0, 0.15)
    head_top = neck - size["head"] * np.array([np.sin(lean + nod), np.cos(lean + nod)])
    face, half = neck + 0.45 * (head_top - neck), 0.22 * size["head"]
    joints = {"neck": neck, "head_top": head_top, "nose": face}
    up = (head_top - neck) / size["head"]
    for side, sign in (("left", 1), ("right", -1)):
        out = sign * left
        joints[f"{side}_eye"] = face + half * (0.6 * out + 0.55 * up)
        joints[f"{side}_ear"] = face + half * (1.5 * out + 0.35 * up)
        joints[f"{side}_shoulder"] = thorax + size["shoulder"] * out
        joints[f"{side}_hip"] = pelvis + size["hip"] * out
        swing = np.sign(out[0]) or 1.0
        arm = lean + swing * abs(rng.normal(0.35, 0.6))
        leg = lean + swing * abs(rng.normal(0.08, 0.2))
        places = (("shoulder", "elbow", "wrist", "upper_arm", "forearm", arm, rng.normal(0, 0.9)),)
        places += (("hip", "knee", "ankle", "thigh", "shin", leg, rng.normal(0, 0.3)),)
        for start, middle, end, first, second, angle, bend in places:
            joints[f"{side}_{middle}"] = joints[f"{side}_{start}"] + size[first] * _direction(angle)
            joints[f"{side}_{end}"] = joints[f"{side}_{middle}"] + size[second] * _direction(angle + bend)
    return joints


def _faces_away(joints: dict[str, np.ndarray]) -> bool:
    """Whether the person's left is on the picture's left: seen from behind, without a face and with hair all over."""
    return bool(joints["left_shoulder"][0] < joints["right_shoulder"][0])


def _height(joints: dict[str, np.ndarray]) -> float:
    """Length of the head: whoever is larger stands nearer."""
    return float(np.linalg.norm(joints["head_top"] - joints["neck"]))


def _direction(angle: float) -> np.ndarray:
    return np.array([np.sin(angle), np.cos(angle)])


def _draw_person(rng: np.random.Generator, image: np.ndarray, joints: dict[str, np.ndarray]) -> np.ndarray:
    """Draws on ``image``; returns where, (height, width) bool."""
    mask = np.zeros(_SIZE, np.uint8)
    skin = np.array([224, 172, 140]) * rng.uniform(0.35, 1.05)
    shirt, trousers, hair = rng.integers(0, 256, (3, 3))
    width = float(np.linalg.norm(joints["head_top"] - joints["neck"])) * 0.36
    away = _faces_away(joints)
    arc = (0, 360) if away else (190, 350)
    sleeve = shirt if rng.random() < 0.5 else skin
    torso = [joints[f"{side}_{part}"] for side, part in (("left", "shoulder"), ("right", "shoulder"))]
    torso += [joints["right_hip"], joints["left_hip"]]
    sides = ("left", "right") if rng.random() < 0.5 else ("right", "left")

    def limb(a: str, b: str, thickness: float, colour: np.ndarray) -> None:
        _capsule(image, mask, joints[a], joints[b], thickness, colour)

    for side in sides:
        limb(f"{side}_hip", f"{side}_knee", 1.25 * width, trousers)
        limb(f"{side}_knee", f"{side}_ankle", 0.95 * width, trousers * 0.9)
    limb("neck", "nose", 0.9 * width, skin)
    outline = _fixed(np.array(torso))
    for canvas, colour in ((image, _colour(shirt)), (mask, 1)):
        cv2.fillPoly(canvas, [outline], colour, cv2.LINE_8, _BITS)
        cv2.polylines(canvas, [outline], True, colour, max(round(width), 1), cv2.LINE_8, _BITS)
    middle, axes = (joints["neck"] + joints["head_top"]) / 2, np.array([1.05, 1.4]) * width
    up = joints["head_top"] - joints["neck"]
    angle = float(np.degrees(np.arctan2(up[0], -up[1])))
    for canvas, colour in ((image, _colour(skin)), (mask, 1)):
        cv2.ellipse(
            canvas, _fixed(middle).tolist(), _fixed(axes).tolist(), angle, 0, 360, colour, -1, cv2.LINE_8, _BITS
        )
    cv2.ellipse(
        image, _fixed(middle).tolist(), _fixed(axes).tolist(), angle, *arc, _colour(hair), -1, cv2.LINE_8, _BITS
    )
    for side in sides:
        if not away:
            _capsule(image, mask, joints[f"{side}_eye"], joints[f"{side}_eye"], 0.25 * width, np.array([20, 20, 30]))
        limb(f"{side}_shoulder", f"{side}_elbow", 0.9 * width, sleeve * 0.95)
        limb(f"{side}_elbow", f"{side}_wrist", 0.7 * width, skin * 0.95)
    return mask.astype(bool)


def _capsule(
    image: np.ndarray, mask: np.ndarray, a: np.ndarray, b: np.ndarray, width: float, colour: np.ndarray
) -> None:
    start, end, thickness = _fixed(a).tolist(), _fixed(b).tolist(), max(round(width), 1)
    for canvas, paint in ((image, _colour(colour)), (mask, 1)):
        cv2.line(canvas, start, end, paint, thickness, cv2.LINE_8, _BITS)


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(points * 2**_BITS).astype(np.int32)


def _colour(colour: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = np.clip(colour, 0, 255).tolist()
    return float(red), float(green), float(blue)


def _label(joints: dict[str, np.ndarray], mask: np.ndarray, own: np.ndarray) -> dict[str, Any] | None:
    """What ``label`` takes, or None for somebody of whom no joint lies in the picture or no pixel is left."""
    points = np.array([joints[joint] for joint in COCO_LSP_19.joints])
    column, row = np.round(points).astype(int).T
    inside = (column >= 0) & (row >= 0) & (column < _SIZE[1]) & (row < _SIZE[0])
    face = np.array([joint in ("nose", "left_eye", "right_eye") for joint in COCO_LSP_19.joints])
    visible = inside & ~(face & _faces_away(joints)) & own[row.clip(0, _SIZE[0] - 1), column.clip(0, _SIZE[1] - 1)]
    if not inside.any() or not own.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) - 0.5
    neck, top = joints["neck"], joints["head_top"]
    half = np.linalg.norm(top - neck) / 2
    head = np.concatenate([(neck + top) / 2 - half, (neck + top) / 2 + half])
    visibility = np.where(visible, 2, inside.astype(int))
    return {"points": points, "visibility": visibility, "boxes": box, "area": float(mask.sum()), "heads": head}
