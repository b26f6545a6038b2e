"""Forms of a box, and offsets of boxes from priors."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.box_utils import cxcywh_to_xywh, decode, encode, xywh_to_cxcywh, xywh_to_xyxy, xyxy_to_xywh

VARIANCES = (0.1, 0.2)


CONVERSIONS = (xywh_to_xyxy, xyxy_to_xywh, xywh_to_cxcywh, cxcywh_to_xywh)


def test_conversions_of_no_box_and_by_hand():
    for convert in CONVERSIONS:
        assert convert(np.zeros((0, 4))).shape == (0, 4)
    boxes = np.array([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 1.0, 1.0]], order="F")
    xyxy, cxcywh = [[1, 2, 5, 10], [0, 0, 1, 1]], [[3, 6, 4, 8], [0.5, 0.5, 1, 1]]
    assert xywh_to_xyxy(boxes).tolist() == xyxy
    assert xyxy_to_xywh(np.float32(xyxy)).tolist() == boxes.tolist()
    assert xywh_to_cxcywh(boxes).tolist() == cxcywh
    assert cxcywh_to_xywh(np.array(cxcywh)).tolist() == boxes.tolist()
    assert xywh_to_xyxy(boxes[0]).tolist() == xyxy[0]
    for convert in CONVERSIONS:
        before = boxes.copy()
        converted = convert(boxes)
        assert converted.dtype == np.float64 and converted.flags.c_contiguous
        assert (boxes == before).all()


def test_no_boxes():
    assert decode(torch.zeros(0, 4), torch.zeros(0, 4), VARIANCES).shape == (0, 4)
    assert encode(torch.zeros(0, 4), torch.zeros(0, 4), VARIANCES).shape == (0, 4)


def test_by_hand():
    """A prior of 0.2 x 0.4 at (0.5, 0.5); the box is as wide, half as high and 0.02 further right."""
    prior = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    box = torch.tensor([[0.42, 0.4, 0.62, 0.6]])
    loc = torch.tensor([[0.02 / (0.1 * 0.2), 0.0, 0.0, torch.log(torch.tensor(0.5)).item() / 0.2]])
    assert torch.allclose(encode(box, prior, VARIANCES), loc, atol=1e-5)
    assert torch.allclose(decode(loc, prior, VARIANCES), box, atol=1e-6)


def test_no_offset_gives_the_prior_itself():
    prior = torch.tensor([[0.5, 0.25, 0.2, 0.1]])
    assert torch.allclose(decode(torch.zeros(1, 4), prior, VARIANCES), torch.tensor([[0.4, 0.2, 0.6, 0.3]]))


sides = st.floats(0.0625, 1, width=32)
boxes = st.tuples(st.floats(-0.5, 1, width=32), st.floats(-0.5, 1, width=32), sides, sides)


@given(st.lists(st.tuples(boxes, st.tuples(sides, sides, sides, sides)), min_size=1, max_size=20))
def test_decode_undoes_encode(pairs):
    box, prior = (torch.tensor(column) for column in zip(*pairs, strict=True))
    box = torch.cat([box[:, :2], box[:, :2] + box[:, 2:]], 1)
    assert torch.allclose(decode(encode(box, prior, VARIANCES), prior, VARIANCES), box, atol=1e-4)
