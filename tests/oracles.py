"""Slow, obvious NumPy twins of the package's numeric functions: plain loops in float64, for comparison only."""

import math

import numpy as np


def sample(image, x, y, padding):
    """Bilinear value of every channel at one position; "zeros" reads 0 outside, "border" the nearest pixel."""
    height, width, channels = image.shape
    if not (math.isfinite(x) and math.isfinite(y)):
        return np.zeros(channels)
    if padding == "border":
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = math.floor(x), math.floor(y)
    total = np.zeros(channels)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                total += image[row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


def sample_all(image, points, padding):
    return np.array([sample(image, x, y, padding) for x, y in np.asarray(points, float)])


def encode(points, present, size, sigma):
    height, width = size
    maps = np.zeros((height, width, len(points)))
    for joint, (x, y) in enumerate(np.asarray(points, float)):
        for row in range(height):
            for column in range(width):
                if present[joint]:
                    squared = (column - x) ** 2 + (row - y) ** 2
                    maps[row, column, joint] = math.exp(-squared / (2 * sigma**2))
    return maps


def decode(maps):
    """Maximum of each map, first in reading order, and a quarter pixel towards the higher neighbour inside."""
    height, width, joints = maps.shape
    points, scores = np.zeros((joints, 2)), np.zeros(joints)
    for joint in range(joints):
        best, x, y = -math.inf, 0, 0
        for row in range(height):
            for column in range(width):
                if maps[row, column, joint] > best:
                    best, x, y = maps[row, column, joint], column, row
        points[joint] = x, y
        if 0 < x < width - 1:
            points[joint, 0] += 0.25 * np.sign(maps[y, x + 1, joint] - maps[y, x - 1, joint])
        if 0 < y < height - 1:
            points[joint, 1] += 0.25 * np.sign(maps[y + 1, x, joint] - maps[y - 1, x, joint])
        scores[joint] = min(max(best, 0), 1)
    return points, scores


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def iou(a, b):
    overlap = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - overlap
    return overlap / union if union > 0 else 0.0


def suppress(removes, score, valid):
    """Greedy suppression: the best of those left stays and removes, until none is left; ties go to the lower index."""
    left = [index for index in range(len(score)) if valid[index]]
    keep = np.zeros(len(score), bool)
    while left:
        best = max(left, key=lambda index: (score[index], -index))
        keep[best] = True
        left = [index for index in left if index != best and not removes(best, index)]
    return keep


def box_nms(boxes, score, valid, threshold):
    return suppress(lambda i, j: iou(boxes[i], boxes[j]) > threshold, score, valid)


def pose_similarity(points, score, boxes, parameters):
    """d of every pair, row i the reference."""
    count, joints = score.shape
    result = np.zeros((count, count))
    for i in range(count):
        width, height = boxes[i][2] - boxes[i][0], boxes[i][3] - boxes[i][1]
        unit = parameters.alpha * max(width, height)
        for j in range(count):
            for n in range(joints):
                dx, dy = abs(points[i, n] - points[j, n])
                distance = math.hypot(dx, dy)
                if parameters.region == "circle":
                    near = distance <= unit
                else:
                    near = dx <= parameters.alpha * width / 2 and dy <= parameters.alpha * height / 2
                if near:
                    both = score[i, n], score[j, n]
                    result[i, j] += math.prod(math.tanh(value / parameters.sigma1) for value in both)
                power = 1 if parameters.kernel == "laplace" else 2
                result[i, j] += parameters.lambda_ * math.exp(-((distance / unit) ** power) / parameters.sigma2)
    return result


def pose_nms(points, score, boxes, valid, parameters):
    similarity = pose_similarity(points, score, boxes, parameters)
    eta = parameters.eta * score.shape[1] / parameters.eta_joints
    return suppress(lambda i, j: similarity[i, j] > eta, score.mean(1), valid)


def oks(predicted, truth, labelled, area_, sigmas):
    terms = []
    for joint in range(len(sigmas)):
        if labelled[joint]:
            squared = ((predicted[joint] - truth[joint]) ** 2).sum()
            terms.append(math.exp(-squared / (2 * area_ * (2 * sigmas[joint]) ** 2)))
    return sum(terms) / len(terms) if terms else 0.0


def pck(predicted, truth, labelled, length, threshold):
    """Total and per-joint share of labelled joints within threshold x length; NaN where nothing is labelled."""
    people, joints = labelled.shape
    hits, counts = np.zeros(joints), np.zeros(joints)
    for person in range(people):
        for joint in range(joints):
            if labelled[person, joint]:
                counts[joint] += 1
                distance = math.dist(predicted[person, joint], truth[person, joint])
                hits[joint] += length[person] > 0 and distance <= threshold * length[person]
    total = hits.sum() / counts.sum() if counts.sum() else math.nan
    return total, np.array([h / c if c else math.nan for h, c in zip(hits, counts, strict=True)])


def heatmap_loss(maps, target, labelled, positive_weight):
    stacks, height, width, joints = maps.shape
    total = 0.0
    for stack in range(stacks):
        for joint in range(joints):
            for row in range(height):
                for column in range(width):
                    goal = target[row, column, joint]
                    weight = labelled[joint] * (1 + positive_weight * goal) / (height * width)
                    total += weight * (maps[stack, row, column, joint] - goal) ** 2
    return total
