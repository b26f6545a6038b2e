# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The truth that each detection overlaps most; `widerface_evaluate.matching` has the same in NumPy."""

import numpy as np

from libc.math cimport round
from libc.stdint cimport int64_t

from utils.evaluation.iou cimport area, intersection

cdef enum:
    IOU, INSIDE, WHOLE  # as in `matching.py`


def best_overlaps(
    const double[:, ::1] boxes,
    const int64_t[::1] offsets,
    const double[:, ::1] truths,
    const int64_t[::1] truth_offsets,
    double plus,
    int kind,
):
    cdef int64_t image, row, truth, side
    cdef double shared, overlap, box_area
    cdef double[4] box
    result = np.full(boxes.shape[0], -1, np.int64), np.zeros(boxes.shape[0])
    cdef int64_t[::1] best = result[0]
    cdef double[::1] best_overlap = result[1]
    cdef double[::1] areas = np.empty(truths.shape[0])
    if boxes.shape[0] == 0 or truths.shape[0] == 0:
        return result
    with nogil:
        for truth in range(truths.shape[0]):
            areas[truth] = area(&truths[truth, 0], plus)
        for image in range(offsets.shape[0] - 1):
            for row in range(offsets[image], offsets[image + 1]):
                box_area = area(&boxes[row, 0], plus)
                for side in range(4):
                    box[side] = round(boxes[row, side]) if kind == WHOLE else boxes[row, side]
                for truth in range(truth_offsets[image], truth_offsets[image + 1]):
                    overlap = 0
                    shared = intersection(box, &truths[truth, 0], plus)
                    if shared > 0:
                        if kind == INSIDE:
                            overlap = shared / box_area
                        elif kind == WHOLE:
                            overlap = round(shared / (round(box_area + areas[truth]) - shared))
                        else:
                            overlap = shared / (box_area + areas[truth] - shared)
                    if best[row] < 0 or overlap > best_overlap[row]:
                        best_overlap[row] = overlap
                        best[row] = truth
    return result
