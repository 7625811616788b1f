"""Operations of a forward pass, counted on the model."""

import pytest

from data.flops import ForwardFlops, count_forward
from router.chain import Chain
from router.validation import from_plain, to_plain
from tests.tiny import FAMILIES, NUM_LAYERS, tiny_model


def test_count_is_two_operations_a_weight_and_token_and_attention_grows_with_the_square() -> None:
    model = tiny_model("llama")
    flops = count_forward(model)
    for layer, (linear, square) in zip(model.model.layers, flops.layers, strict=True):
        weights = sum(parameter.numel() for parameter in layer.parameters() if parameter.ndim == 2)
        assert linear == 2 * weights
        config = model.config  # scores and their product with the values: two products of heads * head_dim
        assert square == 4 * config.num_attention_heads * config.head_dim
    assert flops.head == 2 * model.lm_head.weight.numel()


def test_a_chain_costs_its_layers_and_one_head() -> None:
    flops = ForwardFlops(((10.0, 1.0), (20.0, 2.0), (30.0, 0.0)), 7.0)
    assert flops.of(Chain((0, 1, 1), 3), 4) == (10 * 4 + 16) + 2 * (20 * 4 + 2 * 16) + 7
    assert from_plain(ForwardFlops, to_plain(flops), "flops") == flops


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_can_be_counted(family: str) -> None:
    flops = count_forward(tiny_model(family))
    assert len(flops.layers) == NUM_LAYERS
    assert all(linear > 0 for linear, _ in flops.layers)
    assert flops.head > 0
