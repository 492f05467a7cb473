"""The token-level view: pairs of before and after, colours, the worst tokens."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.reports.made_up import write_lines
from tutelage.reports.run_folder import read_run
from tutelage.reports.token_view import (
    MOST_ROWS,
    MOST_TOKENS,
    TokenView,
    heat,
    named,
    token_view,
    visible,
)


def row(when: str, kl: list[float], **more: Any) -> dict[str, Any]:
    tokens = [f" w{index}" for index in range(len(kl))]
    same = {"student_top": tokens, "teacher_top": tokens}
    chances = {name: [0.5] * len(kl) for name in ("student_label_p", "teacher_label_p")}
    return (
        {"row": 0, "when": when, "prompt": "p", "tokens": tokens, "forward_kl": kl}
        | same
        | chances
        | more
    )


def view_of(folder: Path, *rows: dict[str, Any]) -> TokenView:
    write_lines(folder / "metrics.jsonl", [])
    write_lines(folder / "tokens.jsonl", rows)
    return token_view(read_run(folder))


def test_before_and_after_of_the_same_tokens_become_one_row(tmp_path) -> None:
    view = view_of(tmp_path, row("before", [2.0, 0.0]), row("after", [1.0, 0.5]))
    (shown,) = view.rows
    assert view.whens == ["before", "after"]
    assert (shown.mean_before, shown.mean_after) == (1.0, 0.75)
    assert [token.worse for token in shown.tokens] == [False, True]
    assert shown.tokens[0].style == "--b:0.86;--a:0.63;--d:0.63"


def test_rows_of_other_tokens_are_not_mixed_up(tmp_path) -> None:
    view = view_of(tmp_path, row("before", [2.0]), row("after", [1.0, 0.5]))
    assert [(r.mean_before, r.mean_after) for r in view.rows] == [(2.0, None), (None, 0.75)]


def test_a_nan_has_no_colour_and_no_part_in_means(tmp_path) -> None:
    view = view_of(tmp_path, row("after", [math.nan, 1.0]))
    assert view.rows[0].tokens[0].style == ""
    assert view.rows[0].mean_after == 1.0
    assert "null" in view.rows[0].data
    assert [worst.forward_kl for worst in view.worst] == [1.0]


def test_the_worst_tokens_come_first_with_what_they_were_before(tmp_path) -> None:
    view = view_of(tmp_path, row("before", [5.0, 0.1, 0.2]), row("after", [0.3, 4.0, 0.2]))
    worst = view.worst[0]
    assert (worst.forward_kl, worst.before, worst.token) == (4.0, 0.1, " w1")
    assert (worst.left, worst.right) == ("w0", " w2")
    assert view.worst[1].left == "p"


def test_the_share_of_the_worst_twentieth_is_a_share_of_all_nats(tmp_path) -> None:
    view = view_of(tmp_path, row("after", [10.0] + [1.0] * 30 + [0.0] * 9))
    assert view.worst_share == pytest.approx(11 / 40)
    assert view_of(tmp_path, row("after", [1.0])).worst_share is None


def test_what_does_not_fit_is_counted(tmp_path) -> None:
    long = row("after", [0.1] * (MOST_TOKENS + 7))
    more = [row("after", [0.1], row=number) for number in range(1, MOST_ROWS + 3)]
    view = view_of(tmp_path, long, *more)
    assert len(view.rows) == MOST_ROWS
    assert view.num_hidden_rows == 3
    assert view.rows[0].num_hidden == 7
    assert len(view.rows[0].tokens) == MOST_TOKENS


def test_an_empty_view_is_empty(tmp_path) -> None:
    view = view_of(tmp_path)
    assert not view.rows
    assert not view.worst
    assert view.worst_share is None


@pytest.mark.parametrize(
    ("token", "shown", "alone"),
    [
        (" the", " the", "␣the"),
        ("\n\n", "↵\n↵\n", "↵↵"),
        ("\tx", "⇥\tx", "⇥x"),
        ("", "", "(empty)"),
        ("  ", "  ", "␣␣"),
    ],
)
def test_spaces_that_matter_can_be_seen(token: str, shown: str, alone: str) -> None:
    assert visible(token) == shown
    assert named(token) == alone


def test_colour_grows_with_divergence_from_nothing_to_full() -> None:
    assert heat(0.0) == heat(-1e-9) == heat(math.nan) == 0
    assert heat(0.5) < heat(1.0) < heat(5.0) < 1
