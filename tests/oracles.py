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


def usable_joints(points, score):
    return [
        [all(map(math.isfinite, (*xy, c))) for xy, c in zip(*pose, strict=True)]
        for pose in zip(points, score, strict=True)
    ]


def box_sides(box):
    finite = all(map(math.isfinite, box))
    return [max(high - low, 1e-3) if finite else 1e-3 for low, high in zip(box[:2], box[2:], strict=True)]


def pose_terms(points, score, boxes, parameters):
    """K_Sim, H_Sim and the number of close joints of every pair, row i the reference."""
    points, score, boxes = (np.asarray(a, float).tolist() for a in (points, score, boxes))
    usable, power = usable_joints(points, score), 1 if parameters.kernel == "laplace" else 2
    keypoint, distance, matches = np.zeros((3, len(points), len(points)))
    for i, box in enumerate(boxes):
        width, height = (parameters.alpha * side for side in box_sides(box))
        limit = min(max(width, height), parameters.match_limit)
        if parameters.unit == "pixel":
            width = height = 1.0
        for j in range(len(points)):
            for n in range(len(score[i])):
                if not (usable[i][n] and usable[j][n]):
                    continue
                dx, dy = (abs(a - b) for a, b in zip(points[i][n], points[j][n], strict=True))
                apart = math.hypot(dx, dy)
                if parameters.region == "circle":
                    near = apart <= max(width, height)
                else:
                    near = dx <= width / 2 and dy <= height / 2
                if near:
                    keypoint[i, j] += math.tanh(score[i][n] / parameters.sigma1) * math.tanh(
                        score[j][n] / parameters.sigma1
                    )
                distance[i, j] += math.exp(-((apart / max(width, height)) ** power) / parameters.sigma2)
                matches[i, j] += apart <= limit
    return keypoint, distance, matches


def eliminators(removes, rank, valid):
    """Who removes whom: the best of those left stays (ties: the lower index, NaN last) and removes, until none is."""
    rank = [-math.inf if math.isnan(value) else value for value in rank]
    left, result = [index for index in range(len(rank)) if valid[index]], [-1] * len(rank)
    while left:
        best = max(left, key=lambda index: (rank[index], -index))
        for index in left:
            if index == best or removes(best, index):
                result[index] = best
        left = [index for index in left if result[index] == -1]
    return result


def pose_goes(points, score, boxes, parameters):
    """Whether the reference i removes j, as a function of both."""
    keypoint, distance, matches = pose_terms(points, score, boxes, parameters)
    joints = len(score[0])
    eta = parameters.eta
    if parameters.eta_scale == "joints":
        eta *= joints / parameters.eta_joints
    if parameters.eta_scale == "fraction":
        eta *= (1 + parameters.lambda_) * joints

    def removes(i, j):
        similarity = keypoint[i, j] + parameters.lambda_ * distance[i, j]
        goes = similarity > eta if parameters.criterion == "similarity" else similarity <= eta
        return goes or (parameters.match_joints > 0 and matches[i, j] >= parameters.match_joints)

    return removes


def merged_joint(n, i, members, points, score, usable, reach, how):
    """Place and score of joint n of reference i."""
    if not usable[i][n]:
        return points[i][n], score[i][n]
    near = [j for j in members if usable[j][n] and math.dist(points[i][n], points[j][n]) <= reach]
    total = sum(score[j][n] for j in near)
    best = max(score[j][n] for j in near)
    if total == 0:
        return points[i][n], score[i][n]
    place = [sum(score[j][n] * points[j][n][axis] for j in near) / total for axis in (0, 1)]
    return place, best if how == "best" else sum(score[j][n] ** 2 for j in near) / total


def suppress_poses(points, score, boxes, valid, parameters, rank):
    """Points and scores after merging, which poses stay, and who removed whom."""
    result = eliminators(pose_goes(points, score, boxes, parameters), rank, valid)
    points, score, boxes = (np.asarray(a, float).tolist() for a in (points, score, boxes))
    usable, new_points, new_score = usable_joints(points, score), np.array(points), np.array(score)
    kept = [i for i in range(len(points)) if result[i] == i]
    for i in kept if parameters.merge == "weighted" else []:
        members = [j for j in range(len(points)) if result[j] == i]
        reach = min(parameters.alpha * max(box_sides(boxes[i])), parameters.merge_limit)
        for n in range(len(score[i])):
            new_points[i, n], new_score[i, n] = merged_joint(
                n, i, members, points, score, usable, reach, parameters.merge_score
            )
    for i in kept if parameters.min_best > 0 else []:
        for scores in (score, new_score):
            if not any(scores[i][n] >= parameters.min_best for n in range(len(score[i])) if usable[i][n]):
                result[i] = -1
    stays = [result[i] == i for i in range(len(points))]
    return new_points, new_score, np.array(stays), np.array(result)


