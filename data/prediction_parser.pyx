# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Prediction text to numbers, without the GIL; `data.predictions` says what the format is.

Decimal numbers of up to 15 digits are exact without a library call: an integer below 2**53 divided by a
power of ten up to 10**22 is rounded once. Longer ones go to the C library.
"""

import numpy as np

from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport strtod
from libc.string cimport memchr, memcpy

cdef double POWERS[23]
POWERS[:] = [float(10**exponent) for exponent in range(23)]


cdef inline bint is_blank(char c) noexcept nogil:
    return c == b" " or c == b"\t" or c == b"\r"


cdef const char* read_number(const char* at, double* value) noexcept nogil:
    """Reads one decimal number; returns where it ends, NULL if there is none or it is not finite."""
    cdef const char* start = at
    cdef char* end
    cdef uint64_t mantissa = 0
    cdef int digits = 0, exponent = 0, written = 0
    cdef bint negative = at[0] == b"-", small = True, down
    if at[0] == b"-" or at[0] == b"+":
        at += 1
    while b"0" <= at[0] <= b"9":
        mantissa = mantissa * 10 + (at[0] - 48)
        digits += 1
        at += 1
    if at[0] == b".":
        at += 1
        while b"0" <= at[0] <= b"9":
            mantissa = mantissa * 10 + (at[0] - 48)
            digits += 1
            exponent -= 1
            at += 1
    if digits == 0:
        return NULL
    if at[0] == b"e" or at[0] == b"E":
        at += 1
        down = at[0] == b"-"
        if at[0] == b"-" or at[0] == b"+":
            at += 1
        if not b"0" <= at[0] <= b"9":
            return NULL
        while b"0" <= at[0] <= b"9":
            if written < 10000:
                written = written * 10 + (at[0] - 48)
            at += 1
        exponent += -written if down else written
    small = digits <= 19 and mantissa <= <uint64_t> 1 << 53 and -22 <= exponent <= 22
    if small:
        value[0] = <double> mantissa
        value[0] = value[0] / POWERS[-exponent] if exponent < 0 else value[0] * POWERS[exponent]
        if negative:
            value[0] = -value[0]
        return at
    value[0] = strtod(start, &end)
    return at if end == at and isfinite(value[0]) else NULL


cdef const char* read_row(const char* at, double* row) noexcept nogil:
    """Reads five or six numbers up to the line's end; returns where that is, NULL if the line is another."""
    cdef int column = 0
    while True:
        while is_blank(at[0]):
            at += 1
        if at[0] == b"\n" or at[0] == 0:
            break
        if column == 6:
            return NULL
        at = read_number(at, &row[column])
        if at == NULL or not (is_blank(at[0]) or at[0] == b"\n" or at[0] == 0):
            return NULL
        column += 1
    if column == 5:
        row[5] = 0
    elif column == 6 and not (row[5] >= 1 and row[5] == <double> <int64_t> row[5]):
        return NULL
    elif column != 6:
        return NULL
    return at if row[2] >= 0 and row[3] >= 0 else NULL


cdef int64_t read_text(
    const char* at, const char* end, double* boxes, double* scores, int64_t* labels, int64_t* declared
) noexcept nogil:
    """Reads a file's text; returns the number of rows, -1 if a line is faulty."""
    cdef int64_t count = 0
    cdef double number
    cdef double[6] row
    declared[0] = -1
    at = <const char*> memchr(at, b"\n", end - at)
    if at == NULL:
        return 0
    at += 1
    while at < end and (is_blank(at[0]) or at[0] == b"\n"):
        at += 1
    if at == end:
        return 0
    at = read_number(at, &number)
    while at != NULL and is_blank(at[0]):
        at += 1
    if at == NULL or at > end or not (at[0] == b"\n" or at == end) or number < 0 or number > 1e15:
        return -1
    declared[0] = <int64_t> number
    if <double> declared[0] != number:
        return -1
    while at < end:
        while at < end and (is_blank(at[0]) or at[0] == b"\n"):
            at += 1
        if at == end:
            break
        at = read_row(at, row)
        if at == NULL or at > end:
            return -1
        memcpy(boxes + 4 * count, row, 4 * sizeof(double))
        scores[count] = row[4]
        labels[count] = <int64_t> row[5]
        count += 1
    return count


def parse_texts(list texts):
    """Parses whole files, one after the other.

    Args:
        texts: content of each file, bytes.

    Returns:
        boxes_xywh: float64[N, 4].
        scores: float64[N].
        labels: int64[N], 0 where a line has five columns.
        counts: int64[F], rows of each file; -1 for a file with a faulty line, which adds no rows.
        declared: int64[F], the count lines; -1 where there is none.
    """
    cdef int64_t capacity = 0, used = 0, index
    cdef bytes text
    for text in texts:
        capacity += text.count(b"\n") + 1
    boxes, scores, labels = np.empty((capacity, 4)), np.empty(capacity), np.empty(capacity, np.int64)
    counts = np.empty(len(texts), np.int64)
    declared = np.empty(len(texts), np.int64)
    cdef double[:, ::1] boxes_view = boxes
    cdef double[::1] scores_view = scores
    cdef int64_t[::1] labels_view = labels, counts_view = counts, declared_view = declared
    cdef const char* start
    cdef int64_t length
    for index in range(len(texts)):
        text = texts[index]
        start = text
        length = len(text)
        with nogil:
            counts_view[index] = read_text(
                start,
                start + length,
                &boxes_view[used, 0],
                &scores_view[used],
                &labels_view[used],
                &declared_view[index],
            )
            if counts_view[index] > 0:
                used += counts_view[index]
    return boxes[:used], scores[:used], labels[:used], counts, declared
