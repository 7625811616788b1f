"""Figures of a report: what is drawn is what stands in the report, for any arms, without labels in each other's way."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from eval.arms import LABELS
from eval.figures import (
    DRAWINGS,
    MOST_LEVELS,
    LayerRows,
    draw_accuracy,
    draw_difficulty,
    draw_flows,
    draw_layer_use,
    drawings_of,
    has_difficulty,
    spread,
    write_figures,
)
from eval.measures import LayerUse
from eval.report import Report
from tests.reports import unchecked, write_evaluation


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_evaluation(tmp_path_factory.mktemp("evaluation") / "out")


def with_arms(report: Report, names: list[str]) -> Report:
    """The report with these arms, all at nearly the same point: the hardest case for labels."""
    arms = tuple(
        unchecked(
            report.arm("router"),
            name=name,
            label=LABELS.get(name, f"router, budget {name[7:]} layers"),
            mean_depth=3 + 0.01 * i,
            accuracy=0.5 + 0.001 * (i % 3),
        )
        for i, name in enumerate(names)
    )
    return unchecked(report, arms=arms)


ALL_NAMES = [*LABELS, "router@2", "router@2.5", "router@3.5"]


def test_files_are_whole_and_the_same_for_the_same_content(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: PNG's signature and end chunk; SVG parses as XML and holds no pixels; one drawn again, byte by byte.
    files = write_figures(report, tmp_path)
    assert [path.name for path in files] == [
        f"{drawing.name}.{suffix}" for drawing in DRAWINGS for suffix in ("png", "svg")
    ]
    before = {path: path.read_bytes() for path in files}
    for path, content in before.items():
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            assert content[-8:-4] == b"IEND"
        else:
            root = ElementTree.fromstring(content)
            assert root.tag.endswith("svg")
            assert not [one for one in root.iter() if one.tag.endswith("image")]
            assert "n = 12" in content.decode()
    assert sorted(tmp_path.iterdir()) == sorted(files)
    monkeypatch.setattr("eval.figures.DRAWINGS", DRAWINGS[:1])
    for path in write_figures(report, tmp_path):
        assert path.read_bytes() == before[path]


def test_what_the_report_has_not_is_not_drawn(report: Report) -> None:
    bare = dataclasses.replace(report, groups=(), layer_use={})
    assert [one.name for one in drawings_of(bare)] == ["accuracy_by_depth", "flows"]


@pytest.mark.parametrize("narrow", [False, True])
def test_points_stand_at_depth_and_accuracy_with_their_intervals(report: Report, narrow: bool) -> None:
    # Oracle: the report's numbers.
    axes = draw_accuracy(report, narrow).axes[0]
    bars = {(round(x, 9), round(low, 9), round(high, 9)) for x, low, high in vertical_bars(axes)}
    for arm in report.arms:
        low, high = arm.accuracy_interval
        assert (round(arm.mean_depth, 9), round(low, 9), round(high, 9)) in bars
    assert len(bars) == len({(arm.mean_depth, arm.accuracy) for arm in report.arms})
    texts = "\n".join(one.get_text() for one in axes.texts)
    for arm in report.arms:
        assert f"{arm.accuracy:.3f} at depth {arm.mean_depth:.1f}" in texts


def test_a_line_joins_the_budgets_of_the_router_by_depth(report: Report) -> None:
    # Oracle: the router's arms, sorted by hand.
    arms = {arm.name: (arm.mean_depth, arm.accuracy) for arm in report.arms}
    lines = [np.column_stack(line.get_data()) for line in draw_accuracy(report).axes[0].lines]
    wanted = np.array(sorted([arms["router"], arms["router@2.5"]]))
    assert any(np.array_equal(line, wanted) for line in lines)
    alone = unchecked(report, arms=[arm for arm in report.arms if arm.name != "router@2.5"])
    lines = [np.column_stack(line.get_data()) for line in draw_accuracy(alone).axes[0].lines]
    assert not any(np.array_equal(line, wanted) for line in lines)


@pytest.mark.parametrize("narrow", [False, True])
def test_labels_collide_neither_with_each_other_nor_with_the_edge(report: Report, narrow: bool) -> None:
    # Oracle: the boxes that the renderer gives texts.
    drawn = draw_accuracy(with_arms(report, ALL_NAMES), narrow)
    boxes = text_boxes(drawn)
    assert len(boxes) == len(ALL_NAMES)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= drawn.bbox.x1
        assert box.y1 <= drawn.bbox.y1


@pytest.mark.parametrize("narrow", [False, True])
def test_the_heat_map_has_a_row_an_arm_and_a_cell_a_layer(report: Report, narrow: bool) -> None:
    # Oracle: the report's mean runs, in the order of its arms.
    axes = draw_layer_use(LayerRows.of(report), narrow).axes[0]
    (cells,) = (one for one in axes.collections if isinstance(one, QuadMesh))
    wanted = [report.layer_use[arm.name].mean_runs for arm in report.arms]
    np.testing.assert_allclose(cells.get_array(), wanted)
    assert cells.get_cmap().name.startswith("cividis")
    assert [label.get_text().split(":")[0].replace("\n", " ") for label in axes.get_yticklabels()] == [
        arm.label.split(":")[0] for arm in report.arms
    ]


def test_layers_that_all_chains_run_once_are_left_out_and_said_so(report: Report) -> None:
    # 20 layers of which the arms edit 18 only, the router reads 16's input: 0 to 13 are left out.
    rate = (*[0.0] * 18, 0.5, 0.0)
    use = LayerUse(12, tuple(1 - x for x in rate), rate, (0.0,) * 20, 4.0)
    drawn = draw_layer_use(LayerRows("deep", 20, [16], [(arm.name, arm.label, use) for arm in report.arms]))
    (cells,) = (one for one in drawn.axes[0].collections if isinstance(one, QuadMesh))
    assert cells.get_array().shape == (len(report.arms), 6)
    assert cells.get_coordinates()[0, 0, 0] == 13.5
    assert "layers 0 to 13 are left out" in drawn.get_suptitle()


def test_flows_are_shares_of_all_samples_and_the_diamond_their_difference(report: Report) -> None:
    # Oracle: counts of the report by the number of samples.
    axes = draw_flows(report).axes[0]
    arms = [(arm, arm.against_full) for arm in report.arms if arm.against_full is not None]
    assert "full" not in [arm.name for arm, _ in arms]
    widths = [bar.get_width() for bar in axes.patches]
    for (arm, pair), gained, lost in zip(arms, widths[::2], widths[1::2], strict=True):
        assert gained == pytest.approx(pair.wrong_to_right / arm.n)
        assert lost == pytest.approx(-pair.right_to_wrong / arm.n)
    diamonds = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    assert diamonds == pytest.approx([pair.difference for _, pair in arms])
    router = next(pair for arm, pair in arms if arm.name == "router")
    counts = [one.get_text() for one in axes.texts]
    assert f"+{router.wrong_to_right}" in counts
    assert f"\N{MINUS SIGN}{router.right_to_wrong}" in counts


def test_depth_and_accuracy_are_drawn_at_each_difficulty(report: Report) -> None:
    # Oracle: the report's groups.
    drawn = draw_difficulty(report)
    above, below = drawn.axes[:2]
    groups = [group for group in report.groups if group.kind == "difficulty"]
    assert [label.get_text() for label in below.get_xticklabels()] == [f"{g.value}\nn = {g.n}" for g in groups]
    for axes, measure in ((above, "accuracy"), (below, "mean_depth")):
        for name in ("full", "router", "oracle"):
            wanted = [next(getattr(arm, measure) for arm in g.arms if arm.name == name) for g in groups]
            assert any(list(line.get_ydata()) == wanted for line in axes.lines)


def test_a_difficulty_that_hardly_repeats_is_no_level(report: Report) -> None:
    first = next(group for group in report.groups if group.kind == "difficulty")
    assert has_difficulty(report)
    assert not has_difficulty(dataclasses.replace(report, groups=(first,)))
    many = tuple(dataclasses.replace(first, value=str(i)) for i in range(MOST_LEVELS + 1))
    assert has_difficulty(dataclasses.replace(report, groups=many[1:]))
    assert not has_difficulty(dataclasses.replace(report, groups=many))


def test_labels_are_moved_apart_within_bounds() -> None:
    # Oracle: the property: order kept, gaps kept, and labels that are far apart stay.
    for heights, gap in (([0.99, 0.98, 0.97, 0.5, 0.01, 1.0], 0.15), ([0.5, 0.52, 0.51, 0.9, 0.5], 0.1)):
        moved = spread(heights, gap, (0.0, 1.0))
        placed = sorted(moved)
        assert all(upper - lower > gap - 1e-4 for lower, upper in itertools.pairwise(placed))
        assert placed[0] >= gap / 2 - 1e-4
        assert placed[-1] <= 1 - gap / 2 + 1e-4
        order = range(len(heights))
        assert sorted(order, key=moved.__getitem__) == sorted(order, key=heights.__getitem__)
    assert spread([0.1, 0.9, 0.5], 0.1, (0.0, 2.0)) == pytest.approx([0.1, 0.9, 0.5])


def vertical_bars(axes: Axes) -> list[tuple[float, float, float]]:
    """Error bars as (x, low, high)."""
    segments = [one for lines in axes.collections if isinstance(lines, LineCollection) for one in lines.get_segments()]
    return [(float(one[0][0]), *sorted((float(one[0][1]), float(one[1][1])))) for one in segments if len(one) == 2]  # type: ignore[misc]  # fmt: skip


def text_boxes(drawn: Figure) -> list[Any]:
    """The boxes of the arms' labels, pixels."""
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    labels = [one for one in drawn.axes[0].texts if isinstance(one, Annotation) and "at depth" in one.get_text()]
    # The text alone: an arrow belongs to its annotation's box too.
    return [super(Annotation, one).get_window_extent(canvas.get_renderer()) for one in labels]
