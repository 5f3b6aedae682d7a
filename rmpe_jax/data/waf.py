"""We Are Family: 525 photographs of groups, six sticks (head, torso, arms) on each of up to eight people.

Reference: Eichner and Ferrari, ECCV 2010. Pictures 351 to 525 are the test set.
"""

from pathlib import Path

import numpy as np

from rmpe_jax.data.files import DataError, Files
from rmpe_jax.data.people import LabelledPicture, label
from rmpe_jax.skeleton import WAF_10

WAF_HINT = "We Are Family is the Stickmen archive: data/waf_sticks_all.txt and the folder images"
WAF_SPLITS = ("train", "test")
_TRAINING_PICTURES = 350
# Sticks of the file, in its order. Its left and right are the picture's; people face the camera, so they are the
# person's right and left.
_TORSO, _RIGHT_UPPER, _LEFT_UPPER, _RIGHT_LOWER, _LEFT_LOWER, _HEAD = range(6)


def read_waf(folder: str | Path, split: str) -> list[LabelledPicture]:
    """Reads one split of We Are Family, in ``WAF_10``; everybody in a picture is one group.

    The file gives sticks, not joints, and none for a part that is hidden. Head and torso run from the upper end to the
    lower one; an upper arm starts at its end nearer to the torso's top, a lower arm at its end nearer to the elbow. The
    elbow is where the upper arm ends, or the lower arm starts where the upper one is hidden. The two ends that make an
    elbow are read this way because the format does not promise an order; a lower arm alone is taken to be listed from
    the elbow, and so is an upper arm without a torso from the shoulder. Coordinates are MATLAB's and count from 1; here
    they count from 0. The head's box is the square whose 0.6 x diagonal is the length of the head stick.

    Args:
        folder: holds ``data/waf_sticks_all.txt`` and ``images``, or their archive.
        split: "train" (350 pictures) or "test" (175).

    Raises:
        DataError: naming the file and the line.
    """
    if split not in WAF_SPLITS:
        raise DataError(f"We Are Family has the splits {' and '.join(WAF_SPLITS)}, not {split!r}")
    files = Files(folder, "WeAreFamilyStickmen.zip", "WeAreFamily_Stickmen_v1.02.zip", hint=WAF_HINT)
    found, data = files.read("data/waf_sticks_all.txt", "waf_sticks_all.txt")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{found}: not a text: {error}") from None
    stickmen = _parse(lines, str(found))
    records = []
    for number, (name, people) in enumerate(stickmen, 1):
        if (number <= _TRAINING_PICTURES) == (split == "train"):
            joints = [_joints(sticks) for sticks in people]
            try:
                records.append(label(files.picture(f"images/{name}"), number, joints, WAF_10.size))
            except ValueError as error:
                raise DataError(f"{found}: picture number {number}: {error}") from None
    return records


def _parse(lines: list[str], found: str) -> list[tuple[str, list[np.ndarray]]]:
    """Picture names, each with its people's sticks (6, 2 ends, 2)."""
    pictures: list[tuple[str, list[np.ndarray]]] = []
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    place = 0
    while place < len(rows):
        number, words = rows[place]
        try:
            # A name may hold spaces; the two counts stand last.
            name, counts = " ".join(words[:-2]), words[-2:]
            if not name or not counts[0].isdecimal() or counts[1] != "6":
                raise ValueError(f"expected a picture, its number of people, and 6, got {' '.join(words)!r}")
            people = int(counts[0])
            block = rows[place + 1 : place + 1 + 6 * people]
            if len(block) < 6 * people:
                raise ValueError(f"the file ends before the sticks of {name}")
            numbers = []
            for line, words in block:
                number = line
                if len(words) != 4:
                    raise ValueError(f"expected 4 numbers of a stick, got {' '.join(words)!r}")
                numbers.append([float(word) for word in words])
        except ValueError as error:
            raise DataError(f"{found}: line {number}: {error}") from None
        pictures.append((name, list(np.array(numbers).reshape(-1, 6, 2, 2))))
        place += 1 + 6 * people
    return pictures


def _joints(sticks: np.ndarray) -> dict[str, object]:
    sticks = sticks - 1
    head, torso = (stick[np.argsort(stick[:, 1], kind="stable")] for stick in (sticks[_HEAD], sticks[_TORSO]))
    points = {"head_top": head[0], "neck": head[1], "thorax": torso[0], "pelvis": torso[1]}
    for side, upper, lower in (("right", _RIGHT_UPPER, _RIGHT_LOWER), ("left", _LEFT_UPPER, _LEFT_LOWER)):
        shoulder, elbow = _from(sticks[upper], torso[0])
        start, wrist = _from(sticks[lower], elbow)
        points[f"{side}_shoulder"], points[f"{side}_wrist"] = shoulder, wrist
        points[f"{side}_elbow"] = elbow if np.isfinite(elbow).all() else start
    ordered = np.array([points[joint] for joint in WAF_10.joints])
    visible = np.isfinite(ordered).all(-1)
    person: dict[str, object] = {"points": ordered, "visibility": 2 * visible, "group": 0, "single": False}
    if np.isfinite(head).all():
        half = np.linalg.norm(head[1] - head[0]) / 0.6 / np.sqrt(8)
        person["heads"] = np.concatenate([head.mean(0) - half, head.mean(0) + half])
    return person


def _from(stick: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The stick's two ends, the one nearer to ``start`` first; as listed where either is unknown."""
    distance = np.linalg.norm(stick - start, axis=-1)
    return stick[::-1] if distance[1] < distance[0] else stick
