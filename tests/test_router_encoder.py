"""The encoder: pooling of token states, against each sample alone, values by hand and the operations torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

from router.heads.head import StateEncoder, pad_states
from train.datamodule import Examples, collate

D = 12
POOLINGS = ["windows", "ends", "attention"]


def make_encoder(pooling: str, windows: int = 4) -> StateEncoder:
    torch.manual_seed(0)
    encoder = StateEncoder(D, hidden=6, pooling=pooling, windows=windows).eval()
    for parameter in encoder.parameters():
        parameter.data.normal_(0, 0.7)
    return encoder


def states(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [3 * torch.randn(length, D, generator=generator) + 1 for length in lengths]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_neither_padding_nor_batch_partners_matter(pooling: str) -> None:
    # Oracle: each sample alone; what stands in the padding is noise of great size.
    encoder, many = make_encoder(pooling), states(1, 3, 4, 5, 9, 30)
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
    encoder, many = make_encoder(pooling, windows=8), states(1, 3, 5, 9, 13, 40)
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
    encoder, many = make_encoder("windows", windows=5), states(3, 10)
    for one, features in zip(many, encoder(*pad_states(many)), strict=True):
        normal = functional.layer_norm(one, (D,))
        parts = normal.split(1) if len(one) == 3 else normal.split(2)
        wanted = torch.stack([functional.gelu(encoder.bottleneck(part.mean(0))) for part in parts]).mean(0)
        assert torch.allclose(features, wanted, atol=1e-5)


def test_attention_is_the_last_token_and_means_weighted_by_learned_scores() -> None:
    # Oracle: a loop over samples and weightings, with the formula written out.
    encoder, many = make_encoder("attention", windows=3), states(2, 7)
    for one, features in zip(many, encoder(*pad_states(many)), strict=True):
        normal = (one - one.mean(-1, keepdim=True)) / (one.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        parts = [normal[-1]]
        for vector in encoder.weigh.weight:
            weights = (normal @ vector).exp()
            parts.append((weights[:, None] * normal).sum(0) / weights.sum())
        wanted = functional.gelu(encoder.bottleneck(torch.cat(parts)))
        assert torch.allclose(features, wanted, atol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_operations_told_are_of_the_order_that_torch_counts(pooling: str) -> None:
    # Oracle: FlopCounterMode, which counts matrix products only; the rest is normalising (8 a value) and plain sums.
    tokens, width = 100, 64
    encoder = StateEncoder(width, hidden=32, pooling=pooling, windows=4).eval()
    with FlopCounterMode(display=False) as counter:
        encoder(torch.randn(1, tokens, width), torch.ones(1, tokens, dtype=torch.bool))
    counted, told = counter.get_total_flops(), encoder.forward_flops(tokens)
    assert counted <= told <= counted + (8 + 2) * tokens * width


def test_dropout_is_on_in_training_only() -> None:
    encoder, batch = make_encoder("ends"), pad_states(states(5, 9))
    encoder.dropout.p = 0.9
    assert torch.equal(encoder(*batch), encoder(*batch))
    encoder.train()
    assert (encoder(*batch) == 0).float().mean() > 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 0}, "hidden: expected at least 1, got 0"),
        ({"windows": 0}, "windows: expected at least 1, got 0"),
        ({"dropout": 1.0}, "dropout: expected at least 0 and below 1, got 1.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StateEncoder(D, **settings)
