"""Parts of the HTML page: words and numbers, chains as strips, data for the script, figures inside the page."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from eval.arms import LABELS
from eval.figures import style_of
from eval.page import facts, inline_svg, marker_svg, points, points_interval, script_json, sentences, share, strip
from router.chain import Chain
from tests.seen import EVIL, Page, Seen, seen  # noqa: F401  (fixture)


@pytest.mark.parametrize(
    ("difference", "interval", "words"),
    [
        (0.018, [-0.003, 0.041], "is 1.8 points ahead, which chance alone can explain"),
        (-0.018, [-0.041, 0.0], "is 1.8 points behind, which chance alone can explain"),
        (0.05, [0.03, 0.07], "is better by 5.0 points (95\N{NO-BREAK SPACE}% interval +3.0 to +7.0)"),
        (-0.05, [-0.07, -0.03], "is worse by 5.0 points"),
        (0.0, [0.0, 0.0], "is neither better nor worse"),
    ],
)
def test_words_for_a_difference_are_honest_about_its_interval(
    seen: Seen, difference: float, interval: list[float], words: str
) -> None:
    report = json.loads(json.dumps(seen[0]))
    router = next(arm for arm in report["arms"] if arm["name"] == "router")
    router["against_full"] |= {"difference": difference, "difference_interval": interval}
    assert words in sentences(report)[0]


def test_numbers_for_readers() -> None:
    assert (share(0.59583), share(None)) == ("59.6\N{NO-BREAK SPACE}%", "-")
    assert (points(-0.0004), points(-0.25), points(0.018)) == ("0.0", "\N{MINUS SIGN}25.0", "+1.8")
    assert points_interval([-0.003, 0.04]) == "\N{MINUS SIGN}0.3 to +4.0"
    assert facts({"a": {"b": 1, "c": None}, "d": "x", "e": [1, 2], "f": {}}) == [
        ("a.b", "1"),
        ("a.c", "none"),
        ("d", "x"),
        ("e", "[1, 2]"),
        ("f", "{}"),
    ]


@pytest.mark.parametrize(
    ("chain", "drawn"),
    [
        (Chain.full(6), "0-5"),
        (Chain((0, 1, 4), 6), "0-1 !2-3 4 !5"),
        (Chain((2, 3), 6), "!0-1 2-3 !4-5"),
        (Chain((0, 1, 1, 2, 3, 4, 5), 6), "0-1 +1 2-5"),
        (Chain((0, 1, 2, 1, 2, 3, 5), 6), "0-2 +1-2 3 !4 5"),
        (Chain((0, 1, 4, 2, 3, 5), 6), "0-1 ~4 2-3 5"),
        (Chain((0, 3, 2, 3, 5), 6), "0 !1 3 ~2 +3 !4 5"),
        (Chain((5,), 6), "!0-4 5"),
    ],
)
def test_a_chain_as_a_strip(chain: Chain, drawn: str) -> None:
    # By hand. Of 3 and 2 in 0,3,2,3,5 either could be the one out of its place: the later one is.
    assert strip(chain) == drawn


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1))))
def test_a_strip_shows_every_run_in_order_and_every_skipped_layer_once(chain: tuple[int, list[int]]) -> None:
    # Oracle: the chain itself.
    num_layers, layers = chain
    cells: list[tuple[str, int]] = []
    for item in strip(Chain(tuple(layers), num_layers)).split(" "):
        kind, first, last = re.fullmatch(r"([!+~]?)(\d+)(?:-(\d+))?", item).groups()  # type: ignore[union-attr]
        cells += [(kind, layer) for layer in range(int(first), int(last or first) + 1)]
    assert [layer for kind, layer in cells if kind != "!"] == layers
    assert sorted(layer for kind, layer in cells if kind == "!") == sorted(set(range(num_layers)) - set(layers))
    for i, (kind, layer) in enumerate(cells):
        assert (kind == "+") == (kind != "!" and layer in [other for one, other in cells[:i] if one != "!"])
    in_place = [layer for kind, layer in cells if kind in ("", "!")]
    assert in_place == sorted(in_place)


LEAVES = st.text() | st.none() | st.integers()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_for_scripts_is_the_same_value_without_dangerous_characters(value: Any) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)
    text.encode()


def test_a_figure_with_pixels_is_refused() -> None:
    figure = Figure()
    figure.subplots().imshow([[0, 1]])
    with pytest.raises(ValueError, match="expected shapes and text in picture, got pixels"):
        inline_svg(figure, "picture", "a", "b")


def test_texts_of_a_figure_are_escaped() -> None:
    figure = Figure()
    figure.subplots().set_title(EVIL[1])
    drawn = str(inline_svg(figure, "one", EVIL[0], EVIL[2]))
    page = Page(drawn)
    assert page.tags["script"] == 0
    assert EVIL[1] in page.texts["text"]
    assert page.texts["title"] == [EVIL[0]]


def test_each_arm_has_a_mark_of_its_own_shape() -> None:
    marks = [marker_svg(style_of(name)) for name in [*LABELS, "router@3"]]
    assert len({(mark["d"], mark["fill"] == "none") for mark in marks}) == len(marks)
    numbers = [float(x) for mark in marks for x in re.findall(r"-?\d+\.\d+", mark["d"])]
    assert max(map(abs, numbers)) < 8
