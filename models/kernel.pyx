# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""NMS and box voting of boxes that come by descending score, several times as fast as in torch."""

import numpy as np

from libc.stdint cimport int64_t


def suppress(const float[:, ::1] boxes, float threshold, Py_ssize_t most):
    """int64[K], at most ``most``: the boxes, float32[N, 4] xyxy, that no better one overlaps by more.

    Those that are left move together after every box that is kept, which lets the compiler compare many
    at once. It is what `torchvision.ops.nms` gives: the arithmetic is its own, in float32.
    """
    cdef Py_ssize_t left = boxes.shape[0], count = 0, i, end
    cdef float[:, ::1] columns = np.empty((5, max(left, 1)), np.float32)
    cdef float *x1 = &columns[0, 0]
    cdef float *y1 = &columns[1, 0]
    cdef float *x2 = &columns[2, 0]
    cdef float *y2 = &columns[3, 0]
    cdef float *area = &columns[4, 0]
    cdef int64_t[::1] number = np.arange(left)
    cdef int[::1] stays = np.empty(left, np.intc)
    cdef float left_x, top_y, right_x, bottom_y, own, width, height, shared
    result = np.empty(min(left, most), np.int64)
    cdef int64_t[::1] kept = result
    with nogil:
        for i in range(left):
            x1[i], y1[i], x2[i], y2[i] = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
            area[i] = (x2[i] - x1[i]) * (y2[i] - y1[i])
        while left > 0 and count < most:
            kept[count] = number[0]
            count += 1
            left_x, top_y, right_x, bottom_y, own = x1[0], y1[0], x2[0], y2[0], area[0]
            for i in range(1, left):
                width = (right_x if right_x < x2[i] else x2[i]) - (left_x if left_x > x1[i] else x1[i])
                height = (bottom_y if bottom_y < y2[i] else y2[i]) - (top_y if top_y > y1[i] else y1[i])
                shared = (width if width > 0 else 0) * (height if height > 0 else 0)
                stays[i] = not shared / (own + area[i] - shared) > threshold
            end = 0
            for i in range(1, left):
                x1[end], y1[end], x2[end], y2[end] = x1[i], y1[i], x2[i], y2[i]
                area[end], number[end] = area[i], number[i]
                end += stays[i]
            left = end
    return result[:count]


def vote(boxes, scores, const int64_t[::1] kept, float iou, float share):
    """`models.scales.vote` before the scores: float32[K, 5], the mean of each kept box's voters, its support.

    Boxes are looked at in the order of their left edges: at an IoU of ``iou`` another one's lies so near, in
    shares of the width, that few come into question. ``boxes`` are float32[N, 4], ``scores`` float32[N].
    """
    order = boxes[:, 0].argsort()
    cdef const float[:, ::1] columns = np.ascontiguousarray(boxes[order].T)
    cdef const float[::1] rated = scores[order]
    cdef const int64_t[::1] number = order
    chosen = boxes[np.asarray(kept)]
    lefts, wide = chosen[:, 0], (chosen[:, 2] - chosen[:, 0]).clip(0) * np.float32(1.001)
    cdef const int64_t[::1] first = np.searchsorted(columns[0], lefts - wide * np.float32((1 - iou) / iou))
    cdef const int64_t[::1] end = np.searchsorted(columns[0], lefts + wide * np.float32(1 - iou), "right")
    cdef const float[:, ::1] best = chosen
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
