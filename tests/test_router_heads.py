"""Heads: the encoder against each sample alone and torch's counts, choices and budgets against brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

from router.chain import Chain
from router.heads.head import Head, StateEncoder, pad_states
from router.heads.layerwise import REPEAT, RUN, SKIP, LayerwiseHead
from router.heads.menu import AUXILIARY, MenuHead
from train.datamodule import Examples, collate

N, PREFIX, D = 6, 2, 12
POOLINGS = ["windows", "ends"]
MENU = ["0-5", "0-4", "0-3,5", "0-1,3-5", "0-3", "0-1,4-5", "0-1,5", "0-5,4-5", "0-1,2*2,3-5"]
DEPTHS = [6, 5, 5, 5, 4, 4, 3, 8, 7]


def make_encoder(pooling: str, windows: int = 4) -> StateEncoder:
    torch.manual_seed(0)
    encoder = StateEncoder(D, hidden=6, pooling=pooling, windows=windows).eval()
    for parameter in encoder.parameters():
        parameter.data.normal_(0, 0.7)
    return encoder


def states_of(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [3 * torch.randn(length, D, generator=generator) + 1 for length in lengths]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_neither_padding_nor_batch_partners_matter(pooling: str) -> None:
    # Oracle: each sample alone; what stands in the padding is noise of great size.
    encoder, many = make_encoder(pooling), states_of(1, 3, 4, 5, 9, 30)
    alone = torch.cat([encoder(*pad_states([one])) for one in many])
    padded, mask = pad_states(many)
    padded = torch.where(mask[..., None], padded, 1e3 * torch.randn(padded.shape))
    assert torch.allclose(encoder(padded, mask), alone, atol=1e-5)
    wider = functional.pad(padded, (0, 0, 0, 7), value=-50.0)
    assert torch.allclose(encoder(wider, functional.pad(mask, (0, 7))), alone, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)  # the states do matter


@pytest.mark.parametrize("pooling", POOLINGS)
def test_states_pooled_once_give_what_the_whole_encoder_gives(pooling: str) -> None:
    # Oracle: forward of the padded states; 1, 3 and 5 tokens fill some of 8 windows, not the first ones.
    encoder, many = make_encoder(pooling, windows=8), states_of(1, 3, 5, 9, 13, 40)
    wanted = encoder(*pad_states(many))
    assert torch.equal(encoder.narrow(*encoder.pool(*pad_states(many))), wanted)
    examples = Examples(many, [torch.tensor(i) for i in range(len(many))])
    examples.pool(encoder)
    pooled, filled, targets = collate([examples[i] for i in range(len(examples))])
    assert targets.tolist() == list(range(len(many)))
    assert torch.allclose(encoder.narrow(pooled, filled), wanted, atol=1e-5)
    encoder.narrow(pooled, filled).sum().backward()  # what was pooled can be trained on
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_ends_are_the_last_token_and_the_mean() -> None:
    # Oracle: by hand. Tokens of width 2 normalise to (-1, 1), three times, and (1, -1); the last comes first.
    encoder = StateEncoder(2, hidden=1, pooling="ends", dropout=0.0).eval()
    up, down = [0.0, 8.0], [5.0, 1.0]
    padded = pad_sequence([torch.tensor([up, up, up, down]), torch.tensor([down])], batch_first=True)
    mask = torch.tensor([[True] * 4, [True] + [False] * 3])
    pooled, filled = encoder.pool(padded, mask)
    assert filled.tolist() == [[True, True], [True, True]]
    wanted = torch.tensor([[[1.0, -1.0], [-0.5, 0.5]], [[1.0, -1.0], [1.0, -1.0]]])
    assert torch.allclose(pooled, wanted, atol=1e-4)
    encoder.bottleneck.weight.data = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    encoder.bottleneck.bias.data = torch.tensor([0.5])
    by_hand = torch.tensor([[1 - 10 - 50 + 500 + 0.5], [1 - 10 + 100 - 1000 + 0.5]])
    assert torch.allclose(encoder(padded, mask), functional.gelu(by_hand), rtol=1e-4)


def test_windows_go_through_the_bottleneck_one_by_one_and_empty_ones_do_not_count() -> None:
    # Oracle: the tokens cut by hand, in a loop; 3 tokens fill three of five windows.
    encoder, many = make_encoder("windows", windows=5), states_of(3, 10)
    for one, features in zip(many, encoder(*pad_states(many)), strict=True):
        normal = functional.layer_norm(one, (D,))
        parts = normal.split(1) if len(one) == 3 else normal.split(2)
        wanted = torch.stack([functional.gelu(encoder.bottleneck(part.mean(0))) for part in parts]).mean(0)
        assert torch.allclose(features, wanted, atol=1e-5)


def test_dropout_is_on_in_training_only() -> None:
    encoder, batch = make_encoder("ends"), pad_states(states_of(5, 9))
    encoder.dropout.p = 0.9
    assert torch.equal(encoder(*batch), encoder(*batch))
    encoder.train()
    assert (encoder(*batch) == 0).float().mean() > 0.5


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
        for row, one in zip(values, head.decode_at(output, head.offset_for(budget)), strict=True):
            worths = [value - price * depth for value, depth in zip(row, DEPTHS, strict=True)]
            best = worths.index(max(worths))
            assert one.chain == Chain.parse(MENU[best], N)
            assert one.score == pytest.approx(row[best], abs=1e-6)  # the value without the price


def test_a_budget_is_met_on_the_outputs_of_the_calibration() -> None:
    # Oracle: the decoded chains' own depths.
    head = make_head()
    output = head(*pad_states(states(60))).detach()
    head.calibrate(output)

    def mean_depth(budget: float | None) -> float:
        return sum(one.chain.depth for one in head.decode_at(output, head.offset_for(budget))) / len(output)

    points = head.budget_points
    assert points[0].mean_depth == pytest.approx(mean_depth(None))
    assert points[-1].mean_depth == 3.0  # the shallowest chain for all
    assert len(points) > 20
    for point in points:
        assert mean_depth(point.mean_depth) == pytest.approx(point.mean_depth)
    for above, below in itertools.pairwise(points):
        between = mean_depth((above.mean_depth + below.mean_depth) / 2)
        assert below.mean_depth - 1e-6 <= between <= above.mean_depth + 1e-6


def test_a_head_that_starts_from_rates_answers_with_them_whatever_it_reads() -> None:
    # Oracle: the rates; the best chain is the one of the greatest rate.
    head = make_head(agreement=0.0)
    rates = torch.linspace(0.05, 0.9, 2 * len(MENU)).reshape(len(MENU), 2)
    head.start_from(rates)
    output = head(*pad_states(states(5)))
    assert torch.allclose(head.outcome_logits(output).sigmoid(), rates.expand(5, -1, -1), atol=1e-6)
    assert torch.equal(output[:, -len(AUXILIARY) :], torch.zeros(5, len(AUXILIARY)))
    assert {str(one.chain) for one in head.decode_at(output, 0.0)} == {MENU[-1]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chains": []}, "chains: expected the full chain as the first, got another or none"),
        ({"chains": ["0-5", "0,2-5"]}, r"chains: expected chains that begin with layers 0\.\.1, got 0,2-5"),
        ({"chains": ["0-5", "0-6"]}, r"layers\[6\]: expected an integer in 0\.\.5, got 6"),
    ],
)
def test_menus_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MenuHead(N, PREFIX, D, **settings)


def make_layerwise() -> LayerwiseHead:
    torch.manual_seed(0)
    head = LayerwiseHead(N, PREFIX, D, hidden=8, windows=4).eval()
    head.classify.weight.data.normal_(0, 2)
    return head


def test_decoding_runs_each_layer_as_often_as_its_class_says() -> None:
    # Oracle: by hand; layers 2..5 get repeat, skip, run, run; the score is the sum of the log-probabilities.
    output = torch.full((1, 4, 3), -5.0)
    for layer, cls in enumerate((REPEAT, SKIP, RUN, RUN)):
        output[0, layer, cls] = 5.0
    (one,) = make_layerwise().decode_at(output, 0.0)
    assert one.chain == Chain((0, 1, 2, 2, 4, 5), 6)
    assert one.score == pytest.approx(output.log_softmax(-1).max(-1).values.sum().item(), abs=1e-6)


def test_the_budget_moves_the_mean_depth_from_the_prefix_upwards() -> None:
    # Oracle: the decoded chains' own depths at budgets between the calibrated extremes.
    head = make_layerwise()
    output = head(*pad_states(states(40)))
    head.calibrate(output)
    depths = [point.mean_depth for point in head.budget_points]
    assert depths == sorted(depths)
    assert depths[0] == 2
    for point in head.budget_points:
        chains = [one.chain for one in head.decode_at(output, head.offset_for(point.mean_depth))]
        assert sum(chain.depth for chain in chains) / len(chains) == pytest.approx(point.mean_depth, abs=0.11)


def test_a_head_for_no_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"read_layer: expected 1\.\.5, got 6"):
        LayerwiseHead(6, 6, 16)


@pytest.mark.parametrize("make", [make_layerwise, make_head])
def test_every_head_tells_its_own_operations(make: Callable[[], Head]) -> None:
    # Oracle: FlopCounterMode, which counts matrix products only; the rest is normalising (8 a value) and plain sums.
    head = make()
    with FlopCounterMode(display=False) as counter:
        head(torch.randn(1, 50, D), torch.ones(1, 50, dtype=torch.bool))
    assert counter.get_total_flops() <= head.forward_flops(50) <= counter.get_total_flops() + 10 * 50 * D
