"""The menu head: its choice against brute force; and all three heads, saved and read back."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from router.chain import Chain
from router.fingerprint import Fingerprints
from router.heads.head import pad_states
from router.heads.menu import AUXILIARY, MenuHead
from router.storage import HEADS, Operation, Router, RouterConfig, load_router, save_router

N, PREFIX, D = 6, 2, 8
MENU = ["0-5", "0-4", "0-3,5", "0-1,3-5", "0-3", "0-1,4-5", "0-1,5", "0-5,4-5", "0-1,2*2,3-5"]
DEPTHS = [6, 5, 5, 5, 4, 4, 3, 8, 7]


def make_head(agreement: float = 0.3, chains: list[str] = MENU) -> MenuHead:
    torch.manual_seed(0)
    head = MenuHead(N, PREFIX, D, chains=chains, agreement=agreement, hidden=8).eval()
    head.predict.weight.data.normal_(0, 1.5)
    return head


def states(count: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2 + i % 5, D, generator=generator) for i in range(count)]


def values_of(output: torch.Tensor, agreement: float) -> list[list[float]]:
    """Each chain's value, from the written order of the outputs: right, agrees, right, agrees, ... and two more."""
    rows = []
    for row in output.tolist():
        chances = [1 / (1 + math.exp(-logit)) for logit in row[: -len(AUXILIARY)]]
        pairs = zip(chances[::2], chances[1::2], strict=True)
        rows.append([(1 - agreement) * right + agreement * agrees for right, agrees in pairs])
    return rows


@pytest.mark.parametrize("agreement", [0.0, 0.3, 1.0])
def test_the_choice_is_the_chain_of_greatest_priced_value(agreement: float) -> None:
    # Oracle: values by the formula in plain floats, and all chains looked at; prices are those of the points.
    head = make_head(agreement)
    output = head(*pad_states(states(40))).detach()
    values = values_of(output, agreement)
    head.calibrate(output)
    for price, budget in [(0.0, None), *((point.offset, point.mean_depth) for point in head.budget_points)]:
        for row, ranked in zip(values, head.decode_at(output, head.offset_for(budget)), strict=True):
            worths = [value - price * depth for value, depth in zip(row, DEPTHS, strict=True)]
            assert ranked[0].chain == Chain.parse(MENU[worths.index(max(worths))], N)
            # The whole menu, each chain once, ever less worth; the score is the value without the price.
            places = [MENU.index(str(one.chain)) for one in ranked]
            assert sorted(places) == list(range(len(MENU)))
            assert [one.score for one in ranked] == pytest.approx([row[i] for i in places], abs=1e-6)
            ordered = [worths[i] for i in places]
            assert ordered == pytest.approx(sorted(worths, reverse=True), abs=1e-6)


def test_a_budget_is_met_on_the_outputs_of_the_calibration() -> None:
    # Oracle: the decoded chains' own depths.
    head = make_head()
    output = head(*pad_states(states(60))).detach()
    head.calibrate(output)

    def mean_depth(budget: float | None) -> float:
        return sum(ranked[0].chain.depth for ranked in head.decode_at(output, head.offset_for(budget))) / len(output)

    points = head.budget_points
    assert points[0].mean_depth == pytest.approx(mean_depth(None))
    assert points[-1].mean_depth == 3.0  # the shallowest chain for all
    assert len(points) > 20
    for point in points:
        assert mean_depth(point.mean_depth) == pytest.approx(point.mean_depth)
    for above, below in itertools.pairwise(points):
        between = mean_depth((above.mean_depth + below.mean_depth) / 2)
        assert below.mean_depth - 1e-6 <= between <= above.mean_depth + 1e-6
    with pytest.raises(ValueError, match=r"budget: expected a mean depth in 3\.00"):
        head.offset_for(2.9)
    with pytest.raises(ValueError, match="expected a calibrated head"):
        make_head().offset_for(4.0)


