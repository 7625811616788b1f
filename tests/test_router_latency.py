"""Latency: the line through depths, and what a latency factor means."""

import dataclasses

import pytest

from router.chain import Chain
from router.latency import LatencyProfile, Line, ladder, time_chains
from tests.tiny import NUM_LAYERS, tiny_model

PROFILE = LatencyProfile(
    num_layers=20, batch=1, prompt_tokens=64, prefill=Line(10.0, 2.0, 0.0), decode=Line(1.0, 0.5, 0.0), router=0.5
)


def test_a_line_goes_through_points_on_it() -> None:
    line = Line.through([4, 8, 12], [3.0, 5.0, 7.0])
    assert (line.fixed, line.layer) == (pytest.approx(1.0), pytest.approx(0.5))
    assert line.worst == pytest.approx(0, abs=1e-9)
    # 3, 5, 10: least squares by hand: slope 0.875, fixed -1; the line gives 2.5, 6, 9.5.
    line = Line.through([4, 8, 12], [3.0, 5.0, 10.0])
    assert (line.fixed, line.layer) == (pytest.approx(-1.0), pytest.approx(0.875))
    assert line.worst == pytest.approx(0.2)


def test_a_line_needs_two_depths() -> None:
    with pytest.raises(ValueError, match=r"depths: expected at least two different ones, got \[4\]"):
        Line.through([4, 4], [1.0, 2.0])


def test_seconds_add_up() -> None:
    # 10 + 0.5 + 5 * 1 outside the layers, 15 * (2 + 5 * 0.5) in them.
    assert PROFILE.seconds(15, 5, routed=True) == pytest.approx(15.5 + 67.5)
    assert PROFILE.seconds(20, 0, routed=False) == pytest.approx(50)
    assert PROFILE.factor(20) == pytest.approx(50.5 / 50)  # the router costs something at full depth too


@pytest.mark.parametrize("new_tokens", [0, 7])
@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.2])
def test_depth_for_inverts_factor(factor: float, new_tokens: int) -> None:
    assert PROFILE.factor(PROFILE.depth_for(factor, new_tokens), new_tokens) == pytest.approx(factor)


def test_what_no_depth_can_reach_is_refused() -> None:
    with pytest.raises(ValueError, match=r"latency_factor: expected more than 0\.210, which no layers at all take"):
        PROFILE.depth_for(0.2)
    for line in (Line(10.0, 0.0, 0.0), Line(0.0, 0.0, 0.0)):
        with pytest.raises(ValueError, match="expected time that grows with depth"):
            dataclasses.replace(PROFILE, prefill=line).depth_for(0.9)


def test_the_ladder_begins_at_full_depth_and_leaves_last_layers_out() -> None:
    assert [chain.layers for chain in ladder(30)] == [tuple(range(depth)) for depth in (30, 27, 20, 15)]
    assert ladder(2)[0].is_full


def test_chains_are_timed_in_turns_and_the_model_is_left_alone() -> None:
    model = tiny_model("llama")
    layers = list(model.model.layers)
    chains = [Chain.full(NUM_LAYERS), Chain((0, 1, 1, 3), NUM_LAYERS)]
    ticks: list[int] = []
    times = time_chains(
        model, chains, batch=2, prompt_tokens=6, new_tokens=3, rounds=4, progress=lambda: ticks.append(1)
    )
    assert set(times) == set(chains)
    for one in times.values():
        assert len(one.prefill) == len(one.decode) == 4
        assert min(*one.prefill, *one.decode) > 0
        assert one.peak_bytes is None
    assert len(ticks) == 8
    assert list(model.model.layers) == layers
    without = time_chains(model, chains[:1], batch=1, prompt_tokens=6, new_tokens=0, rounds=3)
    assert without[chains[0]].decode == (0.0, 0.0, 0.0)
