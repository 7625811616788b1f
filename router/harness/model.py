"""A routed model in lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness), as "cola-router".

    python -m router lm-eval --model cola-router --model_args router=runs/demo/router,budget=23.5 --tasks arc_easy

Each document gets one chain. The router reads the document's prompt and choices, as in training; then requests of one
chain run together in lm-eval's own class for `transformers` models, on the view of that chain. Prompts, tokens, batches
and scores are lm-eval's: where all documents run at full depth, so do the numbers equal those of `--model hf`.

Reading a text without a prompt before it (`loglikelihood_rolling`: perplexity) gives a router nothing to go by; such
requests run at full depth.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from lm_eval.api.registry import model_registry, register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from safetensors.torch import save
from tqdm import tqdm

from router.chain import Chain
from router.choices import Question
from router.command import InputError
from router.harness.arguments import HARNESS, ModelArguments, device_for
from router.harness.requests import ChainMemory, Depths, Request, documents, question_of_requests, reading_batches
from router.routed import RoutedModel
from router.routed.grouping import by_chain
from router.routed.settings import load_routed

NAME = "cola-router"
"""lm-eval's `--model`."""
_NOT_SO_HERE = ("`pretrained` model kwarg is not of type `str`", "Passed an already-initialized model")
"""Warnings of lm-eval's that arguments may be ignored and processes be told apart; here both are refused instead."""

Answer = TypeVar("Answer")


