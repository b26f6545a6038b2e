"""Reading ahead and writing behind."""

import threading
from itertools import count, islice

import pytest

from utils.threads import background_thread, iterate_ahead, iterate_latest, map_ahead


def test_nothing():
    assert list(map_ahead(abs, [])) == []
    assert list(iterate_ahead([])) == []
    with background_thread():
        pass


def test_order_is_kept():
    assert list(map_ahead(lambda x: -x, range(50), workers=3, ahead=5)) == [-x for x in range(50)]
    assert list(iterate_ahead(iter(range(50)), ahead=2)) == list(range(50))
    done = []
    with background_thread(2) as submit:
        for number in range(50):
            submit(done.append, number)
    assert done == list(range(50))


@pytest.mark.parametrize("ahead", [1, 4])
def test_no_more_than_asked_for_is_drawn_ahead(ahead):
    drawn = []
    items = (drawn.append(number) or number for number in count())
    stream = map_ahead(lambda x: x, items, ahead=ahead)
    assert list(islice(stream, 3)) == [0, 1, 2]
    assert len(drawn) <= 3 + ahead
    stream.close()


@pytest.mark.parametrize(
    "wrap", [lambda i: map_ahead(lambda x: 1 // x, i), lambda i: iterate_ahead(1 // x for x in i)]
)
def test_errors_come_where_the_item_would(wrap):
    stream = wrap(iter([1, 1, 0, 1]))
    assert [next(stream), next(stream)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_errors_of_late_writes_are_raised():
    with pytest.raises(ZeroDivisionError), background_thread() as submit:
        submit(lambda: 1 // 0)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    stream = iterate_ahead(count(), ahead=1)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_the_latest_is_taken_and_the_rest_left_out():
    """All five are drawn before the second is asked for, which is then the last."""
    drawn = threading.Event()

    def items():
        yield 0
        taken.wait(5)
        yield from (1, 2, 3, 4)
        drawn.set()

    taken = threading.Event()
    latest = iterate_latest(items())
    assert next(latest) == 0
    taken.set()
    assert drawn.wait(5)
    assert list(latest) == [4]


def test_the_latest_of_nothing_and_of_a_failure():
    def failing():
        yield 1
        raise ValueError("broken")

    assert list(iterate_latest([])) == []
    with pytest.raises(ValueError, match="broken"):
        list(iterate_latest(failing()))
