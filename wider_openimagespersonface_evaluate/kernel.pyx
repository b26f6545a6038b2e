# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Matching by the rule of COCO; `matching.py` beside it says what it is and has it in NumPy."""

import numpy as np

from libc.stdint cimport int8_t, int64_t, uint8_t

from utils.evaluation.iou cimport area, intersection


def match_coco(
    const double[:, ::1] boxes,
    const int64_t[::1] offsets,
    const double[:, ::1] truths,
    const int64_t[::1] truth_offsets,
    const uint8_t[::1] crowd,
    const uint8_t[::1] ignored,
    const double[::1] thresholds,
    int64_t most,
):
    cdef int64_t levels = thresholds.shape[0], image, row, truth, level, first, last, best
    cdef double shared, least, box_area
    cdef uint8_t second
    result = np.zeros((levels, boxes.shape[0]), np.int8)
    cdef int8_t[:, ::1] outcome = result
    cdef uint8_t[:, ::1] found = np.zeros((levels, truths.shape[0]), np.uint8)
    cdef double[::1] overlaps = np.empty(truths.shape[0])
    if boxes.shape[0] == 0:
        return result
    with nogil:
        for image in range(offsets.shape[0] - 1):
            first, last = truth_offsets[image], truth_offsets[image + 1]
            for row in range(offsets[image], offsets[image + 1]):
                if row - offsets[image] >= most:
                    for level in range(levels):
                        outcome[level, row] = -1
                    continue
                box_area = area(&boxes[row, 0], 0)
                for truth in range(first, last):
                    shared = intersection(&boxes[row, 0], &truths[truth, 0], 0)
                    if shared > 0:
                        shared /= box_area if crowd[truth] else box_area + area(&truths[truth, 0], 0) - shared
                    overlaps[truth] = shared
                for level in range(levels):
                    for second in range(2):  # truths that are ignored only get what the others leave
                        least, best = thresholds[level], -1
                        for truth in range(first, last):
                            if ignored[truth] == second and not found[level, truth] and overlaps[truth] >= least:
                                least, best = overlaps[truth], truth
                        if best >= 0:
                            found[level, best] = not crowd[best]
                            outcome[level, row] = -1 if second else 1
                            break
    return result
