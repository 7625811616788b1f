"""A routed model in lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness), as "cola-router".

    python -m router lm-eval --model cola-router --model_args router=runs/demo/router,budget=25 --tasks arc_easy

Each document gets one chain. The router reads the document's prompt and choices, as in training; then requests of one
chain run together in lm-eval's own class for `transformers` models, on the view of that chain. Prompts, tokens, batches
and scores are lm-eval's: where all documents run at full depth, so do the numbers equal those of `--model hf`.

Reading a text without a prompt before it (`loglikelihood_rolling`: perplexity) gives a router nothing to go by; such
requests run at full depth.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import model_registry, register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from pydantic import ValidationError

from router.chain import Chain
from router.command import one_line, program_words
from router.engine.choices import Question
from router.heads.head import Decision
from router.progress import progress
from router.routed.commands import OUT_OF_SCOPE, RoutedSettings, load_routed
from router.routed.model import RoutedModel
from router.routed.options import grouped
from router.validation import InputError, explain

NAME = "cola-router"
"""lm-eval's `--model`."""
_NOT_SO_HERE = ("`pretrained` model kwarg is not of type `str`", "Passed an already-initialized model")
"""Warnings of lm-eval's that arguments may be ignored and processes be told apart; here both are refused instead."""
PASSED_ON = (
    "batch_size",
    "max_batch_size",
    "max_length",
    "truncation",
    "logits_cache",
    "softmax_dtype",
    "mixed_precision_dtype",
    "add_bos_token",
    "prefix_token_id",
    "think_end_token",
    "enable_thinking",
    "chat_template_args",
)
"""Arguments that go on to lm-eval's own class, where they mean what they mean for `--model hf`.

Its others say how a model is loaded, which is done here."""
READ_TOKENS = 2**14
"""Tokens that are read in one go at most (a longer document is read alone); bounds the memory of their states."""
_SUBCOMMANDS = ("ls", "validate")
_REFUSING = ("lm_eval._cli.", "lm_eval.config.", "lm_eval.evaluator", "lm_eval.api.registry", "lm_eval.tasks.")
"""Modules of lm-eval that raise a bare ValueError or TypeError at what the user typed."""

Answer = TypeVar("Answer")


def ending(request: Instance, routed: Decision) -> Instance:
    """Return a request to generate, which ends after one token where the router's decision says so."""
    if not routed.one_token:
        return request
    context, settings = request.args
    limits = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "max_length")
    kept = {name: value for name, value in settings.items() if name not in limits}
    return replace(request, arguments=(context, kept | {"max_gen_toks": 1}))


def documents(requests: Sequence[Instance]) -> list[list[int]]:
    """Return the places of each document's requests, documents in order of their first; repeats included.

    A request has the name of its task, the index of its document there (`doc_id`) and arguments: context and
    continuation, context and generation settings, or a text alone. Those made by hand, without a document, belong
    together where they have the same context.
    """
    places: dict[tuple[str | None, Any], list[int]] = {}
    for place, request in enumerate(requests):
        document = request.args[0] if request.doc_id is None else request.doc_id
        places.setdefault((request.task_name, document), []).append(place)
    return list(places.values())


def question_of_requests(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int) -> Question:
    """Return what the router reads of one document.

    The prompt is what all contexts begin with, the choices are what is left of each request. So where all requests
    have the same context (most tasks), this is the packed row of prompt and choices that the router was trained on;
    where the choices stand in the contexts (WinoGrande), they are read from where they part. Where the contexts share
    no token, the first one is read alone. What is too long loses its start, as the request itself does.

    Args:
        pairs: tokens of each request's context and continuation; no continuations: contexts to generate after.
        max_length: tokens that the model takes at most.
    """
    contexts = [tuple(context) for context, _ in pairs]
    shared = 0
    while all(shared < len(context) and context[shared] == contexts[0][shared] for context in contexts):
        shared += 1
    if shared == 0:
        return Question(contexts[0][-max_length:])
    choices = tuple(
        left for context, (_, added) in zip(contexts, pairs, strict=True) if (left := context[shared:] + tuple(added))
    )
    # The last token of a choice is only predicted, so it takes no place.
    longest = max(map(len, choices), default=1) - 1
    return Question(contexts[0][:shared][-max(1, max_length - longest) :], choices)


