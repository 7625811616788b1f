"""A trial of a model before its first edited chain: whether its layers can run in any order, once and again.

One nasty chain (all layers backwards, then the last and the first again) runs in three ways that share no code: the
view without a cache, the view with one, token by token, and the original layers called by hand. A model on which they
differ, or one of them fails, is refused. So how a family passes states, positions and caches between its layers is
found out on the model itself, never by its name.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from router.chain import Chain
from router.command import one_line
from router.engine.capture import Arguments, LayerCapture, probe_tokens
from router.engine.copies import make_view, require_model, with_contiguous_head
from router.engine.decoder import find_decoder
from router.engine.makeup import Makeup
from router.engine.sharing import REFUSALS
from router.validation import InputError

PROMPT = 6
"""Tokens of the trial's prompt."""
BOUNDS = {torch.float32: 5e-5, torch.float64: 5e-5}
"""Difference of two ways' logits that rounding explains, as a share of their spread, by the model's dtype (SmolLM2 in
float32: at most 4e-6)."""
COARSE = 0.1
"""The same for all other dtypes (SmolLM2 and Qwen2.5-Coder-1.5B in bfloat16: at most 0.013)."""
_known: weakref.WeakKeyDictionary[PreTrainedModel, tuple[Makeup, str | None]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def require_chains(model: PreTrainedModel, now: Makeup | None = None) -> None:
    """Refuse a model that cannot run edited chains; it is tried once, and again after it was changed.

    In training mode nothing is tried: dropout alone makes two runs differ.

    Args:
        model: a decoder-only model.
        now: what it is made of now, where that is known.

    Raises:
        InputError: what differs, or fails; or where it is no model of the library.
    """
    require_model(model)
    if model.training:
        return
    now = Makeup(model) if now is None else now
    with _lock:
        made, refusal = _known.get(model, (None, None))
        if made != now:
            refusal = _refusal(model)
            _known[model] = now.weakly(), refusal
    if refusal is not None:
        raise InputError(
            f"{type(model).__name__}: expected a model whose layers run in any order, got one where {refusal}"
        )


def nasty_chain(num_layers: int) -> Chain:
    """Return the trial's chain: every layer out of its place, the last and the first twice."""
    return Chain((*reversed(range(num_layers)), num_layers - 1, 0), num_layers)


def _refusal(model: PreTrainedModel) -> str | None:
    """Return what differs or fails in a trial; None: nothing."""
    try:
        with torch.inference_mode():
            return _difference(model)
    except torch.OutOfMemoryError:
        raise
    except (*REFUSALS, AssertionError) as error:
        return f"one out of its place fails ({type(error).__name__}: {one_line(error)[:160]})"


def _difference(model: PreTrainedModel) -> str | None:
    decoder, bound = find_decoder(model), bound_of(model)
    chain = nasty_chain(decoder.num_layers)
    capture = LayerCapture(model, decoder)
    tokens = probe_tokens(PROMPT, capture.vocabulary, capture.device)
    view = with_contiguous_head(make_view(model, chain))
    calls = Counter[int]()
    for position, layer in enumerate(find_decoder(view).layers):
        layer.register_forward_pre_hook(lambda *_, position=position: calls.update([position]))
    cached = None
    if view.can_generate():
        tokens, cached = _generated(view, tokens)
    calls.clear()
    whole = view(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, return_dict=True).logits[0]
    if not bool(torch.isfinite(whole).all()):
        return None  # weights that are not finite, or a dtype that is too narrow for such a chain: nothing can be told
    if [calls[position] for position in range(chain.depth)] != [1] * chain.depth:
        return "its forward does not call each layer of a chain once"
    by_hand = _by_hand(capture, chain, tokens)
    if (error := difference(whole, by_hand)) > bound:
        return f"a chain run as a model and its layers called one by one differ by {error:.2g} of the logits' spread"
    if cached is not None and (error := difference(cached, whole[-len(cached) :])) > bound:
        return f"a chain with and without a cache differs by {error:.2g} of the logits' spread"
    return None


def _generated(view: PreTrainedModel, tokens: Int[Tensor, "1 tokens"]) -> tuple[Tensor, Float[Tensor, "2 vocabulary"]]:
    """Return the prompt with the next token, and the logits at both of its ends, the second by way of the cache."""
    settings = GenerationConfig(
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
        pad_token_id=0,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    done = view.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=settings)
    return done.sequences[:, :-1], torch.cat(done.logits)


def _by_hand(
    capture: LayerCapture, chain: Chain, tokens: Int[Tensor, "1 tokens"]
) -> Float[Tensor, "tokens vocabulary"]:
    count = tokens.shape[1]
    padded = torch.nn.functional.pad(tokens, (0, 1))  # one column of padding, so that there is a mask
    positions = torch.arange(count + 1, device=tokens.device)[None] % count
    mask = torch.ones_like(padded)
    mask[:, -1] = 0
    captured = capture.capture(padded, positions, mask)
    arguments = Arguments(captured.calls, capture)
    hidden = captured.hidden[:, :count]
    for layer in chain.layers:
        hidden = capture.run_layer(layer, hidden, arguments.tokens(layer, (0,), 0, count))
    return capture.head(hidden[0])


def bound_of(model: PreTrainedModel) -> float:
    """Return the `difference` that rounding explains in a model of its dtype."""
    return BOUNDS.get(model.dtype, COARSE)


def difference(one: Float[Tensor, "tokens vocabulary"], other: Float[Tensor, "tokens vocabulary"]) -> float:
    """Return the mean difference of two ways' logits at a token, as a share of their spread."""
    one, other = one.float(), other.float()
    spread = (other - other.mean(dim=-1, keepdim=True)).norm(dim=-1).clamp_min(1e-12)
    return float(((one - other).norm(dim=-1) / spread).nan_to_num(nan=torch.inf).mean())
