"""What Prometheus reads at `/metrics`, against what was asked and answered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from router.serving.metrics import MOST_CHAINS, OTHER, Metrics
from tests.serving import Running, running, scraped

PROMPTS = ["Which of these is a fox?", "ice", "Which of these?"]
NEW_TOKENS = 5


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as one:
        yield one


def test_requests_tokens_layers_and_times_are_counted(server: Running) -> None:
    # Oracle: each prompt alone.
    asked = {"max_tokens": NEW_TOKENS, "temperature": 0}
    before = scraped(server.url)
    alone = [server.oracle.alone(server.oracle.tokens(prompt), NEW_TOKENS) for prompt in PROMPTS]
    for prompt in PROMPTS:
        assert server.post(prompt=prompt, **asked).status_code == 200
    assert server.post(prompt="x", max_tokens=-1).status_code == 400
    assert server.post("/v1/nothing").status_code == 404
    after = scraped(server.url)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["requests_total//v1/completions/200"] == len(PROMPTS)
    assert (grown["requests_total//v1/completions/400"], grown[f"requests_total/{OTHER}/404"]) == (1, 1)
    for reason in ("stop", "length"):
        assert grown.get(f"choices_total/{reason}", 0) == sum(one.reason == reason for one in alone)
    for chain in {one.chain for one in alone}:
        assert grown[f"chain_choices_total/{chain}"] == sum(one.chain == chain for one in alone)
    read = [len(server.oracle.tokens(prompt)) for prompt in PROMPTS]
    assert grown["tokens_total/prompt"] == sum(read)
    assert grown["tokens_total/generated"] == sum(one.tokens for one in alone)
    passes = [tokens + one.tokens - 1 for tokens, one in zip(read, alone, strict=True)]
    assert grown["layer_passes_total"] == sum(one.chain.depth * n for one, n in zip(alone, passes, strict=True))
    assert grown["full_depth_layer_passes_total"] == server.oracle.routed.router.config.num_layers * sum(passes)
    assert grown["time_to_first_token_seconds_count"] == grown["choice_seconds_count"] == len(PROMPTS)
    assert 0 < grown["time_to_first_token_seconds_sum"] <= grown["choice_seconds_sum"]
    assert (after["waiting"], after["running"], after["budget_layers"]) == (0, 0, server.service.batcher.budget)


def test_chains_beyond_a_hundred_share_a_name() -> None:
    metrics = Metrics(5)
    assert [metrics._name(str(i)) for i in range(MOST_CHAINS)] == [str(i) for i in range(MOST_CHAINS)]
    assert (metrics._name("new"), metrics._name("0")) == (OTHER, "0")