def pose_oks(points, score, boxes, sigmas, i, j):
    """OKS of the reference i and j, with the mean of the boxes' areas."""
    usable = usable_joints(points, score)
    seen = np.where(np.array(usable[j])[:, None], points[j], math.inf)
    return oks(seen, points[i], usable[i], (area(boxes[i]) + area(boxes[j])) / 2, sigmas)


def soft_oks_nms(points, score, boxes, valid, threshold, sigmas, limit, rank):
    left = [index for index in range(len(rank)) if valid[index]]
    value = [rank[i] if valid[i] and not math.isnan(rank[i]) else 0.0 for i in range(len(rank))]
    for _ in range(limit):
        if left:
            best = max(left, key=lambda index: (value[index], -index))
            left.remove(best)
            for j in left:
                value[j] *= math.exp(-(pose_oks(points, score, boxes, sigmas, best, j) ** 2) / threshold)
    return np.array([bool(valid[i]) and i not in left for i in range(len(rank))]), np.array(value)


def joints_overlap(points, score, distance, share, i, j):
    """Whether more than a share of j's joints lie close to those of the reference i."""
    usable = usable_joints(points, score)
    corners = [points[i][n] for n in range(len(score[i])) if usable[i][n]]
    diagonal = math.dist(np.max(corners, 0), np.min(corners, 0)) if corners else 0.0
    close = [
        usable[i][n] and math.dist(points[i][n], points[j][n]) <= distance * diagonal
        for n in range(len(score[j]))
        if usable[j][n]
    ]
    return sum(close) > share * len(close)


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


def multi_person_ap(truth, predicted, denominator, unlabelled):
    """AP of each joint of MPII's protocol, on ragged lists.

    A true person is (points, labelled, head size), a prediction (points, score, present); pictures are lists of them.
    """
    joints = len(next(person for people in (*truth, *predicted) for person in people)[0])
    answers, labels = [[] for _ in range(joints)], [0] * joints
    for people, predictions in zip(truth, predicted, strict=True):
        given, right = assignment(people, predictions)
        for number, (_, score, present) in enumerate(predictions):
            person = given.get(number)
            for joint in range(joints):
                unknown = person is not None and not people[person][1][joint]
                if present[joint] and not (unknown and unlabelled == "ignored"):
                    hit = person is not None and right[number, person, joint]
                    answers[joint].append((score[joint], hit))
        if predictions or denominator == "strict":
            for _, labelled, _ in people:
                labels = [count + int(known) for count, known in zip(labels, labelled, strict=True)]
    return np.array([area_under_envelope(found, count) for found, count in zip(answers, labels, strict=True)])


def assignment(people, predictions):
    """Prediction -> person, and which joints are right, by prediction, person, joint."""
    right, share = {}, {}
    for number, (points, _, present) in enumerate(predictions):
        for person, (labels, labelled, size) in enumerate(people):
            for joint in range(len(labels)):
                near = size > 0 and math.dist(points[joint], labels[joint]) <= 0.5 * size
                right[number, person, joint] = bool(near and present[joint] and labelled[joint])
            hits = sum(right[number, person, joint] for joint in range(len(labels)))
            share[number, person] = hits / sum(labelled) if any(labelled) else 0.0
    suitors = [[] for _ in people]
    for number in range(len(predictions)):
        if people:
            choice = max(range(len(people)), key=lambda person: (share[number, person], -person))
            suitors[choice].append(number)
    given = {}
    for person, numbers in enumerate(suitors):
        if numbers:
            best = max(numbers, key=lambda number: (share[number, person], -number))
            if share[best, person] > 0:
                given[best] = person
    return given, right


def area_under_envelope(answers, labels):
    """Area under precision over recall, every precision raised to the best at the same or a higher rank."""
    if labels == 0:
        return math.nan
    order = sorted(range(len(answers)), key=lambda index: -answers[index][0])
    hits = [answers[index][1] for index in order]
    area = 0.0
    for rank, hit in enumerate(hits):
        if hit:
            area += max(sum(hits[: stop + 1]) / (stop + 1) for stop in range(rank, len(hits))) / labels
    return area


def found_sticks(predicted, truth, labelled, criterion, threshold):
    """Which labelled sticks are found by PCP."""
    found = []
    for stick in range(len(truth)):
        length = math.dist(truth[stick][0], truth[stick][1])
        errors = [math.dist(predicted[stick][end], truth[stick][end]) for end in (0, 1)]
        error = max(errors) if criterion == "strict" else sum(errors) / 2
        found.append(bool(labelled[stick] and length > 0 and error <= threshold * length))
    return found


def stn(image, theta, size, padding, align_corners):
    """Each pixel of the output reads the picture at theta times its own place, both in [-1, 1]."""
    result = np.zeros((*size, image.shape[2]))
    for row in range(size[0]):
        for column in range(size[1]):
            target = [unit_of(column, size[1], align_corners), unit_of(row, size[0], align_corners), 1]
            u, v = np.asarray(theta, float) @ target
            x, y = pixel_of(u, image.shape[1], align_corners), pixel_of(v, image.shape[0], align_corners)
            result[row, column] = sample(image, x, y, padding)
    return result


