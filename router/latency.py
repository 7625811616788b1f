"""What depth costs in time on a device: chains timed side by side, and the line that turns a latency into a depth."""

from __future__ import annotations

import dataclasses
import inspect
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from transformers import PreTrainedModel

from router.chain import Chain
from router.decision import Operation, Router
from router.engine.copies import with_contiguous_head
from router.engine.decoder import cache_argument
from router.engine.view import chain_view
from router.files import read_json
from router.fingerprint import Fingerprints
from router.heads.head import pad_states
from router.validation import STORED, InputError, from_plain

WARM_UP = 2
"""Rounds run before any is timed."""


@dataclasses.dataclass(frozen=True)
class ChainTimes:
    """Times of one chain, an entry a round; rounds of different chains were run in turns, so entries pair.

    Attributes:
        prefill: seconds of the pass over the prompts.
        decode: seconds a further token, mean over the tokens of the round; 0 where none were asked for.
        peak_bytes: most memory allocated on the accelerator in any round; None on a CPU.
    """

    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    peak_bytes: int | None


@dataclass(frozen=True, config=STORED)
class Line:
    """Seconds as a line in depth, fitted by least squares to the medians of chains.

    Attributes:
        fixed: seconds outside the layers.
        layer: seconds a layer.
        worst: greatest relative error of the line on a chain that it was fitted to.
    """

    fixed: float
    layer: float
    worst: float

    @classmethod
    def through(cls, depths: Sequence[int], seconds: Sequence[float]) -> Line:
        """Fit it.

        Raises:
            ValueError: at fewer than two different depths.
        """
        if len(set(depths)) < 2:
            raise ValueError(f"depths: expected at least two different ones, got {sorted(set(depths))}")
        layer, fixed = (float(one) for one in np.polyfit(depths, seconds, 1))
        errors = [
            abs(fixed + layer * depth - value) / value for depth, value in zip(depths, seconds, strict=True) if value
        ]
        return cls(fixed, layer, max(errors, default=0.0))


@dataclass(frozen=True, config=STORED)
class LatencyProfile:
    """What a call of a router and its model costs on one device, for one size of batch and prompt.

    Attributes:
        num_layers: layers of the model.
        batch: rows of a call.
        prompt_tokens: tokens of each row's prompt.
        prefill: seconds of the pass over the prompts.
        decode: seconds of each further token.
        router: seconds of the router for the whole batch.
    """

    num_layers: int
    batch: int
    prompt_tokens: int
    prefill: Line
    decode: Line
    router: float

    def seconds(self, depth: float, new_tokens: int, *, routed: bool) -> float:
        """Return the seconds of a call of that mean depth (layers) which generates so many tokens."""
        outside = self.prefill.fixed + new_tokens * self.decode.fixed + (self.router if routed else 0.0)
        return outside + depth * (self.prefill.layer + new_tokens * self.decode.layer)

    def factor(self, depth: float, new_tokens: int = 0) -> float:
        """Return the latency of routed calls of that mean depth, in units of full depth without a router."""
        full = self.seconds(self.num_layers, new_tokens, routed=False)
        return self.seconds(depth, new_tokens, routed=True) / full

    def depth_for(self, factor: float, new_tokens: int = 0) -> float:
        """Return the mean depth, layers, at which routed calls take `factor` of the time at full depth.

        Calls of different depths mix, and time is linear in depth: so the mean depth decides the mean time.

        Raises:
            ValueError: where no depth above 0 is that fast.
        """
        full = self.seconds(self.num_layers, new_tokens, routed=False)
        least, one = (self.seconds(depth, new_tokens, routed=True) for depth in (0.0, 1.0))
        if one <= least or full <= 0:
            raise ValueError("latency: expected time that grows with depth, got a profile in which it does not")
        depth = (factor * full - least) / (one - least)
        if not depth > 0:
            raise ValueError(
                f"latency_factor: expected more than {least / full:.3f}, which no layers at all take, got {factor}"
            )
        return depth


def ladder(num_layers: int) -> list[Chain]:
    """Return the full chain and chains without the last tenth, third and half of the layers, for a `LatencyProfile`."""
    left = {max(1, round(share * num_layers)) for share in (1.0, 0.9, 2 / 3, 0.5)}
    return [Chain(tuple(range(depth)), num_layers) for depth in sorted(left, reverse=True)]


