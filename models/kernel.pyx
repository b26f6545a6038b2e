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


def vote(
    const float[:, ::1] boxes, const float[::1] scores, const int64_t[::1] kept, float iou, float share
):
    """`models.scales.vote` before the scores: float32[K, 5], the mean of each kept box's voters, its support."""
    cdef Py_ssize_t count = boxes.shape[0], k, i, j, side
    cdef float left, top, right, bottom, own, width, height, shared, least
    cdef float[::1] area = np.empty(count, np.float32)
    result = np.zeros((kept.shape[0], 5), np.float32)
    cdef float[:, ::1] sums = result
    with nogil:
        for i in range(count):
            area[i] = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
        for k in range(kept.shape[0]):
            i = kept[k]
            left, top, right, bottom, own = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3], area[i]
            least = share * scores[i]
            for j in range(count):
                if scores[j] < least:
                    break
                # Most are of another size or lie elsewhere, which costs less to see than an overlap.
                if i != j and (
                    area[j] < iou * own
                    or own < iou * area[j]
                    or boxes[j, 0] >= right
                    or boxes[j, 2] <= left
                    or boxes[j, 1] >= bottom
                    or boxes[j, 3] <= top
                ):
                    continue
                width = min(right, boxes[j, 2]) - max(left, boxes[j, 0])
                height = min(bottom, boxes[j, 3]) - max(top, boxes[j, 1])
                shared = width * height
                if i == j or shared >= iou * (own + area[j] - shared):
                    for side in range(4):
                        sums[k, side] += scores[j] * boxes[j, side]
                    sums[k, 4] += scores[j]
            for side in range(4):
                sums[k, side] /= sums[k, 4]
    return result
