# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Matching by WIDER FACE's rule; `widerface_evaluate.matching` says what it is and has it in NumPy."""

import numpy as np

from libc.stdint cimport int8_t, int64_t, uint8_t

from utils.evaluation.iou cimport iou


cdef inline double area(const double* box) noexcept nogil:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def match(
    const double[:, ::1] boxes,
    const int64_t[::1] offsets,
    const double[:, ::1] truths,
    const int64_t[::1] truth_offsets,
    const uint8_t[:, ::1] counted,
    double iou_threshold,
):
    cdef int64_t subsets = counted.shape[0], image, row, truth, best, subset
    cdef double overlap, best_overlap, box_area
    result = np.zeros((subsets, boxes.shape[0]), np.int8)
    cdef int8_t[:, ::1] outcome = result
    cdef uint8_t[:, ::1] found = np.zeros((subsets, truths.shape[0]), np.uint8)
    cdef double[::1] areas = np.empty(truths.shape[0])
    if boxes.shape[0] == 0:
        return result
    with nogil:
        for truth in range(truths.shape[0]):
            areas[truth] = area(&truths[truth, 0])
        for image in range(offsets.shape[0] - 1):
            for row in range(offsets[image], offsets[image + 1]):
                if truth_offsets[image] == truth_offsets[image + 1]:
                    for subset in range(subsets):
                        outcome[subset, row] = -1
                    continue
                best_overlap = -1
                best = 0
                box_area = area(&boxes[row, 0])
                for truth in range(truth_offsets[image], truth_offsets[image + 1]):
                    overlap = iou(&boxes[row, 0], box_area, &truths[truth, 0], areas[truth], 1)
                    if overlap > best_overlap:
                        best_overlap = overlap
                        best = truth
                if best_overlap < iou_threshold:
                    continue
                for subset in range(subsets):
                    if not counted[subset, best]:
                        outcome[subset, row] = -1
                    elif not found[subset, best]:
                        found[subset, best] = 1
                        outcome[subset, row] = 1
    return result
