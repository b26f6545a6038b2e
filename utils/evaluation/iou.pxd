# cython: language_level=3
"""Overlap of two boxes, inlined into the matching kernels; `utils.box_utils` has the same in NumPy.

Boxes are x1 y1 x2 y2. ``plus`` is added to widths and heights: 1 for the pixel convention of WIDER FACE,
where a box from 3 to 5 covers three pixels, else 0.
"""


cdef inline double area(const double* box, double plus) noexcept nogil:
    return (box[2] - box[0] + plus) * (box[3] - box[1] + plus)


cdef inline double intersection(const double* a, const double* b, double plus) noexcept nogil:
    cdef double width = min(a[2], b[2]) - max(a[0], b[0]) + plus
    cdef double height = min(a[3], b[3]) - max(a[1], b[1]) + plus
    return width * height if width > 0 and height > 0 else 0
