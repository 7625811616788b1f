"""A model is tried before its first edited chain: once, and not where its state says otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from router.chain import Chain
from router.engine.choices import ChoiceScorer, Question
from router.engine.executor import ChainExecutor
from router.engine.replay import Prefix
from router.engine.view import chain_view
from router.heads.head import Decision
from tests.tiny import NUM_LAYERS, tiny_model

FULL = Chain.full(NUM_LAYERS)
EDITED = FULL.skip(1, 1)


class Counting(nn.Module):
    """A feed-forward part that counts its calls."""

    calls = 0

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        Counting.calls += 1
        return self.inner(hidden)


@pytest.fixture
def counted() -> PreTrainedModel:
    model = tiny_model("llama")
    model.model.layers[1].mlp = Counting(model.model.layers[1].mlp)
    Counting.calls = 0
    return model


def test_a_model_is_tried_once_whoever_asks_and_again_after_a_change(counted: PreTrainedModel) -> None:
    # Oracle: calls of a layer that the asked chains leave out.
    chain_view(counted, FULL)
    assert Counting.calls == 0
    chain_view(counted, EDITED)
    tried = Counting.calls
    assert tried > 0
    chain_view(counted, FULL.skip(1, 2))
    assert Counting.calls == tried
    counted.model.layers[0].mlp = Counting(counted.model.layers[0].mlp)
    chain_view(counted, EDITED)
    assert Counting.calls > tried


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_the_trials_to_judge(value: float) -> None:
    model = tiny_model("llama")
    model.model.layers[2].mlp.up_proj.weight.data.fill_(value)
    assert not bool(torch.isfinite(chain_view(model, EDITED)(torch.tensor([[5, 6, 7]])).logits).all())
    with pytest.raises(ValueError, match="expected numbers as log-probabilities, got nan under chain 0,2-4"):
        ChoiceScorer(model, [1]).score([Question((5, 6), ((7,), (8,)))], lambda *_: [Decision(EDITED, 0.0)])


def remember(model: PreTrainedModel) -> None:
    """Let a layer add what it saw at its last call, as one that passes a state beside the hidden states would."""
    seen: list[torch.Tensor] = []
    layer = model.model.layers[1].mlp

    def add(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.mean())
        return output + (seen[-2] if len(seen) > 1 else 0)

    layer.register_forward_hook(add)


def read_the_place(model: PreTrainedModel) -> None:
    """Let attention ask for the number of its place, as families do that name layers in the configuration."""
    attention = type(model.model.layers[0].self_attn)

    class ByPlace(attention):  # type: ignore[valid-type, misc]
        def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> object:
            return super().forward(hidden_states * (1 + 0.1 * self.layer_idx), **kwargs)

    for layer in model.model.layers:
        layer.self_attn.__class__ = ByPlace


def fail_beyond_the_depth(model: PreTrainedModel) -> None:
    """Let attention look itself up in a list as long as the model."""
    attention = type(model.model.layers[0].self_attn)

    class Listed(attention):  # type: ignore[valid-type, misc]
        def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> object:
            return super().forward(hidden_states * [1.0] * NUM_LAYERS[self.layer_idx], **kwargs)  # type: ignore[index]

    for layer in model.model.layers:
        layer.self_attn.__class__ = Listed


@pytest.mark.parametrize("fault", [remember, read_the_place, fail_beyond_the_depth])
def test_a_model_that_cannot_run_chains_is_refused_in_one_line_by_all(fault: object) -> None:
    model = tiny_model("llama")
    fault(model)  # type: ignore[operator]
    for make in (
        lambda: chain_view(model, EDITED),
        lambda: ChainExecutor(model),
        lambda: Prefix(model, 2),
    ):
        with pytest.raises(ValueError, match=r"^LlamaForCausalLM: expected a model whose layers run in any order") as e:
            make()
        assert "\n" not in str(e.value)
