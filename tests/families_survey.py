"""The survey of families: every configuration of tests/families.py, under each attention, against what it should do.

python -m tests.families_survey [NAME ...]      # a line for each configuration and attention, then the counts

A configuration is right, refused (one line before anything ran), wrong (what differs and by how much) or crashes. Each
runs in a process of its own, with a limit of time, so that none ends the survey. What the stock model itself does
otherwise (with a cache, in a batch) is not held against a chain: it is told as a note.
"""

from __future__ import annotations

import inspect
import io
import multiprocessing
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.utils import logging

import router
from router.chain import Chain
from router.engine.capture import LayerCall, tensors_of
from router.engine.decoder import find_decoder
from router.engine.executor import ChainExecutor, Job
from router.engine.replay import Prefix
from router.engine.rows import pack_row, plain_row, separate_rows
from router.engine.view import chain_view
from router.routed.export import export_chain
from tests.families import ALL
from tests.tiny import held, tiny_model

SECONDS = 120
"""Limit of time for one configuration under one attention."""
ATOL = 5e-5
"""Largest difference of two logits that count as equal, in float32."""
MAY_REFUSE = ("export", "few layers")
"""Checks in which a refusal is as right as an answer, whatever the others say."""
CACHED, LEFT, RIGHT = "with a cache", "in a batch padded on the left", "in a batch padded on the right"
"""What a stock model may itself be wrong in: then chains are not held to it."""
ORDER = ("crash", "wrong", "refused", "right")
PROMPT = [(37 * i * i + 11 * i) % 190 + 5 for i in range(24)]
"""Tokens of the prompts; longer than every window, and long enough to be shared between rows."""
LENGTH = 11
"""Tokens of a prompt where nothing is shared."""


class DifferenceError(Exception):
    """Two ways to compute the same thing that do not agree."""


