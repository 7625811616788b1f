"""A router and its base model as one model that generates like any other, with one chain for each row.

    model = RoutedModel.from_pretrained("runs/demo/router", budget=25)
    batch = model.tokenizer(prompts, return_tensors="pt", padding=True)
    model.generate(**batch, max_new_tokens=32)

The first layers run once over the prompts; the router reads their output and picks a chain for each row; rows of one
chain generate together in the library's own `generate`, whose prefill goes on from what has run (`replay.py`).
"""

from __future__ import annotations

import copy
import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.utils import GenerationMixin

from router.chain import Chain
from router.decision import Operation, Router
from router.engine.choices import ChoiceScorer, Question, ScoredChoices, question_of
from router.engine.copies import shallow_copy, unrouted
from router.engine.decoder import CACHE_ARGUMENTS, cache_argument
from router.engine.inputs import OF_GENERATE, ModelInputs, has_placeholders
from router.engine.load import padding_token
from router.engine.makeup import Makeup
from router.engine.replay import Prefix, PrefixRun
from router.heads.head import Decision
from router.routed.lossless import generate_lossless
from router.routed.options import (
    CHAIN_OF_CACHE,
    check_no_turn_before,
    check_one_chain,
    check_routable,
    given_cache,
    grouped,
    joined,
    mask_of,
    numbered,
    require_lossless,
    rows_of_option,
    usable_cache,
)
from router.routed.pretrained import Pretrained

CACHED_VIEWS = 64
"""Views kept for each routed model; the least recently used one goes first."""


@dataclass(eq=False)
class Reading:
    """What was read of a batch of prompts.

    Attributes:
        run: what the first layers computed; the router reads its `rows()`.
        inputs: what the model was given besides tokens.
        late: by row, for those that a router has read once more, what the layers up to there computed, and its place
            in it.
    """

    run: PrefixRun
    inputs: ModelInputs = field(default_factory=ModelInputs)
    late: dict[int, tuple[PrefixRun, int]] = field(default_factory=dict)

    def layers_of(self, row: int) -> int:
        """Return how many layers have run for a row."""
        return self.late.get(row, (self.run, row))[0].layers

    def select(self, rows: Sequence[int]) -> Reading:
        """Return the same of some rows."""
        late = {place: self.late[row] for place, row in enumerate(rows) if row in self.late}
        return Reading(self.run.select(rows), self.inputs.select(rows), late)

    @property
    def furthest(self) -> PrefixRun:
        """What the layers have computed of all rows, as far as one run went with all of them."""
        held = [self.late.get(row, (self.run, row)) for row in range(len(self.run.states))]
        runs = {id(run): run for run, _ in held}
        if len(runs) != 1:
            return self.run
        (run,) = runs.values()
        return run.select([place for _, place in held])


@dataclass(frozen=True)
class _View:
    """A chain's model, twice.

    Attributes:
        model: as the caller gets it.
        runner: what `generate_as` runs. It has no generation settings of its own: every call brings all of its own, so
            that threads with different ones do not meet in it.
    """

    model: PreTrainedModel
    runner: PreTrainedModel


