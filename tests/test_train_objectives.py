"""What the heads are taught: targets from records, losses and measures, against values by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from data.records import ChainResult, SearchRecord, pareto_front
from router.chain import Chain
from router.heads.layerwise import REPEAT, RUN, SKIP
from router.heads.menu import MenuHead
from router.validation import InputError
from tests.menus import FULL, N, chain, record
from train.objectives import (
    LayerwiseObjective,
    LayerwiseSettings,
    MenuObjective,
    MenuSettings,
    class_counts,
    collapse,
    confidence_of,
    effective_number_weights,
    focal_loss,
    layer_classes,
    layer_frequencies,
)

PREFIX = 2


def menu_objective(**changes: Any) -> MenuObjective:
    return MenuObjective(MenuSettings(**({"agreement": 0.5, "auxiliary": 0.0} | changes)))


def test_a_menu_is_what_all_records_tried_and_keeps_the_prefix() -> None:
    # Oracle: by hand; "1-5" edits the prefix, "0-2" was not tried on b, "0,2-5" is allowed by a shorter prefix only.
    records = [
        record("a", {"0-5": True, "0-3": True, "1-5": True, "0-2": True, "0,2-5": True, "0-4": False}),
        record("b", {"0-5": True, "0-4": True, "1-5": True, "0-3": False, "0,2-5": True}),
    ]
    assert menu_objective().settings(records, 2) == {"chains": ["0-5", "0-3", "0-4"], "agreement": 0.5}
    assert menu_objective(agreement=0.0).settings(records, 1)["chains"] == ["0-5", "0-3", "0,2-5", "0-4"]
    with pytest.raises(InputError, match=r"expected a menu table .* layers 0\.\.4, got 1 chains"):
        menu_objective().settings([records[0]] * 2 + [record("c", {"0-5": True})], 5)


def test_a_menus_target_is_right_and_agrees_chain_by_chain() -> None:
    # Oracle: by hand; a wrong answer that full depth gives too agrees. Full depth's margin is 1 nat of scores (1, 0).
    objective = menu_objective()
    one = record("a", {"0-5": False, "0-4": True, "0-3": False})
    objective.settings([one], PREFIX)
    target = objective.target(one, PREFIX)
    assert target[:6].tolist() == [0, 1, 1, 0, 0, 1]
    p = math.e / (1 + math.e)
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert target[6:].tolist() == pytest.approx([0.25, entropy])
    with pytest.raises(InputError, match="expected every chain of the menu for every sample, got none of 0-3 for b"):
        objective.target(record("b", {"0-5": True, "0-4": True}), PREFIX)


def test_a_label_that_was_flipped_is_not_right() -> None:
    # Oracle: the definition; a second run said otherwise, whatever the first margin was.
    objective = menu_objective()
    one = record("a", {"0-5": True, "0-4": True})
    flipped = dataclasses.replace(one.results[1], verified=False, verified_by="continuation")
    one = dataclasses.replace(one, results=(one.results[0], flipped))
    objective.settings([one], PREFIX)
    assert objective.target(one, PREFIX)[2] == 0.0


def test_free_answers_agree_by_what_they_mean() -> None:
    # Oracle: by hand; right answers agree however they are written, wrong ones by text or number.
    def answers(*given: tuple[str, bool]) -> SearchRecord:
        made = [ChainResult.from_answer(chain(f"0-{5 - i}"), text, right) for i, (text, right) in enumerate(given)]
        blank = record("a", {"0-5": True})
        return dataclasses.replace(blank, mode="generate", results=tuple(made), pareto=pareto_front(made))

    objective = menu_objective()
    for given, agree in (((("1/2", True), ("0.5", True)), 1.0), ((("1/2", False), ("0.5", False)), 1.0),
                         ((("1/2", False), ("0.4", False)), 0.0), ((("1/2", True), ("0.5", False)), 0.0)):  # fmt: skip
        one = answers(*given)
        objective.settings([one], PREFIX)
        assert objective.target(one, PREFIX)[3] == agree


def test_the_confidence_of_a_free_answer_is_its_mean_log_probability() -> None:
    # Oracle: by hand, in units of 4 nats; an answer that was only generated has no scores.
    free = ChainResult(Chain.full(N), (-1.0, -3.0), "42", True, 0.5)
    assert confidence_of(free) == (-0.5, 0.0)
    assert confidence_of(ChainResult.from_answer(Chain.full(N), "42", True)) == (0.0, 0.0)
    sure = ChainResult(Chain.full(N), (0.0, -100.0, -200.0), 0, True, 100.0)
    assert confidence_of(sure) == pytest.approx((4.0, 0.0), abs=1e-6)  # the margin counts up to 4 units


def small_menu(objective: MenuObjective, records: list[SearchRecord]) -> tuple[MenuHead, torch.Tensor]:
    settings = objective.settings(records, PREFIX)
    head = MenuHead(N, PREFIX, 4, hidden=4, **settings).eval()
    return head, torch.stack([objective.target(one, PREFIX) for one in records])


def test_the_start_of_a_menu_head_is_the_rates_of_its_outcomes() -> None:
    # Oracle: (count + 1) / (samples + 2) by hand.
    objective = menu_objective()
    records = [record(f"s{i}", {"0-5": i < 3, "0-4": i < 1}) for i in range(4)]
    head, targets = small_menu(objective, records)
    objective.start(head, targets)
    rates = head.outcome_logits(head.predict.bias[None]).sigmoid()[0]
    assert torch.allclose(rates, torch.tensor([[4 / 6, 5 / 6], [2 / 6, 3 / 6]]))
    assert "full depth right on 0.750" in objective.describe(targets)
    assert "the best chain (0-5) on 0.750, some chain on 0.750" in objective.describe(targets)


def test_the_loss_of_a_menu_head_is_cross_entropy_and_the_weighted_squared_error() -> None:
    # Oracle: both sums written out in plain floats.
    records = [record("a", {"0-5": True, "0-4": False}), record("b", {"0-5": False, "0-4": False})]
    output = torch.tensor([[0.5, 1.0, -2.0, 0.3, 0.1, 0.2], [1.0, -1.0, 0.0, 2.0, -0.4, 0.9]])
    for weight in (0.0, 0.7):
        objective = menu_objective(auxiliary=weight)
        head, targets = small_menu(objective, records)
        cross = square = 0.0
        for row, wanted in zip(output.tolist(), targets.tolist(), strict=True):
            for logit, y in zip(row[:4], wanted[:4], strict=True):
                p = 1 / (1 + math.exp(-logit))
                cross -= (y * math.log(p) + (1 - y) * math.log(1 - p)) / 8
            square += sum((x - y) ** 2 for x, y in zip(row[4:], wanted[4:], strict=True)) / 4
        assert objective.loss(head, output, targets).item() == pytest.approx(cross + weight * square, rel=1e-5)


def test_the_measures_of_a_menu_head() -> None:
    # Oracle: by hand. Of "0-4" two are right: one of four pairs (right, wrong) is in the wrong order, one is a tie.
    objective = menu_objective(agreement=0.0)
    records = [record(f"s{i}", {"0-5": True, "0-4": i < 2}) for i in range(4)]
    head, targets = small_menu(objective, records)
    output = torch.zeros(4, 6)
    output[:, 0] = torch.tensor([0.0, 3.0, 3.0, 0.0])  # full depth's value against that of "0-4"
    output[:, 2] = torch.tensor([2.0, 1.0, 1.0, 1.5])
    measured = objective.measures(head, output, targets)
    assert measured["auc_correct"] == pytest.approx((2 + 0.5) / 4)
    assert (measured["accuracy"], measured["full_accuracy"]) == (0.75, 1.0)  # row 3 takes "0-4", which is wrong there
    assert collapse(head, output) == {"full_share": 0.5, "distinct_chains": 2.0, "mean_depth": 5.5}


def found_of(*results: tuple[Chain, bool, float]) -> SearchRecord:
    """A record with margins; a wrong chain answers 1, a right one 0."""
    made = tuple(
        ChainResult(chain, (margin, 0.0), 0 if right else 1, right, margin) for chain, right, margin in results
    )
    return dataclasses.replace(record("id", {"0-5": True}), results=made, pareto=pareto_front(made))


def test_the_shortest_right_chain_is_the_target_and_the_margin_breaks_ties() -> None:
    # Oracle: by hand.
    short, shorter, wrong = FULL.skip(3, 1), FULL.skip(2, 2), FULL.skip(2, 3)
    other = FULL.skip(4, 2)
    found = found_of(
        (FULL, True, 0.1), (short, True, 9.0), (shorter, True, 0.2), (other, True, 0.5), (wrong, False, -1)
    )
    assert layer_classes(found, 2) == (RUN, RUN, SKIP, SKIP)


def test_chains_that_counts_cannot_say_are_passed_over() -> None:
    # Oracle: by hand; a block repeat and a layer run three times are shorter in no order, a repeat is left.
    found = found_of(
        (FULL, False, -1.0), (FULL.repeat(2, 2, 1), True, 3.0), (FULL.repeat(3, 1, 2), True, 2.0),
        (FULL.repeat(5, 1, 1), True, 1.0),
    )  # fmt: skip
    assert layer_classes(found, 2) == (RUN, RUN, RUN, REPEAT)
    assert layer_classes(found_of((FULL, False, -1.0), (FULL.repeat(2, 2, 1), True, 3.0)), 2) is None
    assert layer_classes(found_of((FULL, False, -1.0), (FULL.repeat(1, 1, 1), True, 3.0)), 2) is None  # of the prefix
    assert layer_classes(found_of((FULL, False, -1.0)), 2) is None


def test_a_layerwise_head_starts_from_the_classes_frequencies() -> None:
    # Oracle: by hand: (count + 1) / (samples + 3) at each layer; shares of all.
    targets = torch.tensor([[0, 1, 1], [2, 1, 0]])
    assert class_counts(targets) == [2, 3, 1]
    assert torch.allclose(layer_frequencies(targets), torch.tensor([[2, 1, 2], [1, 3, 1], [2, 2, 1]]) / 5)
    said = LayerwiseObjective(LayerwiseSettings()).describe(targets)
    assert said == "training targets: skip 0.333, run 0.500, repeat 0.167"


def test_weights_by_effective_number() -> None:
    # Oracle: equation 3 of arXiv 1901.05555 by hand, scaled to a mean of 1; beta 0 is uniform.
    beta, counts = 0.9, [1, 10, 0]
    raw = [(1 - beta) / (1 - beta**1), (1 - beta) / (1 - beta**10)]
    wanted = [2 * value / sum(raw) for value in raw]
    assert effective_number_weights(counts, beta).tolist() == pytest.approx([*wanted, 0.0])
    assert effective_number_weights([5, 1], 0.0).tolist() == [1.0, 1.0]


def test_focal_loss() -> None:
    # Oracle: equation 5 of arXiv 1708.02002 by hand; gamma 0 with equal weights is torch's cross-entropy.
    logits, targets = torch.tensor([[[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]]]), torch.tensor([[0, 2]])
    p = [math.exp(2) / (math.exp(2) + 1 + math.exp(-1)), 1 / 3]
    weights = torch.tensor([0.5, 1.0, 3.0])
    wanted = (-0.5 * (1 - p[0]) ** 2 * math.log(p[0]) - 3.0 * (1 - p[1]) ** 2 * math.log(p[1])) / 2
    assert focal_loss(logits, targets, weights, 2.0).item() == pytest.approx(wanted, rel=1e-5)
    plain = focal_loss(logits, targets, torch.ones(3), 0.0)
    assert torch.allclose(plain, torch.nn.functional.cross_entropy(logits.reshape(-1, 3), targets.reshape(-1)))


def test_a_later_read_layer_passes_over_the_chains_that_edit_before_it() -> None:
    # Oracle: by hand; of the three right chains the shortest skips layer 2, which a router that reads layer 3 cannot.
    found = found_of(
        (FULL, True, 0.3), (FULL.skip(2, 3), True, 0.2), (FULL.skip(3, 1), True, 0.1), (FULL.skip(2, 1), True, 0.4)
    )
    assert layer_classes(found, 3) == (SKIP, RUN, RUN)
    assert layer_classes(found, 4) == (RUN, RUN)
