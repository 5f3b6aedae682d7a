"""Small data sets in the official formats, and pictures, that tests write for themselves."""

import io
import itertools
import json
import zipfile

import cv2
import numpy as np
import scipy.io
from PIL import Image

# Joints of a standing figure seen from the front, as fractions of its box; LSP's order and COCO's.
_FIGURE = {
    **{"head_top": (0.5, 0.0), "nose": (0.5, 0.1), "neck": (0.5, 0.2)},
    **{"thorax": (0.5, 0.22), "pelvis": (0.5, 0.53)},
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


def as_archive(folder, name, *, prefix=""):
    """Moves the files of a folder, and of the folders in it, into a zip archive there; returns its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path in files:
            archive.write(path, prefix + path.relative_to(folder).as_posix())
            path.unlink()
    return folder / name


def matlab(**variables):
    """The bytes of a MATLAB file, compressed as MATLAB does; a list of dictionaries is a structure array."""
    buffer = io.BytesIO()
    content = {name: _matlab_value(value) for name, value in variables.items()}
    scipy.io.savemat(buffer, content, do_compression=True)
    return buffer.getvalue()


def cells(values):
    """A MATLAB column of cells."""
    column = np.zeros((len(values), 1), object)
    for row, value in enumerate(values):
        column[row, 0] = _matlab_value(value)
    return column


def _matlab_value(value):
    if isinstance(value, dict):
        return _structures([value])
    return _structures(value) if isinstance(value, list) else value


def _structures(rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return np.zeros((0, 0))
    array = np.zeros((1, len(rows)), [(name, object) for name in names])
    for place, row in enumerate(rows):
        for name in names:  # a field that an entry lacks is empty, as in MATLAB
            array[name][0, place] = _matlab_value(row.get(name, np.zeros((0, 0))))
    return array


def _write_pictures(folder, names, size=(96, 160)):
    for number, name in enumerate(names, 1):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(*size, seed=number)))


def write_lsp(folder, *, labels=None, digits=4, extended=False):
    """Writes LSP's ``joints.mat``, joints of shape (3, 14, n) and hidden ones marked 1, and its pictures.

    ``extended`` writes LSPET's order of axes instead, (14, 3, n).
    """
    if labels is None:
        labels = lsp_labels(8)
        labels[..., 2] = 1 - labels[..., 2]
    _write_pictures(folder, [f"images/im{n:0{digits}}.jpg" for n in range(1, len(labels) + 1)])
    (folder / "joints.mat").write_bytes(matlab(joints=labels.transpose((1, 2, 0) if extended else (2, 1, 0))))


def crowdpose_annotation(number, image_id, box, **changes):
    """One person that fills ``box`` (x0 y0 x1 y1); as in CrowdPose's files there is no area."""
    from rmpe_jax.skeleton import CROWDPOSE_14

    joints = np.concatenate([figure(CROWDPOSE_14.joints, box), np.full((14, 1), 2)], 1)
    record = coco_annotation(number, image_id, box, keypoints=joints.ravel().tolist(), num_keypoints=14)
    del record["area"]
    return record | changes


def write_crowdpose(folder, *, split="val", annotations=None, indices=(0.0, 0.45, 0.9)):
    """Writes pictures 101.. with the given crowd indices, and their annotations; returns the annotation file."""
    images = []
    for number, index in enumerate(indices, 101):
        about = {"id": number, "file_name": f"{number}.jpg", "height": 96, "width": 160, "crowdIndex": index}
        images.append(about)
    if annotations is None:
        annotations = [crowdpose_annotation(n, image["id"], (10, 5, 60, 90)) for n, image in enumerate(images, 1)]
    _write_pictures(folder, [f"images/{image['file_name']}" for image in images])
    path = folder / f"crowdpose_{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return path


def mpii_person(box, *, hidden=(), unmarked=(8, 9), left_out=(), scale=0.5, **changes):
    """One annorect of a figure that fills ``box``, counted from 1 as MATLAB does.

    Joints ``unmarked`` have no ``is_visible``; the marks are characters for joints 0 to 6 and numbers for the others.
    """
    from rmpe_jax.skeleton import MPII_16

    points = []
    for number, (x, y) in enumerate(figure(MPII_16.joints, box) + 1):
        point = {"x": x, "y": y, "id": float(number)}
        if number not in unmarked:
            mark = np.uint8(number not in hidden)
            point["is_visible"] = str(mark) if number < 7 else mark
        if number not in left_out:
            points.append(point)
    x0, y0, x1, y1 = box
    head = {"x1": x0 + 15.0, "y1": y0 - 3.0, "x2": x0 + 36.0, "y2": y0 + 17.0}
    place = {"x": (x0 + x1) / 2 + 1, "y": (y0 + y1) / 2 + 1}
    return {**head, "annopoints": {"point": points}, "scale": scale, "objpos": place, **changes}


def mpii_release():
    """Pictures as (annorect, in training, numbers of those who stand apart, groups), with all that the release has.

    One person (a bare structure) who stands apart; a group of two, one apart, one without annopoints; nobody; a test
    picture of two; two of whom one lacks a place; no field annopoints at all; one test picture of one person.
    """
    empty = np.zeros((0, 0))
    located = [{"scale": 0.5, "objpos": {"x": 31.0, "y": 41.0}}, {"scale": 0.25, "objpos": {"x": 101.0, "y": 51.0}}]
    two = [mpii_person((10, 5, 60, 90), hidden=(0, 13)), mpii_person((70, 8, 120, 88), unmarked=range(16))]
    four = [*two, mpii_person((100, 9, 150, 85)), mpii_person((0, 0, 9, 9), annopoints=empty)]
    last = [mpii_person((20, 5, 70, 90), left_out=(8, 9)), mpii_person((80, 5, 130, 90), scale=empty, objpos=empty)]
    return [
        (mpii_person((30, 5, 80, 92), hidden=(2,)), 1, np.uint8(1), empty),
        (four, 1, np.uint8(3), cells([np.array([1, 2], np.uint8)])),
        (empty, 1, empty, empty),
        (located, 0, empty, cells([np.array([1, 2], np.uint8)])),
        (last, 1, empty, cells([np.array([1], np.uint8), np.array([2], np.uint8)])),
        ([{"x1": 5.0, "y1": 5.0, "x2": 9.0, "y2": 9.0}], 1, empty, empty),
        (located[0], 0, np.uint8(1), empty),
    ]


def write_mpii(folder, *, pictures=None, groups=False):
    """Writes the release's MATLAB file and pictures 000000001.jpg..; with ``groups`` also the toolkit's groups."""
    pictures = mpii_release() if pictures is None else pictures
    names = [f"{number:09}.jpg" for number in range(1, len(pictures) + 1)]
    annolist = []
    for name, (rectangles, *_) in zip(names, pictures, strict=True):
        annolist.append({"image": {"name": name}, "annorect": rectangles, "frame_sec": np.zeros((0, 0))})
    training = np.array([[kind for _, kind, *_ in pictures]], np.uint8)
    apart = cells([single for *_, single, _ in pictures])
    release = {"annolist": annolist, "img_train": training, "version": "12", "single_person": apart}
    _write_pictures(folder, [f"images/{name}" for name in names])
    (folder / "mpii_human_pose_v1_u12_1.mat").write_bytes(matlab(RELEASE=release))
    if groups:
        (folder / "groups_v12.mat").write_bytes(matlab(groups=cells([group for *_, group in pictures])))


def mpii_list():
    """Three people on two pictures as the re-issues list them: name, points from 1 and 0 where unlabelled, scale."""
    from rmpe_jax.skeleton import MPII_16

    people = []
    for name, box in (("b.jpg", (10, 5, 60, 90)), ("a.jpg", (20, 5, 70, 90)), ("b.jpg", (80, 5, 130, 90))):
        people.append([name, figure(MPII_16.joints, box) + 1, (box[2] - box[0]) / 100])
    people[1][1][[0, 9]] = 0
    return people


def write_mpii_json(folder, *, name="mpii_val.json", people=None):
    """Writes the JSON of mmpose and HRNet, and the pictures; returns the file."""
    content = []
    for image, points, scale in mpii_list() if people is None else people:
        visible = (points > 0).all(-1).astype(int)
        person = {"joints_vis": visible.tolist(), "joints": points.tolist(), "image": image}
        content.append(person | {"scale": scale, "center": points[visible > 0].mean(0).tolist()})
    _write_pictures(folder, sorted({f"images/{person['image']}" for person in content}))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_mpii_hdf5(folder, *, name="annot/valid.h5", codes=False, head_sizes=(24.0, 30.0, 36.0), **changes):
    """Writes the hourglass authors' list, names as bytes or as rows of characters' ``codes``; returns the file."""
    import h5py

    names, points, scales = zip(*mpii_list(), strict=True)
    stored = np.array(names, "S")
    if codes:
        stored = np.zeros((len(names), 8))
        for row, image in enumerate(names):
            stored[row, : len(image)] = list(image.encode())
    content = {"imgname": stored, "part": np.array(points), "scale": np.array(scales)}
    content |= {"center": np.array(points).max(1), "normalize": np.array(head_sizes)}
    _write_pictures(folder, sorted({f"images/{image}" for image in names}))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in (content | changes).items():
            if value is not None:
                file[key] = value
    return path


def waf_sticks(box, *, hidden=()):
    """Six sticks (6, 4), counted from 1, of a figure that fills ``box`` and faces the camera; NaN for hidden ones."""
    from rmpe_jax.skeleton import WAF_10

    at = dict(zip(WAF_10.joints, figure(WAF_10.joints, box) + 1, strict=True))
    parts = [("thorax", "pelvis"), ("right_shoulder", "right_elbow"), ("left_shoulder", "left_elbow")]
    parts += [("right_elbow", "right_wrist"), ("left_elbow", "left_wrist"), ("head_top", "neck")]
    sticks = [(at[a], at[b]) for a, b in parts]
    array = np.array(sticks).reshape(6, 4)
    array[list(hidden)] = np.nan
    return array


def write_waf(folder, people):
    """Writes 354 pictures and their sticks; ``people`` gives those of some pictures by number, the rest are empty."""
    lines = []
    for number in range(1, 355):
        name, found = f"group photo {number}.jpg", people.get(number, [])
        lines.append(f"{name} {len(found)} 6")
        for sticks in found:
            lines += [" ".join("NaN" if np.isnan(v) else f"{v:.6f}" for v in stick) for stick in sticks]
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(b"not read")
    (folder / "data").mkdir(exist_ok=True)
    path = folder / "data" / "waf_sticks_all.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def flic_example(number, box, *, train, missing=(), **changes):
    """One entry of FLIC's examples: 29 columns, of which the eleven labelled ones hold a figure, counted from 1."""
    from rmpe_jax.skeleton import FLIC_11

    coords = np.full((2, 29), np.nan)
    coords[:, [0, 1, 2, 3, 4, 5, 6, 9, 12, 13, 16]] = figure(FLIC_11.joints, box).T + 1
    coords[:, list(missing)] = np.nan
    about = {
        "poselet_hit_idx": np.arange(3.0),
        "moviename": "film",
        "coords": coords,
        "imgdims": np.array([96, 160, 3]),
    }
    about |= {"filepath": f"film-{number:08}.jpg", "currframe": float(number), "torsobox": np.array([1.0, 2, 3, 4])}
    return about | {"istrain": np.uint8(train), "istest": np.uint8(not train), **changes}


def write_flic(folder, *, examples=None):
    """Writes ``examples.mat`` and the pictures: three frames to train, two to test."""
    if examples is None:
        boxes = [(10 + 10 * n, 5, 60 + 10 * n, 90) for n in range(5)]
        examples = [flic_example(n, box, train=n not in (2, 5)) for n, box in enumerate(boxes, 1)]
    _write_pictures(folder, [f"images/{example['filepath']}" for example in examples])
    (folder / "examples.mat").write_bytes(matlab(examples=examples))


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


#: Where the two people of ``write_coco`` stand.
TWO_PLACES = [(10.0, 5.0, 60.0, 90.0), (90.0, 15.0, 140.0, 85.0)]


def detections(skeleton, names, *, seed=0, boxes=TWO_PLACES):
    """For everybody a good pose, a doubtful copy and a bad one, in boxes of their own; now and then a joint less."""
    rng, found = np.random.default_rng(seed), []
    for name in names:
        for box, noise in itertools.product(boxes, (0.5, 2.0, 6.0)):
            points = figure(skeleton.joints, box) + rng.normal(scale=noise, size=(skeleton.size, 2))
            score = np.round(rng.uniform(0.3, 1, skeleton.size) - noise / 30, 1)
            joints = np.concatenate([points, score[:, None]], 1)
            joints[rng.random(skeleton.size) < 0.05] = 0
            about = {"file_name": name, "keypoints": joints.ravel().tolist(), "score": float(np.round(score.mean(), 2))}
            if rng.random() < 0.7:
                about["box"] = [*box[:2], box[2] - box[0], box[3] - box[1]]
            found.append(about)
    return found
