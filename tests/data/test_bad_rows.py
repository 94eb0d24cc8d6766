"""The account of bad rows: what stops, what is counted, and what is said of it."""

import re

import pytest

from denserl.data.bad_rows import BadRows, finish
from denserl.errors import UserError


def test_bad_rows_list_the_first_ten_and_count_all():
    bad_rows = BadRows("stop")
    bad_rows.check()
    for n in range(1, 13):
        bad_rows.add(f"f:{n}", "odd" if n % 2 else "even")
    with pytest.raises(UserError) as caught:
        bad_rows.check()
    message = str(caught.value)
    assert message.startswith("12 bad rows, the first 10:\n  f:1: odd\n  f:2: even\n")
    assert "f:10: even" in message and "f:11" not in message and re.search(r"[-`]+on_bad_row`? skip", message)
    assert bad_rows.summary() == "12 bad rows: 6 x odd, 6 x even"
    with pytest.raises(UserError, match="'stop' or 'skip'"):
        BadRows("ignore")


def test_the_first_places_of_each_reason_are_kept_across_parts():
    bad_rows, later = BadRows("skip"), BadRows("skip")
    for n in range(1, 12):
        (bad_rows if n < 4 else later).add(f"f:{n}", "odd" if n % 2 else "even")
    bad_rows.take(later)
    assert bad_rows.places == {"odd": ["f:1", "f:3", "f:5"], "even": ["f:2", "f:4", "f:6"]}


def test_what_was_dropped_is_logged_and_bad_rows_stop_before_that(caplog):
    bad_rows = BadRows("skip")
    finish(bad_rows, "a", 3)
    assert not caplog.records
    bad_rows.add("a:4", "odd")
    finish(bad_rows, "a", 3)
    assert caplog.messages == ["a: 3 rows kept, 1 bad rows: 1 x odd"]
    bad_rows.add("a:5", "even")
    with pytest.raises(UserError, match="^a: no usable row .2 bad rows: 1 x odd, 1 x even."):
        finish(bad_rows, "a", 0)
    with pytest.raises(UserError, match="^b: no usable row .it is empty."):
        finish(BadRows("stop"), "b", 0)
    stopping = BadRows("stop")
    stopping.add("a:4", "odd")
    with pytest.raises(UserError, match="^1 bad row:\n  a:4: odd\n  fix: correct them, or drop"):
        finish(stopping, "a", 3)


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize(("count", "said"), [(12, ", and so it is with all 12 rows"), (1, "")])
def test_a_mistake_of_all_rows_is_told_once_and_skipping_is_not_offered(policy, count, said):
    bad_rows = BadRows(policy)
    for n in range(1, count + 1):
        bad_rows.add(f"f:{n}", "no 'chosen'", "name it")
    with pytest.raises(UserError) as caught:
        finish(bad_rows, "f", 0)
    assert str(caught.value) == f"f:1: no 'chosen'{said}\n  fix: name it"


def test_all_rows_bad_for_several_reasons_are_listed_and_skipping_is_not_offered():
    bad_rows = BadRows("stop")
    bad_rows.add("f:1", "odd", "name it")
    bad_rows.add("f:2", "even")
    with pytest.raises(UserError) as caught:
        finish(bad_rows, "f", 0)
    assert str(caught.value) == "2 bad rows:\n  f:1: odd\n  f:2: even\n  fix: correct them; or name it"
    bad_rows = BadRows("stop")
    bad_rows.add("f:1", "odd")
    with pytest.raises(UserError, match="on_bad_row"):  # the others are left out, and fine
        finish(bad_rows, "f", 0, left_out=2)


def test_reasons_are_shortened_and_act_on_no_terminal():
    bad_rows = BadRows("skip")
    bad_rows.add("f:1", "x" * 1000)
    bad_rows.add("f:2", "\x1b[2J")
    for n in range(20):
        bad_rows.add(f"g:{n}", f"reason {n}")
    assert bad_rows.first[0] == ("f:1", "x" * 300 + "...") and "\x1b" not in bad_rows.first[1][1]
    assert bad_rows.total == 22 and bad_rows.summary().endswith(", and 12 other reasons")