def unit_of(pixel, side, align_corners):
    return 2 * pixel / (side - 1) - 1 if align_corners else (2 * pixel + 1) / side - 1


def pixel_of(unit, side, align_corners):
    return (unit + 1) * (side - 1) / 2 if align_corners else ((unit + 1) * side - 1) / 2


def gradient_of_inverse(theta, by_gamma):
    """The gradient in theta of a loss whose gradient in gamma is given, in matrices: A and Gamma the linear parts.

    dA = -Gamma^T (G - g theta_3^T) Gamma^T,  dtheta_3 = -Gamma^T g
    """
    gamma = np.linalg.inv(theta[:, :2])
    by_linear, by_shift = by_gamma[:, :2], by_gamma[:, 2]
    linear = -gamma.T @ (by_linear - np.outer(by_shift, theta[:, 2])) @ gamma.T
    return np.concatenate([linear, (-gamma.T @ by_shift)[:, None]], 1)


def gradient_of_inverse_by_chain_rule(theta, by_gamma):
    """The same by RMPE's eqs 5 and 6: every derivative of eqs 3 and 4 is a number, and the products are summed."""
    (a, b, x), (c, d, y) = theta
    det, adjugate = a * d - b * c, np.array([[d, -b], [-c, a]])
    # (entry of theta_12: derivative of the determinant, derivative of the adjugate)
    entries = {
        (0, 0): (d, [[0, 0], [0, 1]]),
        (0, 1): (-c, [[0, -1], [0, 0]]),
        (1, 0): (-b, [[0, 0], [-1, 0]]),
        (1, 1): (a, [[1, 0], [0, 0]]),
    }
    result = np.zeros((2, 3))
    for entry, (of_det, of_adjugate) in entries.items():
        gamma12_by_entry = np.array(of_adjugate) / det - adjugate * of_det / det**2
        for i in range(2):
            for j in range(2):
                gamma3_by_gamma12 = -(x, y)[j]
                result[entry] += by_gamma[i, j] * gamma12_by_entry[i, j]
                result[entry] += by_gamma[i, 2] * gamma3_by_gamma12 * gamma12_by_entry[i, j]
    for j in range(2):
        for i in range(2):
            gamma3_by_theta3 = -adjugate[i, j] / det
            result[j, 2] += by_gamma[i, 2] * gamma3_by_theta3
    return result


def peak_boxes(heat, log_size, offset, capacity):
    """(score, box) of the peaks of a person detector's maps: highest first, equal ones in reading order."""
    height, width = heat.shape
    found = []
    for row in range(height):
        for column in range(width):
            around = heat[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            if heat[row, column] < around.max():
                continue
            score = 1 / (1 + math.exp(-heat[row, column]))
            x, y = column + offset[row, column, 0], row + offset[row, column, 1]
            w, h = (math.exp(value) for value in log_size[row, column])
            corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            found.append((score, [4 * (value + 0.5) - 0.5 for value in corners]))
    found.sort(key=lambda each: -each[0])
    return found[:capacity]


def centre_maps(boxes, person, size):
    """Centres as bells, and whose pixel each is with what weight, for boxes in pixels of the maps; -1 for nobody."""
    height, width = size
    heat, owner = np.zeros(size), np.full(size, -1)
    centre = np.zeros(size, bool)
    for number, (x0, y0, x1, y1) in enumerate(np.asarray(boxes, float)):
        if not person[number]:
            continue
        column = min(max(round((x0 + x1) / 2), 0), width - 1)
        row = min(max(round((y0 + y1) / 2), 0), height - 1)
        centre[row, column] = True
        across, along = max(0.09 * (x1 - x0), 0.5), max(0.09 * (y1 - y0), 0.5)
        for j in range(height):
            for i in range(width):
                bell = math.exp(-0.5 * ((i - column) / across) ** 2 - 0.5 * ((j - row) / along) ** 2)
                if bell > heat[j, i]:
                    heat[j, i], owner[j, i] = bell, number
    weight = np.zeros(size)
    for number in range(len(boxes)):
        own = (owner == number) & (heat > 0.2)
        weight[own] = heat[own] / heat[own].sum() if own.any() else 0.0
    return heat, centre, owner, weight


def detector_losses(logit, log_size, offset, heat, centre, box, weight, known):
    """Sums of the losses of centres, and of sizes and offsets."""
    centres = boxes = 0.0
    for row, column in np.ndindex(*heat.shape):
        p = 1 / (1 + math.exp(-logit[row, column]))
        if centre[row, column]:
            centres -= (1 - p) ** 2 * math.log(p)
        elif known[row, column]:
            centres -= (1 - heat[row, column]) ** 4 * p**2 * math.log(1 - p)
        x, y, w, h = box[row, column]
        off = abs(log_size[row, column, 0] - math.log(w)) + abs(log_size[row, column, 1] - math.log(h))
        off += abs(offset[row, column, 0] - (x - column)) / w + abs(offset[row, column, 1] - (y - row)) / h
        boxes += weight[row, column] * off
    return centres, boxes
