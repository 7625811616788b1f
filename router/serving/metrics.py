"""What Prometheus scrapes at `/metrics` of a server or a proxy: requests, chains, tokens, layers, times and load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.chain import Chain
from router.serving.backends import Backend, Upstream
from router.serving.batcher import Batcher
from router.serving.choice import Picked
from router.serving.rows import Row

PATHS = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics", "/status", "/"})
"""Paths that are counted by name."""
CLIENT_LEFT, FAILED = 499, 500
"""Status of a request that got no answer, and of one at which the server failed."""

MOST_CHAINS = 100
"""Chains that are counted by name; a layerwise head knows more than a time series database should."""
PREFIX = "cola_router_"
"""Begins each name."""
OTHER = "other"
"""Label of what has none of its own."""
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
"""Bounds of the histograms of waiting times and of whole choices."""
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""Bounds of the histogram of times between tokens."""


class Metrics:
    """What server and proxy both count, from the event loop alone.

    Attributes:
        first_token: histogram of seconds up to a first token.
    """

    def __init__(self, num_layers: int) -> None:
        """Begin at nothing; `num_layers`: layers of the base model."""
        self._num_layers, self._chains = num_layers, set[str]()
        self.registry = CollectorRegistry()
        self._requests = self.counter("requests", "Requests answered.", "path", "status")
        self._by_chain = self.counter("chain_choices", "Choices by the chain that they ran.", "chain")
        self._tokens = self.counter("tokens", "Tokens read and generated.", "kind")
        self._run = self.counter("layer_passes", "Layers run, once for each token; a proxy's own reading counts too.")
        self._full = self.counter(
            "full_depth_layer_passes", "Layers that full depth would have run for the same tokens."
        )
        self.first_token = self.histogram(
            "time_to_first_token_seconds",
            "From a choice's submission to its first token; a proxy: to a streamed answer's first byte.",
            SECONDS,
        )

    def counter(self, name: str, what: str, *labels: str) -> Counter:
        """Return a new counter."""
        return Counter(f"{PREFIX}{name}", what, labels, registry=self.registry)

    def histogram(self, name: str, what: str, bounds: tuple[float, ...]) -> Histogram:
        """Return a new histogram."""
        return Histogram(f"{PREFIX}{name}", what, registry=self.registry, buckets=bounds)

    def gauge(self, name: str, what: str) -> Gauge:
        """Return a new gauge."""
        return Gauge(f"{PREFIX}{name}", what, registry=self.registry)

    def count(self, chain: Chain, choices: int, prompt: int, generated: int, read: int = 0) -> None:
        """Count choices of one request, and what they ran.

        Args:
            chain: the chain that they ran.
            choices: how many.
            prompt: tokens of the prompts; 0: neither these nor those that were generated are known.
            generated: tokens generated; the last one of a choice goes through no layer.
            read: layers that a proxy ran to choose the chain, once for each token.
        """
        self._by_chain.labels(self._name(str(chain))).inc(choices)
        if not prompt:
            return
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("generated").inc(generated)
        passes = prompt + max(0, generated - choices)
        self._run.inc(chain.depth * passes + read)
        self._full.inc(self._num_layers * passes)

    def add_to(self, app: FastAPI) -> None:
        """Add the route to an application, and count its answers, those of its other middleware too."""
        app.add_middleware(Counted, counter=self._requests)
        app.add_api_route("/metrics", self._scrape, methods=["GET"], response_model=None)

    async def _scrape(self) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def _name(self, chain: str) -> str:
        if chain not in self._chains and len(self._chains) == MOST_CHAINS:
            return OTHER
        self._chains.add(chain)
        return chain


class RowMetrics(Metrics):
    """What a server counts: its rows; a scrape also asks the batcher how busy it is."""

    def __init__(self, batcher: Batcher, num_layers: int) -> None:
        """Begin at nothing.

        Args:
            batcher: what generates.
            num_layers: layers of the base model.
        """
        super().__init__(num_layers)
        self._choices = self.counter("choices", "Choices that ended, by their end.", "end")
        self._out_of_scope = self.counter(
            "out_of_scope_choices", "Choices at full depth: prompts unlike those of training."
        )
        self._between = self.histogram("time_per_token_seconds", "Mean between a choice's tokens.", TOKEN_SECONDS)
        self._whole = self.histogram("choice_seconds", "From submission to a choice's last token.", SECONDS)
        budget = "Mean depth given to a choice now; 0: not set by a budget."
        self.gauge("waiting", "Choices that wait.").set_function(lambda: batcher.waiting)
        self.gauge("running", "Choices that generate.").set_function(lambda: batcher.running)
        self.gauge("budget_layers", budget).set_function(lambda: batcher.budget or 0.0)

    def observe(self, row: Row) -> None:
        """Count a row for which nobody waits any more."""
        code = None if row.fault is None else row.fault.code
        self._choices.labels(row.reason or code or OTHER).inc()
        if row.chain is None:
            return
        self.count(row.chain, 1, len(row.prompt), len(row.tokens))
        self._out_of_scope.inc(not row.in_scope)
        if row.first_token is None or row.last_token is None:
            return
        self.first_token.observe(row.first_token - row.submitted)
        self._whole.observe(row.last_token - row.submitted)
        if len(row.tokens) > 1:
            self._between.observe((row.last_token - row.first_token) / (len(row.tokens) - 1))


class ProxyMetrics(Metrics):
    """What a proxy counts of its requests and its backends.

    Attributes:
        running: requests under way.
    """

    def __init__(self, backends: Sequence[Backend], num_layers: int) -> None:
        """Begin at nothing.

        Args:
            backends: the backends, of which a scrape asks what is known.
            num_layers: layers of the base model.
        """
        super().__init__(num_layers)
        self._backends = backends
        self.running = self.gauge("running", "Requests under way.")
        self._fallbacks = self.counter(
            "full_depth_fallbacks", "Requests that full depth answered in another chain's place.", "reason"
        )
        self.registry.register(self)

    def observe(self, answer: Upstream, picked: Picked) -> None:
        """Count an answer that has ended, or whose client has left: what is known of it."""
        told, instead = answer.told, picked.instead or ("backend_down" if answer.chain != picked.chain else None)
        if instead is not None:
            self._fallbacks.labels(instead).inc()
        self.count(answer.chain, len(told.choices), told.prompt_tokens, told.generated_tokens, picked.layers_read)

    def collect(self) -> Iterator[Metric]:
        """Yield what is known of the backends, as the registry of Prometheus' client asks for it."""
        up = GaugeMetricFamily(f"{PREFIX}backend_up", "Whether a chain's backend answered last.", labels=["chain"])
        failures = CounterMetricFamily(
            f"{PREFIX}backend_failures",
            "Answers of a chain's backend that failed, broke off or came too late.",
            labels=["chain"],
        )
        for one in self._backends:
            up.add_metric([str(one.chain)], one.up)
            failures.add_metric([str(one.chain)], one.failures)
        yield up
        yield failures


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
        except Exception:  # the answer to it is made in front of all middleware
            status = FAILED if status == CLIENT_LEFT else status
            raise
        finally:
            path = scope["path"] if scope["path"] in PATHS else OTHER
            self._counter.labels(path, str(status)).inc()