def reading_batches(questions: Sequence[Question]) -> list[list[int]]:
    """Return the places of questions that are read together, by length, at most `READ_TOKENS` tokens.

    Which are together does not depend on the order in which they come, so neither does any rounding.
    """
    sizes = [len(one.prompt) + sum(len(choice) - 1 for choice in one.choices) for one in questions]
    order = sorted(range(len(questions)), key=lambda i: (sizes[i], questions[i].prompt, questions[i].choices))
    batches: list[list[int]] = []
    held = 0
    for place in order:
        if not batches or held + sizes[place] > READ_TOKENS:
            batches.append([])
            held = 0
        batches[-1].append(place)
        held += sizes[place]
    return batches


class Depths:
    """How deep documents ran, by task."""

    def __init__(self, num_layers: int) -> None:
        """Begin with none, for a model of so many layers."""
        self._num_layers = num_layers
        self._ran: list[tuple[str, Decision]] = []

    def add(self, requests: Sequence[Instance], routed: Sequence[Decision]) -> str:
        """Note the documents of some requests, each with its chain, and return what is to be said of them."""
        added = [(requests[i].task_name or "", routed[i]) for i, *_ in documents(requests)]
        self._ran += added
        ran = _summary([one for _, one in added])
        depth, different, outside = ran["mean_depth"], len(ran["chains"]), ran["out_of_scope"]
        return (
            f"{len(added)} documents, mean depth {depth:.2f} of {self._num_layers} layers, "
            f"{different} chain{'s' if different > 1 else ''}{f', {outside} {OUT_OF_SCOPE}' if outside else ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what ran, of all and of each task.

        Documents, mean depth in layers (None: none ran), documents out of the router's scope, and documents by chain.
        """
        tasks = sorted({task for task, _ in self._ran})
        by_task = {task: _summary([one for name, one in self._ran if name == task]) for task in tasks}
        return {"num_layers": self._num_layers, **_summary([one for _, one in self._ran]), "tasks": by_task}


def _summary(routed: Sequence[Decision]) -> dict[str, Any]:
    return {
        "documents": len(routed),
        "mean_depth": sum(one.chain.depth for one in routed) / len(routed) if routed else None,
        "out_of_scope": sum(not one.in_scope for one in routed),
        "chains": dict(Counter(str(one.chain) for one in routed).most_common()),
    }


def routed_settings(router: str, options: Mapping[str, Any]) -> RoutedSettings:
    """Return the settings of a routed model from lm-eval's arguments.

    Raises:
        InputError: at an unknown argument, or a value that does not fit.
    """
    if not router:
        raise InputError("router: expected a router's folder or hub id (--model_args router=DIR), got none")
    known = [field.name for field in fields(RoutedSettings)]
    for name in options:
        if name not in known:
            raise InputError(f"model_args: expected some of {', '.join([*known, *PASSED_ON])}, got {name!r}")
    try:
        return RoutedSettings(router=router, **{**options, "device": device_for(options.get("device"))})
    except ValidationError as error:
        raise InputError(explain(error)) from error


def device_for(name: Any) -> str:
    """Return the device to load on: lm-eval's command line says cuda:0 where the user said nothing.

    Without CUDA that means whatever there is, as for lm-eval's own models.
    """
    if name is None or (str(name).startswith("cuda") and not torch.cuda.is_available()):
        return "auto"
    return str(name)


class RoutedLM(HFLM):  # type: ignore[misc]
    """A routed model as lm-eval's model: one chain for each document.

    Attributes:
        routed: the model.
    """

    routed: RoutedModel
    _model: Any

    def __init__(self, router: str = "", **options: Any) -> None:
        """Load a router with its base model.

        Args:
            router: a router's folder, or its hub id.
            options: the other fields of `RoutedSettings`, and those of lm-eval's own class in `PASSED_ON`.

        Raises:
            InputError: at an unknown option or a bad value, where the router or its base model cannot be loaded, or
                under a launcher of several processes.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(f"lm-eval: expected one process, got WORLD_SIZE={os.environ['WORLD_SIZE']}")
        options = {name: value for name, value in options.items() if value is not None}
        options.pop("trust_remote_code", None)  # lm-eval's flag for data sets; no code of the model's runs
        passed_on = {name: options.pop(name) for name in PASSED_ON if name in options}
        self.routed = load_routed(routed_settings(router, options))
        config, tokenizer = self.routed.router.config, copy.deepcopy(self.routed.tokenizer)
        assert tokenizer is not None  # a copy, for lm-eval gives it a padding token where it has none
        if "add_bos_token" in passed_on:
            tokenizer.add_bos_token = passed_on["add_bos_token"]
        full = self.routed.view(Chain.full(config.num_layers))
        with _without_warnings(_NOT_SO_HERE):
            super().__init__(full, backend="causal", tokenizer=tokenizer, **passed_on)
        # auto:N looks for a batch size N times within a set of requests; the set of one chain may be smaller than N.
        self.batch_schedule = 1
        self.pretrained = full.name_or_path
        _, revision = config.base(options.get("model"), options.get("revision"))
        self.revision = revision or "main"
        self._source = router
        self._depths = Depths(config.num_layers)
        self._asked: Sequence[Instance] | None = None
        self._largest_batch: int | None = None

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> RoutedLM:
        """Make the model from lm-eval's command line; `--model_args` go before the command's options."""
        return cls(**{**(additional_config or {}), **arg_dict})

    def set_cache_hook(self, cache_hook: Any) -> None:  # noqa: ARG002  # lm-eval's signature
        """Refuse lm-eval's cache of answers (`--use_cache`).

        Raises:
            InputError: always. The cache knows an answer by its request alone, but here it depends on the router, its
                budget and the whole document.
        """
        raise InputError("use_cache: expected none with a routed model, whose answers are no request's alone, got one")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the tokenizer's chat template where one is asked for (`--apply_chat_template`).

        Raises:
            InputError: where the tokenizer has none, or none of that name.
        """
        if chat_template and self.tokenizer.chat_template is None:
            raise InputError("apply_chat_template: expected a tokenizer with a chat template, got one without")
        try:
            found: str | None = super().chat_template(chat_template)
        except ValueError as error:
            raise InputError(f"apply_chat_template: {one_line(error)}") from error
        return found

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
        routed = self._route(self._asked, [(context, added) for _, context, added in requests])
        answers = self._by_chain(routed, lambda rows, quiet: score([requests[i] for i in rows], quiet), disable_tqdm)
        self._note("loglikelihood", self._asked, routed)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate after contexts, all of a document under one chain; the router reads the context."""
        generate = super().generate_until
        prompts = [(self._prompt(*request.args[:2]), ()) for request in requests]
        routed = self._route(requests, prompts)
        asked = [ending(*one) for one in zip(requests, routed, strict=True)]
        texts = self._by_chain(routed, lambda rows, quiet: generate([asked[i] for i in rows], quiet), disable_tqdm)
        self._note("generate_until", requests, routed)
        return texts

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts at full depth: there is no prompt for the router to read.

        Returns:
            The log-probability (nats) of each text.
        """
        full = Decision(Chain.full(self.routed.router.config.num_layers), 0.0)
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        self._note("loglikelihood_rolling (no prompt to read: full depth)", requests, [full] * len(requests))
        return scores

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes beside its results: of the base model, and under "cola_router" of the routing.

        Depth is the mean over documents that were run, in layers.
        """
        info: dict[str, Any] = super().get_model_info()
        info["cola_router"] = {
            "router": self._source,
            "budget": self.routed.budget,
            "guaranteed": self.routed.guaranteed,
            "scope": self.routed.scope,
            **self._depths.to_json(),
        }
        return info

    def _note(self, kind: str, requests: Sequence[Instance], routed: Sequence[Decision]) -> None:
        """Note the documents of one kind of request that have run, and say how deep."""
        if not requests:
            return
        print(f"{NAME}: {kind}: {self._depths.add(requests, routed)}", file=sys.stderr)

    def _prompt(self, context: str, settings: dict[str, Any]) -> Sequence[int]:
        """Return a context's tokens as lm-eval's class would give them to the model, alone."""
        ids, _ = self.tok_batch_encode([context], truncation=self.truncation)
        room = self.max_length - normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
        return ids[0].tolist()[-max(1, room) :] or [self.prefix_token_id]

    def _route(
        self, requests: Sequence[Instance], pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[Decision]:
        """Return the chain of each request: the one that the router picks for its document.

        Args:
            requests: the requests.
            pairs: tokens of each one's context and continuation.
        """
        places = documents(requests)
        questions = [self._question(requests, pairs, own) for own in places]
        routed: dict[int, Decision] = {}
        with progress(len(places), "Routing documents", "document", disable=not places) as bar:
            for batch in reading_batches(questions):
                scored = self.routed.score_tokens([questions[i] for i in batch], scored=False)
                for i, one in zip(batch, scored, strict=True):
                    routed |= dict.fromkeys(places[i], one.routed)
                bar.update(len(batch))
        return [routed[i] for i in range(len(requests))]

    def _question(
        self,
        requests: Sequence[Instance],
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        places: Sequence[int],
    ) -> Question:
        """Return what the router reads of the document whose requests are in those places."""
        once = list({id(requests[i]): i for i in places}.values())  # a repeat is the same request again
        # Without a context stands what measures how likely a choice is by itself: it tells the router nothing.
        asked = [i for i in once if requests[i].args[0]] or once
        return question_of_requests([pairs[i] for i in asked], self.max_length)

    def _by_chain(
        self, routed: Sequence[Decision], run: Callable[[list[int], bool], list[Answer]], disable_tqdm: bool
    ) -> list[Answer]:
        """Run requests chain by chain and order the answers; the deepest first: if memory ends, then at the start."""
        groups = sorted(grouped([one.chain for one in routed]).items(), key=lambda group: -group[0].depth)
        own = len(groups) > 1  # one bar for all chains in place of one for each
        answers: dict[int, Answer] = {}
        with progress(len(routed), "Running requests by chain", "request", disable=disable_tqdm or not own) as bar:
            for chain, places in groups:
                with self._under(chain):
                    answers |= zip(places, run(places, disable_tqdm or own), strict=True)
                bar.update(len(places))
        return [answers[i] for i in range(len(routed))]

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


def register() -> None:
    """Make `NAME` known to lm-eval in this process; once, however often it is called or the module imported anew.

    Releases of lm-eval that read entry points (group "lm_eval.models") know the name before.
    """
    if NAME not in model_registry:
        register_model(NAME)(RoutedLM)


def main(argv: Sequence[str]) -> None:
    """Run lm-eval's command line with routed models among its models.

    Args:
        argv: lm-eval's arguments; without `--model` or `--config` the model is a routed one.

    Raises:
        InputError: where lm-eval refuses an argument.
    """
    register()
    words = list(argv)
    if words in (["-h"], ["--help"]):
        names = ", ".join([*(field.name for field in fields(RoutedSettings)), *PASSED_ON])
        print(f"{__doc__}\nmodel_args: {names}\nThe rest is lm-eval's:\n")
        words = ["run", "--help"]
    elif words and words[0] not in _SUBCOMMANDS and not _names_a_model(words):
        words += ["--model", NAME]
    try:
        with program_words(["lm-eval", *words]):
            cli_evaluate()
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError) or not _raised_by(error).startswith(_REFUSING):
            raise
        raise InputError(f"lm-eval: {one_line(error)}") from error


def _names_a_model(words: Sequence[str]) -> bool:
    """Whether the command line says which model, or has a file that may."""
    return any(word.partition("=")[0] in ("--model", "-M", "--config", "-C") for word in words)


def _raised_by(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", ""))


register()