@torch.inference_mode()
def time_chains(
    model: PreTrainedModel,
    chains: Sequence[Chain],
    *,
    batch: int,
    prompt_tokens: int,
    new_tokens: int,
    rounds: int,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> dict[Chain, ChainTimes]:
    """Time chains' views: prefill of random prompts, then greedy decoding of exactly `new_tokens` tokens.

    Every round runs each chain once, in an order of its own, so that what slows the device down for a while slows
    all chains alike. On CUDA times are the device's own (events), elsewhere the wall clock's. The output embedding
    reads contiguous states (`with_contiguous_head`) under every chain and at full depth: without, the stock model's
    prefill of a batch is several times slower on a CPU.

    Args:
        model: the base model in evaluation mode.
        chains: the chains, each once.
        batch: rows of a call, all of one chain.
        prompt_tokens: tokens of each row's prompt.
        new_tokens: tokens generated after it, the same for every chain.
        rounds: timed rounds, after `WARM_UP` others.
        seed: draws prompts and orders.
        progress: called after every timed pass of a chain.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (batch, prompt_tokens), generator=generator).to(model.device)
    views = {chain: with_contiguous_head(chain_view(model, chain)) for chain in chains}
    times: dict[Chain, list[tuple[float, float, int | None]]] = {chain: [] for chain in chains}
    order = random.Random(seed)
    for number in range(WARM_UP + rounds):
        for chain in order.sample(list(views), len(views)):
            measured = _time_once(views[chain], ids, new_tokens)
            if number >= WARM_UP:
                times[chain].append(measured)
                progress()
    return {chain: _joined(rounds_of) for chain, rounds_of in times.items()}


def _joined(rounds: Sequence[tuple[float, float, int | None]]) -> ChainTimes:
    prefill, decode, peaks = zip(*rounds, strict=True)
    return ChainTimes(prefill, decode, max((one for one in peaks if one is not None), default=None))


@torch.inference_mode()
def time_router(router: Router, *, batch: int, prompt_tokens: int, rounds: int, seed: int = 0) -> tuple[float, ...]:
    """Time the router's head and its decision on states as the base model would give them; seconds a round.

    A second head is in it, whatever the first one decides of such states. The layers whose output is read are not: they
    run in every chain that may still be picked; nor is what it costs to run the rows of a second reading by themselves.
    """
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(prompt_tokens, router.config.d_model, generator=generator) for _ in range(batch)]
    dtype = getattr(torch, router.config.dtype)
    states = [state.to(dtype) for state in states]
    first, seconds = dataclasses.replace(router, late=None), []
    for number in range(WARM_UP + rounds):
        start = time.perf_counter()
        first.decide(states, Operation(scope=False))
        if router.late is not None:
            router.late.decode_at(router.late(*pad_states(states)), 0.0)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    return tuple(seconds)


def _time_once(view: PreTrainedModel, ids: torch.Tensor, new_tokens: int) -> tuple[float, float, int | None]:
    """Return seconds of prefill, seconds a further token, and the peak of allocated memory in bytes."""
    cuda = ids.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(ids.device)
    mask = torch.ones_like(ids)
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(view).forward).parameters else {}
    start = _now(cuda)
    output = view(input_ids=ids, attention_mask=mask, use_cache=True, **few)
    token = output.logits[:, -1:].argmax(-1)
    middle = _now(cuda)
    for _ in range(new_tokens):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        held = {cache_argument(view): output.past_key_values}
        output = view(input_ids=token, attention_mask=mask, use_cache=True, **held)
        token = output.logits[:, -1:].argmax(-1)
    end = _now(cuda)
    peak = torch.cuda.max_memory_allocated(ids.device) if cuda else None
    return _between(start, middle), _between(middle, end) / new_tokens if new_tokens else 0.0, peak


def _now(cuda: bool) -> Any:
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


SCHEMA = 1
"""Version of the format of `latency.json`."""
LATENCY_FILE = "latency.json"


def read_latency(path: Path) -> dict[str, Any] | None:
    """Read `latency.json`; None where it is not there.

    Raises:
        InputError: where it is corrupt or of another schema.
    """
    if not path.exists():
        return None
    value = read_json(path)
    if value.get("schema") != SCHEMA:
        raise InputError(f"{path}: expected schema {SCHEMA}, got {value.get('schema')!r}")
    return value


def budget_for(path: Path, factor: float, expected: Fingerprints, device: str, dtype: str) -> float:
    """Return the mean depth, layers, at which a routed call takes `factor` of the time at full depth.

    Raises:
        InputError: as `budgets_by` does, also where nothing is so fast.
    """
    return budgets_by(path, expected, device, dtype)(factor)


def budgets_by(path: Path, expected: Fingerprints, device: str, dtype: str) -> Callable[[float], float]:
    """Return what says the mean depth, layers, at which a routed call takes a factor of the time at full depth.

    It is the smallest batch's profile that counts, with as many generated tokens as were timed. The file is read once.

    Args:
        path: `latency.json`, measured on this device.
        expected: the model that is to run.
        device: type of the device that is to run it.
        dtype: its dtype.

    Raises:
        InputError: where the file is missing, corrupt, or of another model, device or dtype.
    """
    value = read_latency(path)
    if value is None:
        raise InputError(f"latency_profile: expected a file of python -m eval latency, got none at {path}")
    for name, wanted in (("model", expected.model), ("device", device.split(":")[0]), ("dtype", dtype)):
        if value.get(name) != wanted:
            raise InputError(f"latency_profile: expected {name} {wanted} in {path}, got {value.get(name)}")
    try:
        profiles = [from_plain(LatencyProfile, cell["profile"], f"{path}: profile") for cell in value["cells"]]
        profile = min(profiles, key=lambda one: one.batch)
        new_tokens = int(value["new_tokens"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a latency profile, got one without {error}") from error

    def budget(factor: float) -> float:
        try:
            return profile.depth_for(factor, new_tokens)
        except ValueError as error:
            raise InputError(str(error)) from error

    return budget
