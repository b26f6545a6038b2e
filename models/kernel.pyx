# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What follows the network, on the CPU, several times as fast as in torch: candidates, NMS, box voting."""

import numpy as np

from libc.math cimport expf, fabsf, isnan
from libc.stdint cimport int64_t


def above(loc, logits, const float[:, ::1] priors, variances, float cut, float margin):
    """`models.scales.above` of float32[N, P, 4], float32[N, P, classes] and float32[P, 4].

    A score above ``cut`` needs a logit that is ``margin`` ahead of the background's.
    """
    cdef const float[:, ::1] offsets = loc.reshape(-1, 4), values = logits.reshape(-1, logits.shape[2])
    cdef float of_centre = variances[0], of_size = variances[1], greatest, share, total, middle, side
    cdef Py_ssize_t row = 0, label, other, place, prior, axis, k
    places, number = np.empty((values.shape[1], values.shape[0]), np.int64), np.zeros(values.shape[1], np.int64)
    cdef int64_t[:, ::1] ahead = places
    cdef int64_t[::1] count = number
    with nogil:
        for place in range(values.shape[0]):
            for label in range(1, values.shape[1]):
                if values[place, label] - values[place, 0] > margin:
                    ahead[label, count[label]] = place
                    count[label] += 1
    most = number.sum()
    result = (np.empty(most, np.int64), np.empty(most, np.int64),
              np.empty(most, np.float32), np.empty((most, 4), np.float32))
    cdef int64_t[::1] labels = result[0], images = result[1]
    cdef float[::1] scores = result[2]
    cdef float[:, ::1] boxes = result[3]
    with nogil:
        for label in range(1, values.shape[1]):
            for k in range(count[label]):
                place = ahead[label, k]
                greatest = values[place, 0]
                for other in range(1, values.shape[1]):
                    greatest = max(greatest, values[place, other])
                total = 0
                for other in range(values.shape[1]):
                    share = expf(values[place, other] - greatest)
                    total += share
                    if other == label:
                        scores[row] = share
                scores[row] /= total
                if not scores[row] > cut:
                    continue
                labels[row], images[row], prior = label - 1, place // priors.shape[0], place % priors.shape[0]
                for axis in range(2):
                    side = priors[prior, axis + 2]
                    middle = priors[prior, axis] + offsets[place, axis] * of_centre * side
                    side *= expf(offsets[place, axis + 2] * of_size)
                    boxes[row, axis] = middle - side / 2
                    boxes[row, axis + 2] = boxes[row, axis] + side
                row += 1
    return tuple(column[:row] for column in result)


cdef (Py_ssize_t, Py_ssize_t) window(const float* lefts, Py_ssize_t count, float left, float right, float iou) noexcept nogil:
    """First and end, among boxes in the order of their left edges, of those that can overlap one by ``iou``.

    The left edge of one that overlaps it so much lies at most 1 - iou of its width to the right of its own,
    or (1 - iou) / iou to the left.
    """
    cdef double width = right - left if right > left else 0, share = max(iou, 1e-6)
    cdef double slack = width * 1e-3 + fabsf(left) * 1e-6
    cdef double least = left - width * ((1 - share) / share) - slack, most = left + width * (1 - share) + slack
    cdef Py_ssize_t first = 0, end = count, low, high, middle
    if isnan(least) or isnan(most):  # a box may be endless
        return 0, count
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if lefts[middle] < least:
            low = middle + 1
        else:
            high = middle
    first, high = low, count
    while low < high:
        middle = (low + high) // 2
        if lefts[middle] <= most:
            low = middle + 1
        else:
            high = middle
    return first, low


def suppress(boxes, float threshold, Py_ssize_t most):
    """int64[K], at most ``most``: the boxes, float32[N, 4] xyxy, that no better one overlaps by more.

    They come by descending score. It is what `torchvision.ops.nms` gives: the arithmetic is its own, in
    float32. Boxes lie in the order of their left edges, so that few come into question and the compiler
    compares many at once.
    """
    order = boxes[:, 0].argsort(kind="stable")
    columns = np.ascontiguousarray(boxes[order].T)
    place = np.empty(len(boxes), np.int64)
    place[order] = np.arange(len(boxes))
    cdef const int64_t[::1] places = place
    cdef const float[:, ::1] edges = columns
    cdef int[::1] stays = np.ones(len(boxes), np.intc)
    cdef float left, top, right, bottom, own, area, width, height, shared
    cdef Py_ssize_t count = 0, number, i, j, first, end
    result = np.empty(min(len(boxes), most), np.int64)
    cdef int64_t[::1] kept = result
    with nogil:
        for number in range(places.shape[0]):
            i = places[number]
            if count == most:
                break
            if not stays[i]:
                continue
            kept[count] = number
            count += 1
            left, top, right, bottom = edges[0, i], edges[1, i], edges[2, i], edges[3, i]
            own = (right - left) * (bottom - top)
            first, end = window(&edges[0, 0], edges.shape[1], left, right, threshold)
            for j in range(first, end):
                width = min(right, edges[2, j]) - max(left, edges[0, j])
                height = min(bottom, edges[3, j]) - max(top, edges[1, j])
                shared = (width if width > 0 else 0) * (height if height > 0 else 0)
                area = (edges[2, j] - edges[0, j]) * (edges[3, j] - edges[1, j])
                stays[j] &= not shared / (own + area - shared) > threshold
    return result[:count]


def vote(boxes, scores, const int64_t[::1] kept, float iou, float share):
    """`models.scales.vote` before the scores: float32[K, 5], the mean of each kept box's voters, its support.

    ``boxes`` are float32[N, 4], ``scores`` float32[N].
    """
    order = boxes[:, 0].argsort(kind="stable")
    columns, rated = np.ascontiguousarray(boxes[order].T), scores[order]
    place = np.empty(len(boxes), np.int64)
    place[order] = np.arange(len(boxes))
    cdef const int64_t[::1] places = place
    cdef const float[:, ::1] edges = columns
    cdef const float[::1] score = rated
    cdef int[::1] agrees = np.empty(len(boxes), np.intc)
    cdef float left, top, right, bottom, own, area, width, height, shared, least
    cdef Py_ssize_t k, i, j, side, first, end
    result = np.zeros((kept.shape[0], 5), np.float32)
    cdef float[:, ::1] sums = result
    with nogil:
        for k in range(kept.shape[0]):
            i = places[kept[k]]
            left, top, right, bottom = edges[0, i], edges[1, i], edges[2, i], edges[3, i]
            own, least = (right - left) * (bottom - top), share * score[i]
            first, end = window(&edges[0, 0], edges.shape[1], left, right, iou)
            for j in range(first, end):
                width = min(right, edges[2, j]) - max(left, edges[0, j])
                height = min(bottom, edges[3, j]) - max(top, edges[1, j])
                shared = (width if width > 0 else 0) * (height if height > 0 else 0)
                area = (edges[2, j] - edges[0, j]) * (edges[3, j] - edges[1, j])
                agrees[j] = (score[j] >= least) & (shared > 0) & (shared >= iou * (own + area - shared))
            agrees[i] = True  # without a size it overlaps nothing
            for j in range(first, end):
                if agrees[j]:
                    for side in range(4):
                        sums[k, side] += score[j] * edges[side, j]
                    sums[k, 4] += score[j]
            for side in range(4):
                sums[k, side] /= sums[k, 4]
    return result
