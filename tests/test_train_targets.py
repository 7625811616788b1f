"""Targets from records, and the loss, against values by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from data.records import ChainResult, SearchRecord, pareto_front
from router.chain import Chain
from router.fingerprint import Fingerprints
from router.heads.layerwise import REPEAT, RUN, SKIP
from train.objectives import class_counts, effective_number_weights, focal_loss, layer_classes

N = 6
FULL = Chain.full(N)


def record(*results: tuple[Chain, bool, float], prefix: int = 2) -> SearchRecord:
    made = tuple(
        ChainResult(chain, (margin, 0.0), 0 if right else 1, right, margin) for chain, right, margin in results
    )
    prints = Fingerprints("m", "t", "p")
    return SearchRecord(
        "id", "arc_easy", "train", {}, "continuation", N, prefix, "float32", "gold", 0, 0, len(made), 1, 1, made,
        pareto_front(made), prints, "s",
    )  # fmt: skip


def test_the_shortest_right_chain_is_the_target_and_the_margin_breaks_ties() -> None:
    # Oracle: by hand.
    short, shorter, wrong = FULL.skip(3, 1), FULL.skip(2, 2), FULL.skip(2, 3)
    other = FULL.skip(4, 2)
    found = record((FULL, True, 0.1), (short, True, 9.0), (shorter, True, 0.2), (other, True, 0.5), (wrong, False, -1))
    assert layer_classes(found, 2) == (RUN, RUN, SKIP, SKIP)
    assert layer_classes(found, 2, "margin") == (RUN, SKIP, RUN, RUN)


def test_chains_that_counts_cannot_say_are_passed_over() -> None:
    # Oracle: by hand; a block repeat and a layer run three times are shorter in no order, a repeat is left.
    found = record(
        (FULL, False, -1.0), (FULL.repeat(2, 2, 1), True, 3.0), (FULL.repeat(3, 1, 2), True, 2.0),
        (FULL.repeat(5, 1, 1), True, 1.0),
    )  # fmt: skip
    assert layer_classes(found, 2) == (RUN, RUN, RUN, REPEAT)
    assert layer_classes(record((FULL, False, -1.0), (FULL.repeat(2, 2, 1), True, 3.0)), 2) is None
    assert layer_classes(record((FULL, False, -1.0)), 2) is None


def test_the_pareto_front_gives_depth_only_for_margin() -> None:
    # Oracle: by hand; at depth 4 and 5 each better margin costs depth, depth 6 has a worse one.
    found = record(
        (FULL, True, 0.3), (FULL.skip(2, 2), True, 0.2), (FULL.skip(2, 1), True, 0.4), (FULL.skip(4, 1), False, -1)
    )
    assert [found.results[i].chain.depth for i in found.pareto] == [4, 5]
    assert found.shortest is not None
    assert found.shortest.chain == FULL.skip(2, 2)


def test_class_counts() -> None:
    assert class_counts([(0, 1, 1), (2, 1, 0)], 3) == [2, 3, 1]


def test_weights_by_effective_number() -> None:
    # Oracle: equation 3 of arXiv 1901.05555 by hand, scaled to a mean of 1; beta 0 is uniform.
    beta, counts = 0.9, [1, 10, 0]
    raw = [(1 - beta) / (1 - beta**1), (1 - beta) / (1 - beta**10)]
    wanted = [2 * value / sum(raw) for value in raw]
    assert effective_number_weights(counts, beta).tolist() == pytest.approx([*wanted, 0.0])
    assert effective_number_weights([5, 1], 0.0).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="beta: expected at least 0 and below 1, got 1"):
        effective_number_weights([1], 1.0)


def test_focal_loss() -> None:
    # Oracle: equation 5 of arXiv 1708.02002 by hand; gamma 0 with equal weights is torch's cross-entropy.
    logits, targets = torch.tensor([[[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]]]), torch.tensor([[0, 2]])
    p = [math.exp(2) / (math.exp(2) + 1 + math.exp(-1)), 1 / 3]
    weights = torch.tensor([0.5, 1.0, 3.0])
    wanted = (-0.5 * (1 - p[0]) ** 2 * math.log(p[0]) - 3.0 * (1 - p[1]) ** 2 * math.log(p[1])) / 2
    assert focal_loss(logits, targets, weights, 2.0).item() == pytest.approx(wanted, rel=1e-5)
    plain = focal_loss(logits, targets, torch.ones(3), 0.0)
    assert torch.allclose(plain, torch.nn.functional.cross_entropy(logits.reshape(-1, 3), targets.reshape(-1)))


def test_a_chain_that_did_not_stand_its_verification_is_no_target() -> None:
    # Oracle: the shortest right chain without the mark; marks of the others change nothing.
    shortest, other = FULL.skip(2, 2), FULL.skip(2, 1)
    found = record((FULL, True, 0.3), (shortest, True, 0.2), (other, True, 0.4))

    def marked(chain: Chain, verified: bool) -> SearchRecord:
        results = [dataclasses.replace(r, verified=verified) if r.chain == chain else r for r in found.results]
        return dataclasses.replace(found, results=tuple(results))

    assert layer_classes(marked(shortest, True), 2) == layer_classes(found, 2)
    assert layer_classes(marked(shortest, False), 2) == layer_classes(record((FULL, True, 0.3), (other, True, 0.4)), 2)


def test_a_later_read_layer_passes_over_the_chains_that_edit_before_it() -> None:
    # Oracle: by hand; of the three right chains the shortest skips layer 2, which a router that reads layer 3 cannot.
    found = record(
        (FULL, True, 0.3), (FULL.skip(2, 3), True, 0.2), (FULL.skip(3, 1), True, 0.1), (FULL.skip(2, 1), True, 0.4)
    )
    assert layer_classes(found, 3) == (SKIP, RUN, RUN)
    assert layer_classes(found, 4) == (RUN, RUN)