@dataclass
class Outcome:
    """What the survey saw of one configuration.

    Attributes:
        parts: for each check its outcome and, unless it is right, what was seen.
        notes: what the stock model does otherwise.
    """

    parts: dict[str, tuple[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        """The worst of its checks."""
        seen = {word for name, (word, _) in self.parts.items() if (name in MAY_REFUSE, word) != (True, "refused")}
        return next((word for word in ORDER if word in seen), "crash")

    def __str__(self) -> str:
        """Return what is not right, in one line."""
        by_text: dict[str, list[str]] = {}
        for name, (word, text) in self.parts.items():
            if word != "right":
                by_text.setdefault(f"{word}: {text}", []).append(name)
        told = [f"[{', '.join(names)}] {text}" for text, names in by_text.items()]
        return " | ".join([self.word, *told, *(f"note: {note}" for note in self.notes)])


class Survey:
    """The checks of one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take a model, which is not changed."""
        self.model = model
        self.outcome = Outcome()
        self.stock: dict[str, str] = {}

    def run(self) -> Outcome:
        """Run every check and return what was seen."""
        # A stock model that fails has no chains to compare.
        self.model(torch.tensor([PROMPT]))
        for what, check in (
            (CACHED, self._cache_of(self.model)),
            (LEFT, self._padding_of(self.model)),
            (RIGHT, self._batch),
        ):
            word, text = _judged(check)
            if word != "right":
                self.stock[what] = word
                verb = "differs" if word == "wrong" else "fails"
                self.outcome.notes.append(f"the stock model {verb} {what}: {text}")
        before = held(self.model)
        for name, (check, needs) in self._checks().items():
            if self.stock.get(needs, "right") not in ("right", "wrong"):
                continue  # what the stock model cannot do, no chain can
            word, text = _judged(check)
            if word != "wrong" or needs not in self.stock:
                self.outcome.parts[name] = word, text
        changed = held(self.model) != before
        self.outcome.parts["original"] = ("wrong", "the original changed") if changed else ("right", "")
        return self.outcome

    def _checks(self) -> dict[str, tuple[Callable[[], None], str]]:
        """Return each check with what the stock model must be right in for its answer to count."""
        return {
            "full view": (self.full_view, ""),
            "nasty view": (self.nasty_view, ""),
            "cache": (lambda: self._cache_of(chain_view(self.model, self.nasty()))(), CACHED),
            "few layers": (self.few_layers, CACHED),
            "padding": (lambda: self._padding_of(chain_view(self.model, self.nasty()))(), LEFT),
            "full executor": (self.full_executor, RIGHT),
            "executor": (self.executor, RIGHT),
            "packed": (self.packed, RIGHT),
            "replay": (self.replay, ""),
            "export": (self.export, ""),
        }

    def depth(self) -> int:
        """Return the number of layers."""
        return find_decoder(self.model).num_layers

    def nasty(self) -> Chain:
        """Return the chain n-1..0, then n-1, 0."""
        n = self.depth()
        return Chain((*reversed(range(n)), n - 1, 0), n)

    def full_view(self) -> None:
        """Oracle: the stock forward."""
        ids = torch.tensor([PROMPT[:LENGTH]])
        _same(_logits(chain_view(self.model, Chain.full(self.depth())), ids), _logits(self.model, ids))

    def full_executor(self) -> None:
        """Oracle: the stock forward, a row alone."""
        rows = [PROMPT[:LENGTH], PROMPT[3 : LENGTH - 2]]
        executor = ChainExecutor(self.model)
        block = executor.load([plain_row(row) for row in rows])
        full = Chain.full(self.depth())
        for row, logits in zip(rows, executor.logits(block, [Job(i, full) for i in range(2)]), strict=True):
            _same(logits, _logits(self.model, torch.tensor([row]))[0])

    def nasty_view(self) -> None:
        """Oracle: the layers called by hand, each with what the stock forward hands it; each is called once."""
        view, ids = chain_view(self.model, self.nasty()), torch.tensor([PROMPT[:LENGTH]])
        calls: list[int] = []
        layers = find_decoder(view).layers
        handles = [layer.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, layer in enumerate(layers)]
        try:
            got = _logits(view, ids)
        finally:
            for handle in handles:
                handle.remove()
        stock = recorded(self.model, ids)
        ran = [call[0] for call in stock]
        if ran != sorted(set(ran)):
            raise DifferenceError(f"the stock forward calls layers {ran}: chains mean nothing")
        # Layers that look at an image alone are left out where there is none, by the stock model too.
        wanted = [place for place, layer in enumerate(self.nasty().layers) if layer in ran]
        if calls != wanted:
            raise DifferenceError(f"calls of the view's layers: {calls}, expected {wanted}")
        if hands_on_more(self.model, ids, stock):
            self.outcome.notes.append("layers get more of each other than hidden states, so none are called by hand")
            return
        _same(got, by_hand(self.model, self.nasty(), ids, stock))

    def executor(self) -> None:
        """Oracle: the view, a row alone; rows of two lengths, tokens shared in front and not."""
        rows = [PROMPT, PROMPT[:18] + PROMPT[2:5], PROMPT[4:9]]
        executor = ChainExecutor(self.model)
        chains = [self.nasty(), Chain.full(self.depth()).skip(1, 1)]
        for share in (False, True):
            block = executor.load([plain_row(row) for row in rows], share=share)
            jobs = [Job(i, chain) for i in range(len(rows)) for chain in chains]
            for job, logits in zip(jobs, executor.logits(block, jobs), strict=True):
                _same(logits, _logits(chain_view(self.model, job.chain), torch.tensor([rows[job.row]]))[0])

    def packed(self) -> None:
        """Oracle: each continuation after its prompt in a row of its own."""
        executor = ChainExecutor(self.model)
        prompt, continuations = PROMPT[:9], [PROMPT[9:14], PROMPT[14:15], PROMPT[15:18]]
        if not executor.can_pack:
            return
        nasty = self.nasty()
        (packed,) = executor.target_logprobs(executor.load([pack_row(prompt, continuations)]), [Job(0, nasty)])
        block = executor.load(separate_rows(prompt, continuations))
        _same(packed, torch.cat(executor.target_logprobs(block, [Job(i, nasty) for i in range(3)])))

    def replay(self) -> None:
        """Oracle: the view of the same chain, which runs its first layers again; a row padded on the left."""
        prefix = self.first_prefix()
        chain = Chain((*range(prefix.layers), *self.nasty().layers), self.depth())
        ids, mask = _padded()
        view, run = prefix.view(chain), prefix.run(ids, mask)
        options = {"attention_mask": mask}
        with prefix.given(run):
            got = _generated(view, ids, **options)
        _same(got, _generated(chain_view(self.model, chain), ids, **options))

    def few_layers(self) -> None:
        """Oracle: the same generation without a cache; chains of one kind of layer, for hybrids, may be refused."""
        refused = None
        for layer in (0, 1):
            try:
                view = chain_view(self.model, Chain((layer, layer), self.depth()))
            except ValueError as error:
                refused = error
                continue
            self._cache_of(view)()
        if refused is not None:
            raise refused

    def export(self) -> None:
        """Oracle: the view; a chain that the family's configuration cannot say may be refused."""
        with TemporaryDirectory() as folder:
            path = export_chain(self.model, None, self.nasty(), Path(folder) / "chain")
            attention = self.model.config.get_text_config(decoder=True)._attn_implementation
            loaded = type(self.model).from_pretrained(path, attn_implementation=attention)
            ids = torch.tensor([PROMPT[:LENGTH]])
            _same(_logits(loaded, ids), _logits(chain_view(self.model, self.nasty()), ids))

    def first_prefix(self) -> Prefix:
        """Return the first two layers or, of a hybrid that needs an attention layer for its cache, so many more."""
        for layers in range(2, self.depth()):
            try:
                return Prefix(self.model, layers)
            except ValueError as error:
                if "attention layer" not in str(error):
                    raise
        return Prefix(self.model, self.depth())

    def _cache_of(self, model: PreTrainedModel) -> Callable[[], None]:
        """Oracle: the same generation without a cache."""

        def check() -> None:
            ids = torch.tensor([PROMPT[:LENGTH]])
            _same(_generated(model, ids, use_cache=True), _generated(model, ids, use_cache=False))

        return check

    @torch.no_grad()
    def _batch(self) -> None:
        """Oracle: each row alone; rows longer and shorter than what a configuration may treat as long."""
        rows = [PROMPT, PROMPT[:18] + PROMPT[2:5], PROMPT[4:9]]
        ids = torch.tensor([row + [0] * (1 + len(PROMPT) - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (1 + len(PROMPT) - len(row)) for row in rows])
        together = self.model(ids, attention_mask=mask, **_without_use_cache(self.model)).logits
        for i, row in enumerate(rows):
            _same(together[i, : len(row)], _logits(self.model, torch.tensor([row]))[0])

    def _padding_of(self, model: PreTrainedModel) -> Callable[[], None]:
        """Oracle: each row alone."""

        def check() -> None:
            ids, mask = _padded()
            together = _generated(model, ids, attention_mask=mask)
            for i, row in enumerate((ids[0], ids[1, 4:])):
                _same(together[i], _generated(model, row[None])[0])

        return check


def _padded() -> tuple[Tensor, Tensor]:
    ids = torch.tensor([PROMPT[:LENGTH], [0] * 4 + PROMPT[5 : LENGTH + 1]])
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return ids, mask


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    result: Tensor = model(ids, **_without_use_cache(model)).logits
    return result


def _without_use_cache(model: PreTrainedModel) -> dict[str, bool]:
    return {"use_cache": False} if "use_cache" in inspect.signature(type(model).forward).parameters else {}


def _generated(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    """Return the logits of each generated token, `[batch, tokens, vocabulary]`."""
    with torch.no_grad():
        made = model.generate(
            ids,
            do_sample=False,
            max_new_tokens=5,
            min_new_tokens=5,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    return torch.stack(made.logits, 1)


Calls = list[tuple[int, tuple[Any, ...], dict[str, Any]]]
"""The layers of one forward in the order in which they were called, each with its arguments."""


def recorded(model: PreTrainedModel, ids: Tensor) -> Calls:
    """Return the calls of a model's layers in its own forward."""
    seen: Calls = []
    handles = [
        layer.register_forward_pre_hook(lambda _, a, k, i=i: seen.append((i, a, dict(k))), with_kwargs=True)
        for i, layer in enumerate(find_decoder(model).layers)
    ]
    try:
        _logits(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def hands_on_more(model: PreTrainedModel, ids: Tensor, calls: Calls) -> bool:
    """Whether layers get more of each other than the hidden states: tensors that change when layer 0 does."""
    handle = find_decoder(model).layers[0].register_forward_hook(lambda _, __, output: _with_hidden(output, None))
    try:
        other = recorded(model, ids)
    finally:
        handle.remove()
    pairs = zip(calls[1:], other[1:], strict=True)
    return any(not _alike(_rest(one), _rest(two)) for one, two in pairs)


def _alike(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, two, strict=True))


def _rest(call: tuple[int, tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
    """Return the tensors among a layer's arguments besides the hidden states."""
    _, args, kwargs = call
    values = [*args[1:], *(value for key, value in kwargs.items() if args or key != "hidden_states")]
    return tensors_of(LayerCall(tuple(values), {}, hidden_keyword=False))


def _with_hidden(output: Any, hidden: Tensor | None) -> Any:
    """Return a layer's output with other hidden states, or with its own upside down."""
    if isinstance(output, Tensor):
        return output.flip(-1) if hidden is None else hidden
    first = output[0].flip(-1) if hidden is None else hidden
    parts = [first, *output[1:]]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def by_hand(model: PreTrainedModel, chain: Chain, ids: Tensor, calls: Calls) -> Tensor:
    """Return a chain's logits: layers called one by one with the arguments of the stock forward, then the stock's end.

    Args:
        model: the stock model.
        chain: the chain.
        ids: the tokens.
        calls: the stock forward's calls for them.
    """
    layers = find_decoder(model).layers
    hidden = calls[0][1][0] if calls[0][1] else calls[0][2]["hidden_states"]
    arguments = {layer: (_without_cache(args), _without_cache(kwargs)) for layer, args, kwargs in calls}
    with torch.no_grad():
        for i in (layer for layer in chain.layers if layer in arguments):
            args, kwargs = arguments[i]
            if args:
                output = layers[i](hidden, *args[1:], **kwargs)
            else:
                output = layers[i](**{**kwargs, "hidden_states": hidden})
            hidden = output[0] if isinstance(output, (tuple, list)) else output
    handle = layers[-1].register_forward_hook(lambda _, __, output: _with_hidden(output, hidden))
    try:
        return _logits(model, ids)
    finally:
        handle.remove()


def _without_cache(part: Any) -> Any:
    """Return arguments without the cache that some families make though none is asked for."""
    if isinstance(part, dict):
        return {key: None if isinstance(value, Cache) else value for key, value in part.items()}
    return tuple(None if isinstance(value, Cache) else value for value in part)


def _same(got: Tensor, wanted: Tensor) -> None:
    """Raise where two tensors differ, with their largest difference."""
    if got.shape != wanted.shape:
        raise DifferenceError(f"shapes {tuple(got.shape)} and {tuple(wanted.shape)}")
    gap = float((got - wanted).abs().nan_to_num(nan=float("inf")).max())
    if gap > ATOL * max(1.0, float(wanted.abs().max())):
        raise DifferenceError(f"off by {gap:.2g}")


def _judged(check: Callable[[], None]) -> tuple[str, str]:
    """Run a check; returns its outcome and what was seen."""
    try:
        check()
    except DifferenceError as error:
        return "wrong", str(error)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = Path(router.__file__).parent in Path(frames[-1].filename).parents
        if isinstance(error, ValueError) and ours and "\n" not in str(error):
            return "refused", str(error)
        return "crash", f"{_one_line(error)} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
    return "right", ""


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def examine(name: str, attention: str) -> Outcome:
    """Survey one configuration in this process; a model that cannot be made or run is a crash."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return Survey(tiny_model(name, attention)).run()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome({"stock": ("crash", f"{_one_line(error)} ({Path(frame.filename).name}:{frame.lineno})")})


def outcome_of(name: str, attention: str, seconds: float = SECONDS) -> Outcome:
    """Survey one configuration in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, name, attention))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return Outcome({"all": ("crash", f"not done after {seconds:.0f} s")})
        outcome: Outcome = receiver.recv()
        return outcome
    except EOFError:
        process.join()
        return Outcome({"all": ("crash", f"the process ended with {process.exitcode}")})
    finally:
        process.kill()
        process.join()


def _send(sender: Connection, name: str, attention: str) -> None:
    with redirect_stdout(io.StringIO()):  # some models print
        outcome = examine(name, attention)
    sender.send(outcome)


def main(names: list[str]) -> None:
    """Print a line for each configuration and attention, then how many came out how."""
    counts: Counter[str] = Counter()
    for name in names or ALL:
        for attention in ALL[name].attentions:
            outcome = outcome_of(name, attention)
            counts[outcome.word] += 1
            print(f"{name} {attention}: {outcome}", flush=True)
    print(", ".join(f"{counts[word]} {word}" for word in reversed(ORDER)))


if __name__ == "__main__":
    main(sys.argv[1:])
