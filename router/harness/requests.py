"""Requests of lm-evaluation-harness by document: what the router reads, the chain, how deep it ran.

A document is one sample of a task. With choices it makes several requests, which are to run under one chain: chains
differ in what they give to any text, so that choices under different ones could not be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import MutableMapping, Sequence
from typing import Any, Protocol

from router.chain import Chain
from router.choices import Question
from router.command import InputError

READ_TOKENS = 2**14
"""Tokens that are read in one go at most (a longer document is read alone); bounds the memory of their states."""
_SETTINGS_KEY = "cola-router settings"


class Request(Protocol):
    """What is used of lm-eval's `Instance`.

    Attributes:
        task_name: the task.
        doc_id: index of the document in its task; None where the request was made by hand.
        args: context and continuation, context and generation settings, or a text alone.
    """

    task_name: str | None
    doc_id: int | None

    @property
    def args(self) -> tuple[Any, ...]:
        """Return the arguments."""


def documents(requests: Sequence[Request]) -> list[list[int]]:
    """Return the places of each document's requests, documents in order of their first; repeats included.

    Requests made by hand, without a document, belong together where they have the same context.
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
        self._ran: Counter[tuple[str, Chain]] = Counter()

    def add(self, requests: Sequence[Request], chains: Sequence[Chain]) -> str:
        """Count the documents of some requests, each with its chain, and return what is to be said of them."""
        firsts = [places[0] for places in documents(requests)]
        added = Counter((requests[i].task_name or "", chains[i]) for i in firsts)
        self._ran += added
        depth, different = _mean_depth(added), len({chain for _, chain in added})
        return (
            f"{len(firsts)} documents, mean depth {depth:.2f} of {self._num_layers} layers, "
            f"{different} chain{'s' if different > 1 else ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return documents, mean depth in layers (None: none ran) and documents by chain, of all and of each task."""
        tasks = sorted({task for task, _ in self._ran})
        of_task = {task: Counter({key: n for key, n in self._ran.items() if key[0] == task}) for task in tasks}
        by_task = {task: _summary(ran) for task, ran in of_task.items()}
        return {"num_layers": self._num_layers, **_summary(self._ran), "tasks": by_task}


def _summary(ran: Counter[tuple[str, Chain]]) -> dict[str, Any]:
    chains: Counter[str] = Counter()
    for (_, chain), count in ran.items():
        chains[str(chain)] += count
    return {"documents": ran.total(), "mean_depth": _mean_depth(ran), "chains": dict(chains.most_common())}


def _mean_depth(ran: Counter[tuple[str, Chain]]) -> float | None:
    return sum(chain.depth * count for (_, chain), count in ran.items()) / ran.total() if ran else None


class ChainMemory:
    """Chains of documents, kept beside the answers in lm-eval's cache (`--use_cache`).

    A run that was cut off may have answered only some of a document's requests. The next one is given only the others,
    from which the router could pick another chain; so it takes the one that is kept here.
    """

    def __init__(self, store: MutableMapping[str, Any] | None = None, settings: str = "") -> None:
        """Open the memory.

        Args:
            store: lm-eval's cache; None: there is none, and nothing is kept.
            settings: what the answers in it depend on: the router and how much depth it spends.

        Raises:
            InputError: where the cache holds answers of other settings; lm-eval itself would take them for these.
        """
        self._store = store
        if store is None:
            return
        if len(store) and store.get(_SETTINGS_KEY) != settings:
            raise InputError(
                "use_cache: expected answers of this router at this budget in the cache, got others "
                "(give each router and budget a cache of its own)"
            )
        store[_SETTINGS_KEY] = settings

    def recall(self, request: Request, num_layers: int) -> Chain | None:
        """Return the chain of a document, given any of its requests; None where there is none."""
        found = None if self._store is None else self._store.get(_document_key(request))
        return None if found is None else Chain.parse(found, num_layers)

    def keep(self, requests: Sequence[Request], chain: Chain) -> None:
        """Keep the chain of a document, under each of its requests.

        Raises:
            InputError: where another document makes one of the requests under another chain: the cache knows an answer
                by context and continuation alone.
        """
        if self._store is None:
            return
        for request in requests:
            if self._store.setdefault(_key(request.args), str(chain)) != str(chain):
                raise InputError(
                    f"use_cache: expected requests that two chains do not share, got {request.args!r} in documents of "
                    f"two, which lm-eval's cache cannot tell apart (task {request.task_name}; run it without a cache)"
                )
            self._store[_document_key(request)] = str(chain)


def _key(parts: Sequence[Any]) -> str:
    return f"cola-router chain {hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()}"


def _document_key(request: Request) -> str:
    return _key([request.task_name, request.doc_id, request.args])