class RoutedLM(HFLM):  # type: ignore[misc]
    """A routed model as lm-eval's model: one chain for each document.

    Attributes:
        routed: the model.
    """

    routed: RoutedModel
    _model: Any

    def __init__(self, router: str | RoutedModel = "", **options: Any) -> None:
        """Load a router with its base model, or take a routed model as it is.

        Args:
            router: a router's folder, its hub id, or a routed model with its tokenizer.
            options: the other fields of `ModelArguments`; with a routed model only those in `HARNESS`.

        Raises:
            InputError: at an unknown option or a bad value, where the router or its base model cannot be loaded, or
                under a launcher of several processes.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(f"lm-eval: expected one process, got WORLD_SIZE={os.environ['WORLD_SIZE']}")
        if isinstance(router, RoutedModel):
            if loading := [name for name in options if name not in HARNESS]:
                raise InputError(f"{loading[0]}: expected a router by name to load with it, got a loaded model")
            arguments = ModelArguments.parse({"router": str(router.router_folder or NAME), **options})
            self.routed = router
        else:
            options["device"] = device_for(options.get("device"))
            arguments = ModelArguments.parse({"router": router, **options})
            self.routed = load_routed(arguments)
        self._prepare(arguments)

    def _prepare(self, arguments: ModelArguments) -> None:
        config = self.routed.router.config
        if self.routed.tokenizer is None:
            raise InputError("router: expected a routed model with a tokenizer, got none")
        tokenizer = copy.deepcopy(self.routed.tokenizer)  # lm-eval gives it a padding token where it has none
        if arguments.add_bos_token is not None:
            tokenizer.add_bos_token = arguments.add_bos_token
        full = self.routed.view(Chain.full(config.num_layers))
        with _without_warnings(_NOT_SO_HERE):
            super().__init__(
                full, backend="causal", tokenizer=tokenizer, **{name: getattr(arguments, name) for name in HARNESS}
            )
        # auto:N looks for a batch size N times within a set of requests; the set of one chain may be smaller than N.
        self.batch_schedule = 1
        self.pretrained = full.name_or_path
        same = arguments.base_model in (None, config.base_model)
        self.revision = arguments.base_revision or (config.revision if same else None) or "main"
        self._source = arguments.router
        self._depths = Depths(config.num_layers)
        self._asked: Sequence[Request] | None = None
        self._memory = ChainMemory()
        self._largest_batch: int | None = None

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> RoutedLM:
        """Make the model from lm-eval's command line; `--model_args` go before the command's options."""
        return cls(**{**(additional_config or {}), **arg_dict})

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take over lm-eval's cache of answers.

        Raises:
            InputError: where its answers come from another router or budget.
        """
        super().set_cache_hook(cache_hook)
        self._memory = ChainMemory(cache_hook.dbdict, self._settings())

    def _settings(self) -> str:
        """Return what an answer depends on besides the request."""
        router = self.routed.router
        digest = hashlib.sha256(save(router.head.state_dict()))
        digest.update(json.dumps([asdict(router.config), str(self.routed.dtype)], sort_keys=True, default=str).encode())
        guarantee = asdict(router.guarantee) if self.routed.guaranteed and router.guarantee else None
        return json.dumps({"router": digest.hexdigest(), "budget": self.routed.budget, "guarantee": guarantee})

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations, all of a document under one chain; see `question_of_requests` for what the router reads.

        Returns:
            For each request the continuation's log-probability (nats) and whether greedy decoding would emit it.
        """
        self._asked = requests
        try:
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        finally:
            self._asked = None
        return answers

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Score what `loglikelihood` has tokenised, chain by chain; windows of a rolling likelihood at full depth."""
        score = super()._loglikelihood_tokens
        if self._asked is None:
            scores: list[tuple[float, bool]] = score(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
            return scores
        chains = self._chains(self._asked, [(context, added) for _, context, added in requests])
        answers = self._by_chain(chains, lambda rows, quiet: score([requests[i] for i in rows], quiet), disable_tqdm)
        self._note("loglikelihood", self._asked, chains)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate after contexts, all of a document under one chain; the router reads the context."""
        generate = super().generate_until
        prompts = [(self._prompt(*request.args[:2]), ()) for request in requests]
        chains = self._chains(requests, prompts)
        texts = self._by_chain(chains, lambda rows, quiet: generate([requests[i] for i in rows], quiet), disable_tqdm)
        self._note("generate_until", requests, chains)
        return texts

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts at full depth: there is no prompt for the router to read.

        Returns:
            The log-probability (nats) of each text.
        """
        full = Chain.full(self.routed.router.config.num_layers)
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        self._note("loglikelihood_rolling (no prompt to read: full depth)", requests, [full] * len(requests))
        return scores

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes beside its results: of the base model, and under "cola_router" of the routing.

        Depth is the mean over documents that were run, in layers; answers from a cache were not.
        """
        info: dict[str, Any] = super().get_model_info()
        info["cola_router"] = {
            "router": self._source,
            "budget": self.routed.budget,
            "guaranteed": self.routed.guaranteed,
            **self._depths.to_json(),
        }
        return info

    def _note(self, kind: str, requests: Sequence[Request], chains: Sequence[Chain]) -> None:
        """Note the documents of one kind of request that have run, and say how deep."""
        if not requests:
            return
        print(f"{NAME}: {kind}: {self._depths.add(requests, chains)}", file=sys.stderr)

    def _prompt(self, context: str, settings: dict[str, Any]) -> Sequence[int]:
        """Return a context's tokens as lm-eval's class would give them to the model, alone."""
        ids, _ = self.tok_batch_encode([context], truncation=self.truncation)
        room = self.max_length - normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
        return ids[0].tolist()[-max(1, room) :] or [self.prefix_token_id]

    def _chains(self, requests: Sequence[Request], pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Chain]:
        """Return the chain of each request: the one that the router picks for its document.

        Args:
            requests: the requests.
            pairs: tokens of each one's context and continuation.
        """
        chains: dict[int, Chain] = {}
        new: list[list[int]] = []
        for places in documents(requests):
            known = self._memory.recall(requests[places[0]], self.routed.router.config.num_layers)
            if known is None:
                new.append(places)
            else:
                chains |= dict.fromkeys(places, known)
        questions = [self._question(requests, pairs, places) for places in new]
        with tqdm(total=len(new), desc="Routing documents", disable=not new) as progress:
            for batch in reading_batches(questions):
                scored = self.routed.score_tokens([questions[i] for i in batch], scored=False)
                for i, one in zip(batch, scored, strict=True):
                    chains |= dict.fromkeys(new[i], one.routed.chain)
                    self._memory.keep([requests[place] for place in new[i]], one.routed.chain)
                progress.update(len(batch))
        return [chains[i] for i in range(len(requests))]

    def _question(
        self,
        requests: Sequence[Request],
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        places: Sequence[int],
    ) -> Question:
        """Return what the router reads of the document whose requests are in those places."""
        once = list({id(requests[i]): i for i in places}.values())  # a repeat is the same request again
        # Without a context stands what measures how likely a choice is by itself: it tells the router nothing.
        asked = [i for i in once if requests[i].args[0]] or once
        return question_of_requests([pairs[i] for i in asked], self.max_length)

    def _by_chain(
        self, chains: Sequence[Chain], run: Callable[[list[int], bool], list[Answer]], disable_tqdm: bool
    ) -> list[Answer]:
        """Run requests chain by chain and order the answers; the deepest first: if memory ends, then at the start."""
        groups = sorted(by_chain(chains).items(), key=lambda group: -group[0].depth)
        own = len(groups) > 1  # one bar for all chains in place of one for each
        answers: dict[int, Answer] = {}
        with tqdm(total=len(chains), desc="Running requests by chain", disable=disable_tqdm or not own) as progress:
            for chain, places in groups:
                with self._under(chain):
                    answers |= zip(places, run(places, disable_tqdm or own), strict=True)
                progress.update(len(places))
        return [answers[i] for i in range(len(chains))]

    @contextmanager
    def _under(self, chain: Chain) -> Iterator[None]:
        """Let lm-eval's class run a chain's view in place of the full model."""
        kept, self._model = self._model, self.routed.view(chain)
        try:
            yield
        finally:
            self._model = kept

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        """Find the batch that memory holds (`batch_size=auto`); for rows of full length once, not for every chain."""
        if requests is not None or self._largest_batch is None:
            found = int(super()._detect_batch_size(requests, pos))
            if requests is not None:
                return found
            self._largest_batch = found
        return self._largest_batch


def register() -> None:
    """Make `NAME` known to lm-eval in this process; once, however often it is called or the module imported anew.

    Releases of lm-eval that read entry points (group "lm_eval.models") know the name before.
    """
    if NAME not in model_registry:
        register_model(NAME)(RoutedLM)


@contextmanager
def _without_warnings(beginnings: tuple[str, ...]) -> Iterator[None]:
    """Keep lm-eval's class from logging warnings that begin so."""
    logger = logging.getLogger(HFLM.__module__)

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(beginnings)

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


register()