class RoutedModel(Pretrained, GenerationMixin):  # type: ignore[misc]
    """A base model that a router picks the layers of, row by row; made by `from_pretrained` or `join`.

    An instance is of a class of its own that has the base model's class among its bases, and its name: whatever takes
    the base model takes it too. It shares all parameters with the base model, which is not changed. `forward` is the
    base model's; the router decides once for each prompt of a `generate`, or each question of a `score`.

    Attributes:
        router: the router.
        budget: mean depth wanted, layers; None: the router's own choice.
        guaranteed: take the certified operating point instead of a budget (`python -m train calibrate`).
        scope: run prompts unlike those of training at full depth, where the router has a scope.
        tokenizer: the base model's tokenizer; None where none was given.
        router_folder: where the router was read from; None where it was made here.
        plain_model: returns the base model.
    """

    budget: float | None
    guaranteed: bool
    scope: bool
    tokenizer: PreTrainedTokenizerBase | None
    plain_model: Callable[[], PreTrainedModel]
    _prefix: Prefix
    _made: Makeup | None
    _views: OrderedDict[Chain, _View]
    _lock: threading.Lock
    _make_scorer: Callable[[], ChoiceScorer]

    @classmethod
    def join(
        cls,
        model: PreTrainedModel,
        router: Router,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        budget: float | None = None,
        guaranteed: bool = False,
        scope: bool = True,
    ) -> RoutedModel:
        """Join a base model and its router, which are taken to fit each other.

        Args:
            model: the base model in evaluation mode.
            router: a router that was trained for it.
            tokenizer: its tokenizer; `score` needs it.
            budget: mean depth wanted, layers; None: the router's own choice.
            guaranteed: take the certified operating point.
            scope: run prompts unlike those of training at full depth, where the router has a scope.

        Raises:
            ValueError: where the model has another number of layers, the budget was not measured in training, or there
                is no guarantee, or none without the scope.
        """
        router.require(Operation(budget=budget, guaranteed=guaranteed, scope=scope))
        model = unrouted(model)
        made = shallow_copy(model)
        made.__class__ = _routed_class(type(model))
        routed = cast(RoutedModel, made)
        routed.router, routed.budget, routed.guaranteed, routed.scope = router, budget, guaranteed, scope
        routed.tokenizer, routed.router_folder = tokenizer, None
        routed._processor_source = routed._processor = None
        # A function and no attribute: torch would take a model in an attribute for a part of this one.
        routed.plain_model = lambda: model
        routed._lock = threading.Lock()
        routed._prepare()
        return routed

    def _prepare(self) -> None:
        """Make what runs the layers, of the base model as it is now.

        Raises:
            ValueError: where the model has another number of layers than the router was made for.
        """
        model, config = self.plain_model(), self.router.config
        self._prefix = Prefix(model, config.read_layer, late=None if config.late is None else config.late.read_layer)
        self._renew()
        if self._prefix.num_layers != config.num_layers:
            raise ValueError(
                f"model: expected {config.num_layers} layers, as the router has it, got {self._prefix.num_layers}"
            )

    def _follow(self) -> None:
        """Renew what was made of the base model where it was changed: an adapter, another attention, a hook."""
        self._prefix.follow()
        if self._prefix.made is not self._made:
            self._renew()

    def _renew(self) -> None:
        """Drop what was made of the base model as it was."""
        model, read_layers = self.plain_model(), self.router.config.read_layers
        with self._lock:
            self._made, self._views = self._prefix.made, OrderedDict()
            self._make_scorer = functools.cache(lambda: ChoiceScorer(model, read_layers))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle base model and router, which are joined anew: views and locks cannot be copied.

        A copy reads its own processor, without the hub token that this one was loaded with, which no file is to have.
        """
        names = ("budget", "guaranteed", "scope", "tokenizer", "router_folder", "generation_config")
        kept = {name: getattr(self, name) for name in names}
        if (source := self._processor_source) is not None:
            kept["_processor_source"] = {name: value for name, value in source.items() if name != "token"}
        return _joined, (self.plain_model(), self.router, kept)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the parameters, the base model's with them, as `to` and `half` do; views are made anew."""
        super()._apply(fn, recurse)
        self._prepare()
        return self

    def train(self, mode: bool = True) -> Self:
        """Set evaluation mode; there is no other.

        Raises:
            ValueError: where training mode is asked for.
        """
        if mode:
            raise ValueError(
                "train: expected a model that can be trained, got a routed one; train its base model and join them anew"
            )
        return super().train(False)  # type: ignore[no-any-return]

    def resize_token_embeddings(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse what would change one part of the base model and not the other."""
        raise ValueError(
            "resize_token_embeddings: expected a base model, got a routed one; resize the base model and join them anew"
        )

    def init_continuous_batching(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse continuous batching, also that of `generate_batch`: it runs one model for all rows.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "generate_batch: expected a model of one chain, such as view(chain), for continuous batching, got a routed "
            "one; its generate takes batches"
        )

    generate_batch = init_continuous_batching

    def route(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"] | None = None,
        **inputs: Any,
    ) -> list[Decision]:
        """Return the chain of each row's prompt, with its score, and whether it is in the router's scope.

        Args:
            input_ids: token ids, padded on the left where rows differ in length.
            attention_mask: 1 for tokens, 0 for padding; None: told from padding tokens, as in `generate`.
            inputs: what the model takes besides, such as `pixel_values`: all that its processor returns.

        Raises:
            ValueError: where the budget lies outside what was measured in training, or as in `read`.
        """
        return self.decide(self.read(input_ids, attention_mask, **inputs))

    def read(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        attention_mask: Int[Tensor, "rows tokens"] | None = None,
        **inputs: Any,
    ) -> Reading:
        """Run the layers that the router reads over a batch of prompts; arguments as in `route`.

        Raises:
            ValueError: where prompts are padded on the right, or several rows are given with an input of which it
                cannot be told what belongs to which row.
        """
        mask = mask_of(input_ids, self.generation_config) if attention_mask is None else attention_mask
        if mask.shape != input_ids.shape or input_ids.ndim != 2 or not input_ids.numel():
            raise ValueError(
                f"attention_mask: expected the shape of input_ids, [rows, tokens], with a token at least, got "
                f"{list(mask.shape)} for {list(input_ids.shape)}"
            )
        if not bool(mask[:, -1].all()):
            raise ValueError('attention_mask: expected padding on the left (padding_side="left"), got it on the right')
        given = ModelInputs.of(self.plain_model(), input_ids, inputs)
        self._follow()
        return Reading(self._prefix.run(input_ids, mask, given.values), given)

    def decide(self, reading: Reading, budgets: Sequence[float | None] | None = None) -> list[Decision]:
        """Return the chain of each row, with its score.

        A router that reads twice lets the rows that it has to read once more run on; the reading keeps what that gave.

        Args:
            reading: what was read of the rows.
            budgets: mean depth wanted for each row, layers; None: what this model is set to, for a row or for all.

        Raises:
            ValueError: where a budget lies outside what was measured in training, or there is another number of them
                than rows.
        """
        states = [row.cpu() for row in reading.run.rows()]
        wanted = [None] * len(states) if budgets is None else list(budgets)
        if len(wanted) != len(states):
            raise ValueError(f"budgets: expected {len(states)} entries, one a row, got {len(wanted)}")
        own = self.operation
        asked = [own if budget is None else Operation(budget=budget, scope=self.scope) for budget in wanted]
        return self.router.decide(states, asked, functools.partial(self._read_on, reading))

    def values(
        self, reading: Reading, rows: Sequence[int], chains: Sequence[Chain]
    ) -> tuple[Float[Tensor, "rows chains"], Float[Tensor, "rows chains"] | None]:
        """Return what the router thinks that each chain is worth for some rows of a reading (`Router.values`)."""
        states = reading.run.rows()
        read_on = functools.partial(self._read_on, reading)
        return self.router.values(
            [states[row].cpu() for row in rows],
            chains,
            lambda places: read_on([rows[place] for place in places]),
            scope=self.scope,
        )

    def _read_on(self, reading: Reading, rows: Sequence[int]) -> list[Float[Tensor, "_ d_model"]]:
        """Run rows of a reading on to the late read layer, and return their states there."""
        if new := [row for row in rows if row not in reading.late]:
            part = Reading(reading.run, reading.inputs).select(new)
            run = self._prefix.run_on(part.run, part.inputs.values)
            reading.late |= {row: (run, place) for place, row in enumerate(new)}
        found = (reading.late[row] for row in rows)
        return [run.states[place][run.mask[place].bool()].cpu() for run, place in found]

    @property
    def operation(self) -> Operation:
        """How much depth is spent on a row that does not say."""
        return Operation(budget=self.budget, guaranteed=self.guaranteed, scope=self.scope)

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        lossless: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Generate as the library's `generate` does, each row under the chain that the router picks for its prompt.

        Rows of different chains run one group after another. Their sequences are padded at the end to the longest, as
        the library pads rows that end early. A row ends after its first token where the router's chain was judged by
        that token alone (`Decision.one_token`): what it would say after it nobody knows. What belongs to a whole batch
        (a streamer, beams, a result as a dictionary, a caller's own logits processor) needs rows of one chain. Sampling
        draws group by group, and `max_time` is shared among the groups. A cache of an earlier turn is used where its
        chain is the present one.

        Args:
            inputs: token ids, `[rows, tokens]`, padded on the left; or `input_ids` by name.
            generation_config: settings; None: the model's own.
            lossless: let the router's chain draft and full depth check: the text is full depth's likeliest one.
            kwargs: what the library's `generate` takes.

        Returns:
            Token ids, prompts included, `[rows * sequences, tokens]`, or what the library returns for one group; of a
            lossless call `Lossless`, which says what the drafting was worth.

        Raises:
            ValueError: where there are no token ids, an option has no meaning for a routed model, rows of several
                chains were asked for what belongs to one, or a lossless call has several rows or is to sample.
        """
        began = time.monotonic()
        named = kwargs.pop("input_ids", None)
        if inputs is not None and named is not None:
            raise ValueError("generate: expected inputs or input_ids, got both")
        ids = inputs if named is None else named
        if not isinstance(ids, Tensor) or ids.ndim != 2 or kwargs.get("inputs_embeds") is not None:
            got = f"shape {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            got = got if kwargs.get("inputs_embeds") is None else "inputs_embeds"
            raise ValueError(f"generate: expected input_ids [rows, tokens], which the router reads, got {got}")
        settings, options = self._settings(generation_config, kwargs)
        check_routable(settings, options)
        mask = options.pop("attention_mask", None)
        given = {name: options.pop(name) for name in list(options) if name not in OF_GENERATE}
        if given or has_placeholders(self.plain_model(), ids):
            check_no_turn_before(given_cache(options))
        mask = mask_of(ids, settings) if mask is None else mask
        if lossless:
            require_lossless(settings, options, ids, given)
        reading = self.read(ids, mask, **given)
        if lossless:
            (one,) = self.decide(reading)
            options |= {"generation_config": settings, "attention_mask": mask}
            return generate_lossless(self.plain_model(), one.chain, ids, **options)
        groups = grouped([(one.chain, one.one_token) for one in self.decide(reading)])
        if len(groups) > 1:
            check_one_chain(settings, options, len(groups))
        parts = []
        limit, allowed = settings.max_time, options.pop("prefix_allowed_tokens_fn", None)
        for done, ((chain, one_token), rows) in enumerate(groups.items()):
            index = torch.tensor(rows, device=ids.device)
            own = {name: rows_of_option(value, index, len(ids)) for name, value in options.items()}
            if allowed is not None:
                own["prefix_allowed_tokens_fn"] = numbered(allowed, rows, settings)
            if limit is not None:
                settings.max_time = max(0.0, (limit - (time.monotonic() - began)) / (len(groups) - done))
            own |= {"generation_config": settings, "one_token": one_token}
            out = self.generate_as(chain, reading.select(rows), **own)
            if len(groups) == 1:
                return out
            parts.append((rows, out))
        return joined(parts, padding_token(settings.pad_token_id, settings.eos_token_id))

    def _settings(
        self, given: GenerationConfig | None, kwargs: Mapping[str, Any]
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """Return a call's settings, as the library puts them together, and its other options.

        Keywords go before a configuration that is given, and that before this model's own.
        """
        settings = GenerationConfig() if given is None else copy.deepcopy(given)
        settings.update(**self.generation_config.to_dict(), defaults_only=True, allow_custom_entries=True)
        options = settings.update(**kwargs)
        for name in ("pad_token_id", "eos_token_id"):
            if isinstance(value := getattr(settings, name), Tensor):
                setattr(settings, name, value.tolist())
        return settings, options

    def generate_as(self, chain: Chain, reading: Reading, *, one_token: bool = False, **options: Any) -> Any:
        """Generate under one chain for all rows of a reading.

        Args:
            chain: the chain.
            reading: what was read of the rows.
            one_token: end after the first new token, whatever lengths are asked for (`Decision.one_token`).
            options: what the library's `generate` takes.

        Raises:
            ValueError: where the chain does not begin with the layers that were read, or a cache is given that no
                routed model has filled.
        """
        settings, options = self._settings(options.pop("generation_config", None), options)
        if one_token:
            settings.max_new_tokens, settings.max_length = 1, None
            settings.min_new_tokens = settings.min_length = settings.forced_eos_token_id = None
        cache = given_cache(options)
        options = {name: value for name, value in options.items() if name not in CACHE_ARGUMENTS}
        if cache is not None:
            options[cache_argument(self)] = cache = usable_cache(cache, chain, reading.run.ids.shape[1])
        # Layers that are replayed compute no attention, and their states are not all kept.
        run_again = settings.output_hidden_states or settings.output_attentions
        runner = self._view(chain).runner
        with torch.no_grad(), nullcontext() if run_again else self._prefix.given(reading.furthest):
            out = runner.generate(
                input_ids=reading.run.ids,
                attention_mask=reading.run.mask,
                generation_config=settings,
                **reading.inputs.values,
                **options,
            )
        for held in (cache, getattr(out, "past_key_values", None)):
            if isinstance(held, Cache):
                setattr(held, CHAIN_OF_CACHE, chain)
        return out

    def continue_as(
        self,
        chain: Chain,
        ids: Int[Tensor, "rows tokens"],
        mask: Int[Tensor, "rows tokens"],
        cache: Cache,
        **options: Any,
    ) -> Any:
        """Generate on under a chain, from the cache that `generate_as` has filled.

        Args:
            chain: the chain.
            ids: all tokens so far, padded on the left.
            mask: 1 for tokens, 0 for padding.
            cache: keys and values of all tokens but each row's last.
            options: what the library's `generate` takes.
        """
        settings, options = self._settings(options.pop("generation_config", None), options)
        options[cache_argument(self)] = cache
        with torch.no_grad():
            return self._view(chain).runner.generate(
                input_ids=ids, attention_mask=mask, generation_config=settings, **options
            )

    def view(self, chain: Chain) -> PreTrainedModel:
        """Return a plain model that runs a chain, for all that a model does; the last views are kept.

        Raises:
            ValueError: where the chain does not begin with the layers that the router reads.
        """
        self._follow()
        return self._view(chain).model

    def _view(self, chain: Chain) -> _View:
        with self._lock:
            view = self._views.get(chain)
            if view is None:
                model = self._prefix.view(chain)
                runner = shallow_copy(model)
                runner.generation_config = GenerationConfig()
                view = self._views[chain] = _View(model, runner)
                if len(self._views) > CACHED_VIEWS:
                    self._views.popitem(last=False)
            self._views.move_to_end(chain)
            return view

    def score(self, prompt: str, choices: Sequence[str]) -> ScoredChoices:
        """Score choices after a prompt under the one chain that the router picks from prompt and choices.

        The tokenizer puts its first token (BOS) before the prompt. A text from a chat template has that already: give
        its tokens to `score_tokens`, as several prompts at once.

        Args:
            prompt: the prompt.
            choices: what may follow it, as text that begins where the prompt ends (mostly with a space).

        Returns:
            Chain and log-probabilities.

        Raises:
            ValueError: where there is no tokenizer, no choice, or a prompt or a choice without tokens.
        """
        if self.tokenizer is None:
            raise ValueError("score: expected a tokenizer (join(..., tokenizer=...)), got none")
        return self.score_tokens([question_of(self.tokenizer, prompt, choices)])[0]

    def score_tokens(self, questions: Sequence[Question], *, scored: bool = True) -> list[ScoredChoices]:
        """Do as `score` does, from token ids; `scored`: false to route only.

        Raises:
            ValueError: where a prompt or a choice is empty.
        """
        operation = self.operation
        with self._lock:
            scorer = self._make_scorer()
        decide = functools.partial(self.router.decide, operation=operation)
        return scorer.score(questions, lambda states, read_on: decide(states, read_on=read_on), scored=scored)


def _joined(model: PreTrainedModel, router: Router, kept: Mapping[str, Any]) -> RoutedModel:
    """Return a routed model from what `RoutedModel.__reduce__` kept of one."""
    routed = RoutedModel.join(model, router)
    for name, value in kept.items():
        setattr(routed, name, value)
    return routed


_classes: dict[type[Any], type[Any]] = {}


def _routed_class(base: type[Any]) -> type[Any]:
    """Return a class that routes, of the base model's own name: the library knows models by it."""
    if base not in _classes:
        _classes[base] = type(base.__name__, (RoutedModel, base), {"__module__": base.__module__})
    return _classes[base]
