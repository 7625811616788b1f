"""What Prometheus scrapes at `/metrics`: requests, choices, tokens, chains, layers, waiting times and load."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.serving.batcher import Batcher
from router.serving.rows import Row

PATHS = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics", "/status", "/"})
"""Paths that are counted by name."""
CLIENT_LEFT = 499
"""Status of a request that got no answer."""

MOST_CHAINS = 100
"""Chains that are counted by name; a layerwise head knows more than a time series database should."""
OTHER = "other"
"""Label of what has none of its own."""
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
"""Bounds of the histograms of waiting times and of whole choices."""
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""Bounds of the histogram of times between tokens."""


class Metrics:
    """Counts what is served, from the event loop alone; a scrape also asks the batcher how busy it is."""

    def __init__(self, batcher: Batcher, num_layers: int) -> None:
        """Begin at nothing.

        Args:
            batcher: what generates.
            num_layers: layers of the base model.
        """
        self._num_layers, self._chains = num_layers, set[str]()
        self._registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"cola_router_{name}", what, labels, registry=self._registry)

        def histogram(name: str, what: str, bounds: tuple[float, ...]) -> Histogram:
            return Histogram(f"cola_router_{name}", what, registry=self._registry, buckets=bounds)

        self._requests = counter("requests", "Requests answered.", "path", "status")
        self._choices = counter("choices", "Choices that ended, by their end.", "end")
        self._by_chain = counter("chain_choices", "Choices by the chain that they ran.", "chain")
        self._out_of_scope = counter("out_of_scope_choices", "Choices at full depth: prompts unlike those of training.")
        self._tokens = counter("tokens", "Tokens read and generated.", "kind")
        self._run = counter("layer_passes", "Layers run, once for each token.")
        self._full = counter("full_depth_layer_passes", "Layers that full depth would have run for the same tokens.")
        self._first = histogram(
            "time_to_first_token_seconds", "From a choice's submission to its first token.", SECONDS
        )
        self._between = histogram("time_per_token_seconds", "Mean between a choice's tokens.", TOKEN_SECONDS)
        self._whole = histogram("choice_seconds", "From submission to a choice's last token.", SECONDS)
        for name, what, value in (
            ("waiting", "Choices that wait.", lambda: batcher.waiting),
            ("running", "Choices that generate.", lambda: batcher.running),
            (
                "budget_layers",
                "Mean depth given to a choice now; 0: not set by a budget.",
                lambda: batcher.budget or 0.0,
            ),
        ):
            Gauge(f"cola_router_{name}", what, registry=self._registry).set_function(value)

    def observe(self, row: Row) -> None:
        """Count a row for which nobody waits any more."""
        code = None if row.fault is None else row.fault.code
        self._choices.labels(row.reason or code or OTHER).inc()
        if row.chain is None:
            return
        self._by_chain.labels(self._name(str(row.chain))).inc()
        self._out_of_scope.inc(not row.in_scope)
        self._tokens.labels("prompt").inc(len(row.prompt))
        self._tokens.labels("generated").inc(len(row.tokens))
        passes = len(row.prompt) + max(0, len(row.tokens) - 1)  # the last token goes through no layer
        self._run.inc(row.chain.depth * passes)
        self._full.inc(self._num_layers * passes)
        if row.first_token is None or row.last_token is None:
            return
        self._first.observe(row.first_token - row.submitted)
        self._whole.observe(row.last_token - row.submitted)
        if len(row.tokens) > 1:
            self._between.observe((row.last_token - row.first_token) / (len(row.tokens) - 1))

    def add_to(self, app: FastAPI) -> None:
        """Add the route to an application, and count its answers, those of its other middleware too."""
        app.add_middleware(Counted, counter=self._requests)
        app.add_api_route("/metrics", self._scrape, methods=["GET"], response_model=None)

    async def _scrape(self) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _name(self, chain: str) -> str:
        if chain not in self._chains and len(self._chains) == MOST_CHAINS:
            return OTHER
        self._chains.add(chain)
        return chain


class Counted:
    """ASGI middleware that counts answers by path and status."""

    def __init__(self, app: ASGIApp, counter: Counter) -> None:
        """Stand before an application."""
        self._app, self._counter = app, counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count what it is answered with."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_LEFT

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            path = scope["path"] if scope["path"] in PATHS else OTHER
            self._counter.labels(path, str(status)).inc()