def test_a_head_that_starts_from_rates_answers_with_them_whatever_it_reads() -> None:
    # Oracle: the rates; the best chain is the one of the greatest rate.
    head = make_head(agreement=0.0)
    rates = torch.linspace(0.05, 0.9, 2 * len(MENU)).reshape(len(MENU), 2)
    head.start_from(rates)
    output = head(*pad_states(states(5)))
    assert torch.allclose(head.outcome_logits(output).sigmoid(), rates.expand(5, -1, -1), atol=1e-6)
    assert torch.equal(output[:, -len(AUXILIARY) :], torch.zeros(5, len(AUXILIARY)))
    assert {str(ranked[0].chain) for ranked in head.decode_at(output, 0.0)} == {MENU[-1]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chains": []}, "chains: expected the full chain as the first, got another or none"),
        ({"chains": ["0-5", "0,2-5"]}, r"chains: expected chains that begin with layers 0\.\.1, got 0,2-5"),
        ({"chains": ["0-5", "0-6"]}, r"layers\[6\]: expected an integer in 0\.\.5, got 6"),
        ({"chains": MENU, "agreement": 1.5}, r"agreement: expected 0\.\.1, got 1\.5"),
    ],
)
def test_menus_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MenuHead(N, PREFIX, D, **settings)


OWN: dict[str, dict[str, Any]] = {
    "layerwise": {"pooling": "windows", "windows": 3},
    "menu": {"pooling": "ends", "chains": MENU, "agreement": 0.25},
}


def make_router(name: str) -> Router:
    torch.manual_seed(3)
    prints = Fingerprints("a" * 64, "b" * 64, "c" * 64)
    settings = {"hidden": 8, "dropout": 0.1, **OWN[name]}
    config = RouterConfig(name, settings, N, PREFIX, D, "arc_easy", "continuation", "m", None, "float32", prints)
    head = config.build().eval()
    for parameter in head.parameters():
        parameter.data.normal_(0, 1)
    head.calibrate(head(*pad_states(states(30))).detach())
    return Router(dataclasses.replace(config, budget_points=head.budget_points), head)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_routes_the_same_when_read_back(tmp_path: Path, name: str) -> None:
    # Oracle: the router before it was saved, without and with budgets.
    router = make_router(name)
    save_router(tmp_path, router)
    loaded = load_router(tmp_path)
    assert type(loaded.head) is HEADS[name]
    assert loaded.config == router.config
    deepest, shallowest = router.head.budget_points[0].mean_depth, router.head.budget_points[-1].mean_depth
    low, high = sorted((deepest, shallowest))
    fresh = states(25, seed=9)
    routes = {budget: router.decide(fresh, Operation(budget=budget)) for budget in (None, low, (low + high) / 2, high)}
    assert {budget: loaded.decide(fresh, Operation(budget=budget)) for budget in routes} == routes
    means = [sum(one.chain.depth for one in routes[budget]) for budget in (low, (low + high) / 2, high)]
    assert means[0] < means[1] < means[2]
    assert all(one.chain.unedited_prefix >= PREFIX for of_budget in routes.values() for one in of_budget)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_depends_on_its_own_row_alone(name: str) -> None:
    # Oracle: each sample alone.
    router, many = make_router(name), states(12, seed=4)
    alone = [router.decide([one])[0] for one in many]
    together = router.decide(many)
    assert [one.chain for one in together] == [one.chain for one in alone]
    assert [one.score for one in together] == pytest.approx([one.score for one in alone], abs=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_tells_its_own_operations(name: str) -> None:
    # Oracle: FlopCounterMode, which counts matrix products only; the rest is normalising and plain sums.
    head = make_router(name).head
    with FlopCounterMode(display=False) as counter:
        head(torch.randn(1, 50, D), torch.ones(1, 50, dtype=torch.bool))
    assert counter.get_total_flops() <= head.forward_flops(50) <= counter.get_total_flops() + 10 * 50 * D
