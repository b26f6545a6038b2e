# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Matching by the rules of Open Images and of COCO; `matching.py` beside it says what they are."""

import numpy as np

from libc.stdint cimport int8_t, int64_t, uint8_t

from utils.evaluation.iou cimport intersection, iou


def match_open_images(
    const double[:, ::1] boxes,
    const double[::1] areas,
    const int64_t[::1] offsets,
    const double[:, ::1] truths,
    const double[::1] truth_areas,
    const int64_t[::1] truth_offsets,
    const uint8_t[::1] group_of,
    const double[::1] thresholds,
):
    cdef int64_t levels = thresholds.shape[0], image, row, truth, level, best, best_group
    cdef double overlap, best_overlap, inside, best_inside
    result = np.zeros((levels, boxes.shape[0]), np.int8)
    cdef int8_t[:, ::1] outcome = result
    cdef uint8_t[:, ::1] found = np.zeros((levels, truths.shape[0]), np.uint8)
    if boxes.shape[0] == 0:
        return result
    with nogil:
        for image in range(offsets.shape[0] - 1):
            for row in range(offsets[image], offsets[image + 1]):
                best_overlap = best_inside = 0
                best = best_group = -1
                for truth in range(truth_offsets[image], truth_offsets[image + 1]):
                    if group_of[truth]:
                        if areas[row] > 0:
                            inside = intersection(&boxes[row, 0], &truths[truth, 0], 0) / areas[row]
                            if inside > best_inside:
                                best_inside = inside
                                best_group = truth
                    else:
                        overlap = iou(&boxes[row, 0], areas[row], &truths[truth, 0], truth_areas[truth], 0)
                        if overlap > best_overlap:
                            best_overlap = overlap
                            best = truth
                for level in range(levels):
                    if best >= 0 and best_overlap > thresholds[level] and not found[level, best]:
                        found[level, best] = 1
                        outcome[level, row] = 1
                    elif best_group >= 0 and best_inside > thresholds[level]:
                        outcome[level, row] = -1 if found[level, best_group] else 1
                        found[level, best_group] = 1
    return result


def match_coco(
    const double[:, ::1] boxes,
    const double[::1] areas,
    const int64_t[::1] offsets,
    const double[:, ::1] truths,
    const double[::1] truth_areas,
    const int64_t[::1] truth_offsets,
    const uint8_t[::1] crowd,
    const double[::1] thresholds,
    int64_t most,
):
    cdef int64_t levels = thresholds.shape[0], image, row, truth, level, first, last, best
    cdef double overlap, least
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
                for truth in range(first, last):
                    if crowd[truth]:
                        overlap = intersection(&boxes[row, 0], &truths[truth, 0], 0)
                        overlaps[truth] = overlap / areas[row] if overlap > 0 else 0
                    else:
                        overlaps[truth] = iou(&boxes[row, 0], areas[row], &truths[truth, 0], truth_areas[truth], 0)
                for level in range(levels):
                    least = thresholds[level]
                    best = -1
                    for truth in range(first, last):
                        if not crowd[truth] and not found[level, truth] and overlaps[truth] >= least:
                            least = overlaps[truth]
                            best = truth
                    if best >= 0:
                        found[level, best] = 1
                        outcome[level, row] = 1
                        continue
                    for truth in range(first, last):
                        if crowd[truth] and overlaps[truth] >= least:
                            outcome[level, row] = -1
                            break
    return result
