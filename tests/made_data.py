"""Small data sets in the official formats, and pictures, that tests write for themselves."""

import io
import json
import zipfile

import cv2
import numpy as np
import scipy.io
from PIL import Image

# Joints of a standing figure seen from the front, as fractions of its box; LSP's order and COCO's.
_FIGURE = {
    **{"head_top": (0.5, 0.0), "nose": (0.5, 0.1), "neck": (0.5, 0.2)},
    **{"eye": (0.05, 0.08), "ear": (0.1, 0.09), "shoulder": (0.25, 0.22), "elbow": (0.4, 0.36), "wrist": (0.5, 0.5)},
    **{"hip": (0.18, 0.53), "knee": (0.2, 0.76), "ankle": (0.22, 1.0)},
}


def figure(joints, box):
    """Joints (k, 2) of a figure that fills ``box``; the person's left is on the picture's right."""
    x0, y0, x1, y1 = box
    places = []
    for joint in joints:
        side, _, part = joint.partition("_")
        x, y = _FIGURE[part] if side in ("left", "right") else _FIGURE[joint]
        x = 0.5 + x if side == "left" else 0.5 - x if side == "right" else x
        places.append((x0 + x * (x1 - x0), y0 + y * (y1 - y0)))
    return np.array(places)


def picture(height=96, width=80, seed=0):
    """Noise, uint8 RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def encoded(image, kind="JPEG", **options):
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def lsp_labels(count=40):
    """(count, 14, 3): figures that differ in size and place; every third has no right wrist."""
    from rmpe_jax.skeleton import LSP_14

    labels = np.ones((count, 14, 3))
    for number in range(count):
        labels[number, :, :2] = figure(LSP_14.joints, (10 + number % 7, 8, 50 + number % 11, 80 + number % 5))
    labels[::3, LSP_14.joints.index("right_wrist"), 2] = 0
    return labels


def write_lspet(folder, *, labels=None, joints_first=False, leave_out=(), also=None):
    """Writes ``lspet_dataset.zip``, returns its path; ``also`` gives further members, or replaces some."""
    labels = lsp_labels() if labels is None else labels
    stored = labels.transpose(1, 2, 0) if joints_first else labels
    matlab = io.BytesIO()
    scipy.io.savemat(matlab, {"joints": stored})
    members = {"README.txt": b"made for a test", "joints.mat": matlab.getvalue()}
    members |= {f"images/im{n:05}.jpg": encoded(picture(seed=n)) for n in range(1, len(labels) + 1)}
    members |= also or {}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lspet_dataset.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name not in leave_out:
                archive.writestr(name, content)
    return path


def coco_annotation(number, image_id, box, **changes):
    """One person that fills ``box`` (x0 y0 x1 y1), all joints visible."""
    from rmpe_jax.skeleton import COCO_17

    joints = np.concatenate([figure(COCO_17.joints, box), np.full((17, 1), 2)], 1)
    x0, y0, x1, y1 = box
    record = {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "area": float((x1 - x0) * (y1 - y0) * 0.6),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "keypoints": joints.ravel().tolist(),
        "num_keypoints": 17,
    }
    return record | changes


def write_coco(folder, *, split="val2017", annotations=None, pictures=3, size=(96, 160)):
    """Writes pictures 1.. and their annotations (two people in each by default); returns the annotation file."""
    if annotations is None:
        annotations = []
        for number in range(1, pictures + 1):
            annotations.append(coco_annotation(2 * number - 1, number, (10.0, 5.0, 60.0, 90.0)))
            annotations.append(coco_annotation(2 * number, number, (90.0, 15.0, 140.0, 85.0)))
    (folder / split).mkdir(parents=True, exist_ok=True)
    images = []
    for number in range(1, pictures + 1):
        name = f"{number:012}.jpg"
        (folder / split / name).write_bytes(encoded(picture(*size, seed=number)))
        images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    path = folder / "annotations" / f"person_keypoints_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def silhouette(height=360, width=300, *, top=60, tall=240):
    """A dark standing person on a light ground, in the middle, and the person's box."""
    image = np.full((height, width, 3), 190, np.uint8)
    unit, middle = tall / 8, width / 2
    half = [(-0.2, 0.8), (-0.3, 1.2), (-1, 1.5), (-1.15, 3.8), (-0.85, 3.8), (-0.7, 2.2), (-0.65, 4), (-0.6, 7.8)]
    half += [(-0.2, 7.8), (0, 4.4)]
    outline = np.array(half + [(-x, y) for x, y in half[-2::-1]])
    corners = (outline * unit + (middle, top)).astype(np.int32)
    cv2.fillPoly(image, [corners], (40, 40, 40), cv2.LINE_AA)
    head = (round(middle), round(top + unit / 2))
    cv2.ellipse(image, head, (round(0.38 * unit), round(0.52 * unit)), 0, 0, 360, (40, 40, 40), -1, cv2.LINE_AA)
    box = (middle - 1.15 * unit, top, middle + 1.15 * unit, top + 7.8 * unit)
    return cv2.GaussianBlur(image, (0, 0), 1.5), np.array(box, np.float32)
