# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""NMS and box voting of boxes that come by descending score, several times as fast as in torch."""

import numpy as np

from libc.stdint cimport int64_t


cdef windows(columns, boxes, float iou):
    """First and end in ``columns`` of those that can overlap each of ``boxes`` by ``iou``: two int64[N].

    ``columns`` are x1 y1 x2 y2 of other boxes in the order of x1. The left edge of one that overlaps a box so
    much lies at most 1 - iou of the box's width to the right of its own, or (1 - iou) / iou to the left.
    """
    with np.errstate(all="ignore"):  # boxes may be endless
        left, width = boxes[:, 0].astype(float), (boxes[:, 2] - boxes[:, 0]).clip(0).astype(float)
        margin, share = width * 1e-3 + np.abs(left) * 1e-6, max(iou, 1e-6)
        first = columns[0].searchsorted(left - width * ((1 - share) / share) - margin)
        return first, columns[0].searchsorted(left + width * (1 - share) + margin, "right")


def suppress(boxes, float threshold, Py_ssize_t most):
    """int64[K], at most ``most``: the boxes, float32[N, 4] xyxy, that no better one overlaps by more.

    It is what `torchvision.ops.nms` gives: the arithmetic is its own, in float32. Boxes lie in the order of
    their left edges, so that few come into question and the compiler compares many at once.
    """
    order = boxes[:, 0].argsort()
    boxes = boxes[order]
    columns = np.ascontiguousarray(boxes.T)
    place = np.empty(len(boxes), np.int64)
    place[order] = np.arange(len(boxes))
    first, end = windows(columns, boxes, threshold)
    cdef const int64_t[::1] places = place, firsts = first, ends = end
    cdef const float[:, ::1] edges = columns
    cdef int[::1] stays = np.ones(len(boxes), np.intc)
    cdef float left, top, right, bottom, own, area, width, height, shared
    cdef Py_ssize_t count = 0, number, i, j
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
            for j in range(firsts[i], ends[i]):
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
    order = boxes[:, 0].argsort()
    by_left, chosen = np.ascontiguousarray(boxes[order].T), boxes[np.asarray(kept)]
    first_of, end_of = windows(by_left, chosen, iou)
    cdef const float[:, ::1] columns = by_left, best = chosen
    cdef const float[::1] rated = scores[order]
    cdef const int64_t[::1] number = order, first = first_of, end = end_of
    cdef const float[::1] own_score = scores[np.asarray(kept)]
    cdef float left, top, right, bottom, own, width, height, shared, least
    cdef Py_ssize_t k, j, side
    result = np.zeros((kept.shape[0], 5), np.float32)
    cdef float[:, ::1] sums = result
    with nogil:
        for k in range(kept.shape[0]):
            left, top, right, bottom = best[k, 0], best[k, 1], best[k, 2], best[k, 3]
            own, least = (right - left) * (bottom - top), share * own_score[k]
            for j in range(first[k], end[k]):
                if rated[j] < least:
                    continue
                width = min(right, columns[2, j]) - max(left, columns[0, j])
                height = min(bottom, columns[3, j]) - max(top, columns[1, j])
                shared = (width if width > 0 else 0) * (height if height > 0 else 0)
                width, height = columns[2, j] - columns[0, j], columns[3, j] - columns[1, j]
                if number[j] == kept[k] or 0 < shared >= iou * (own + width * height - shared):
                    for side in range(4):
                        sums[k, side] += rated[j] * columns[side, j]
                    sums[k, 4] += rated[j]
            for side in range(4):
                sums[k, side] /= sums[k, 4]
    return result
