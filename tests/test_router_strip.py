"""Chains drawn as strips, by hand."""

from __future__ import annotations

import pytest

from router.chain import Chain
from router.strip import ASCII, BLOCKS, draw_strip, marks_for, ruler


@pytest.mark.parametrize(
    ("chain", "strip"),
    [
        ("0-9", "==########"),
        ("0-3,6-9", "==##..####"),
        ("0-3,5*3,9", "==##.3...#"),
        ("0,1,1,2", "=2#......."),
        ("0-2,5,3,4,6", "==###~#..."),
        ("0-4,3,4,5", "==#22#...."),
        ("9,0,1", "==.......~"),
    ],
)
def test_strips(chain: str, strip: str) -> None:
    assert draw_strip(Chain.parse(chain, 10), 2, ASCII) == strip


def test_more_than_nine_repeats_are_a_nine() -> None:
    assert draw_strip(Chain((0, *[1] * 12), 3), 1, ASCII) == "=9."


def test_marks_fit_the_output() -> None:
    assert marks_for("utf-8") == BLOCKS
    assert marks_for("ascii") == marks_for(None) == marks_for("no such encoding") == ASCII
    assert draw_strip(Chain.full(3), 1) == "▒██"
    assert BLOCKS.skipped in BLOCKS.legend()


def test_a_ruler_counts_in_fives() -> None:
    assert ruler(12) == "0    5    10"
