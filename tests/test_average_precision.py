"""Average precision: hand-made cases, and the fast ways beside slow plain ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plain.evaluation import curve_area, image_curve
from utils.evaluation.average_precision import (
    WIDER_SCORES,
    full_curve,
    image_costs,
    normalised,
    wider_bins,
    wider_curve,
)


def curve(outcome, truths, scores=None):
    outcome = np.array(outcome, np.int8)
    scores = np.linspace(1, 0.1, len(outcome)) if scores is None else np.array(scores, float)
    return full_curve(scores, outcome, truths)


@pytest.mark.parametrize(
    ("outcome", "truths", "area", "coco"),
    [
        ([], 3, 0.0, 0.0),
        ([0, 0], 3, 0.0, 0.0),
        ([1, 1, 1], 3, 1.0, 1.0),
        ([-1, 1, -1, 1], 2, 1.0, 1.0),
        ([1, 0, 1], 2, 0.5 + 0.5 * 2 / 3, (51 + 50 * 2 / 3) / 101),  # recalls 0..0.50, then 0.51..1
        ([0, 1], 4, 0.25 * 0.5, 26 * 0.5 / 101),  # recalls 0..0.25
    ],
)
def test_by_hand(outcome, truths, area, coco):
    assert curve(outcome, truths).area == pytest.approx(area, abs=1e-15)
    assert curve(outcome, truths).coco == pytest.approx(coco, abs=1e-12)


def test_nothing_to_find():
    assert math.isnan(curve([0, 0], 0).area) and math.isnan(curve([], 0).coco)
    assert curve([0], 0).best_f1() == {"score": None, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_precision_and_recall_at_a_score():
    one = curve([1, 1, 0, 0], 3, [0.9, 0.8, 0.5, 0.4])
    assert one.at(0.5) == (2 / 3, 2 / 3)  # the score itself is in
    assert one.at(0.81) == (1, 1 / 3)
    precision, recall = one.at(0.95)
    assert np.isnan(precision) and recall == 0
    assert curve([], 0).at(0.5)[1] == 0


def test_best_f1():
    best = curve([1, 1, 0, 0], 3, [0.9, 0.8, 0.7, 0.6]).best_f1()
    assert best == {"score": 0.8, "precision": 1.0, "recall": 2 / 3, "f1": pytest.approx(0.8)}
    # A cut between equal scores cannot be made: both detections come, or none.
    assert curve([1, 0], 1, [0.5, 0.5]).best_f1()["precision"] == 0.5


def test_wider_scores_are_those_of_the_protocol():
    assert WIDER_SCORES.tolist() == [1 - (t + 1) / 1000 for t in range(1000)]


@given(st.lists(st.one_of(st.floats(-0.5, 1.5), st.sampled_from(WIDER_SCORES.tolist()))))
def test_bins(scores):
    plain = [next((t for t in range(1000) if score >= 1 - (t + 1) / 1000), 1000) for score in scores]
    assert wider_bins(np.array(scores, float)).tolist() == plain


@pytest.mark.parametrize(
    ("scores", "stretched"),
    # Scores above 1 are stretched from 1: the protocol starts its search for the least there.
    [([], []), ([0.25], [1]), ([0.5, 0.5], [1, 1]), ([0.5, 0.25], [1, 0]), ([3.0, 2.0], [1, 0.5])],
)
def test_normalised(scores, stretched):
    assert normalised(np.array(scores, float)).tolist() == stretched


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3), st.lists(st.tuples(st.floats(0, 1), st.sampled_from([-1, 0, 1])), max_size=6)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_image_costs_are_what_leaving_an_image_out_gains(images):
    images = [(truths, sorted(rows, reverse=True)) for truths, rows in images]

    def area(some):
        total = np.zeros((1000, 2))
        for _, rows in some:
            if rows:
                scores, outcome = np.array(rows).T
                proposals = np.where(outcome >= 0, 1, -1)
                total += image_curve(scores, proposals, np.cumsum(outcome == 1))
        return curve_area(total, max(sum(truths for truths, _ in some), 1))

    flat = np.array([row for _, rows in images for row in rows]).reshape(-1, 2)
    index = np.repeat(np.arange(len(images)), [len(rows) for _, rows in images])
    outcome, bins = flat[:, 1].astype(np.int8), wider_bins(flat[:, 0])
    truths = np.array([count for count, _ in images])
    whole = area(images)
    assert wider_curve(bins, outcome, truths.sum()).area == pytest.approx(whole, abs=1e-12)
    expected = [area(images[:i] + images[i + 1 :]) - whole for i in range(len(images))]
    assert image_costs(bins, outcome, index, truths) == pytest.approx(expected, abs=1e-12)
