# cython: language_level=3
"""Overlap of two boxes, inlined into the matching kernels.

Boxes are x1 y1 x2 y2. ``plus`` is added to widths and heights: 1 for the pixel convention of WIDER FACE,
where a box from 3 to 5 covers three pixels, else 0. Areas are the caller's, worked out once a box.
"""


cdef inline double intersection(const double* a, const double* b, double plus) noexcept nogil:
    cdef double width = min(a[2], b[2]) - max(a[0], b[0]) + plus
    cdef double height = min(a[3], b[3]) - max(a[1], b[1]) + plus
    return width * height if width > 0 and height > 0 else 0


cdef inline double iou(
    const double* a, double area_a, const double* b, double area_b, double plus
) noexcept nogil:
    cdef double shared = intersection(a, b, plus)
    return shared / (area_a + area_b - shared) if shared > 0 else 0
