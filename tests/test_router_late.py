"""A router that reads twice: its first head's open rows are decided by the second, and nothing runs twice for it."""

from __future__ import annotations

import copy
import dataclasses
import random
import string
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from router.chain import Chain
from router.decision import OWN_CHOICE, LateConfig, OperatingPoint, Operation, Router
from router.engine.choices import question_of
from router.engine.view import chain_view
from router.heads.budget import priced_choice
from router.heads.head import ReadOn, known_late, pad_states
from router.latency import time_router
from router.routed import RoutedModel
from router.serving.batcher import BatchLimits
from router.serving.choice import RouterChoice
from router.serving.protocol import Budgets
from router.storage import load_router, save_router
from router.validation import InputError
from tests.routed_folders import (
    CHOICES,
    EARLY_CHAINS,
    GREEDY,
    LATE,
    LATE_CHAINS,
    PREFIX,
    alone,
    late_router,
    prompts,
    scoped,
)
from tests.tiny import EACH, FULL, NUM_LAYERS, tiny_model, tiny_tokenizer

ROWS = 24


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def router(model: PreTrainedModel) -> Router:
    return late_router(model)


@pytest.fixture(scope="module")
def read(model: PreTrainedModel) -> dict[int, list[Tensor]]:
    """States of prompts at both read layers, from the stock model."""
    ids, mask = prompts(ROWS)
    states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return {
        layer: [row[kept.bool()].detach() for row, kept in zip(states[layer], mask, strict=True)]
        for layer in (PREFIX, LATE)
    }


def reading_on(read: dict[int, list[Tensor]], asked: list[Sequence[int]]) -> ReadOn:
    """What reads samples on, and notes each time which."""

    def read_on(rows: Sequence[int]) -> list[Tensor]:
        asked.append(rows)
        return [read[LATE][row] for row in rows]

    return read_on


def by_hand(router: Router, read: dict[int, list[Tensor]], price: float) -> tuple[list[Chain], list[int]]:
    """Each sample's chain, and the samples that are read twice, from both heads' values."""
    assert router.late is not None
    chains, twice = [], []
    with torch.inference_mode():
        first = router.head.values(router.head(*pad_states(read[PREFIX])))  # type: ignore[operator]
        second = router.late.values(router.late(*pad_states(read[LATE])))
    for row in range(len(first)):
        one = max(router.head.chains, key=lambda c: (first[row, router.head.chains.index(c)] - price * c.depth).item())  # type: ignore[union-attr, operator]
        if str(one) not in EARLY_CHAINS:
            twice.append(row)
            late = router.late
            one = max(late.chains, key=lambda c: (second[row, late.chains.index(c)] - price * c.depth).item())
        chains.append(one)
    return chains, twice


@pytest.mark.parametrize("price", [0.0, 0.01, 0.05, 0.2])
def test_the_second_head_decides_what_the_first_leaves_open(
    router: Router, read: dict[int, list[Tensor]], price: float
) -> None:
    # Oracle: both heads' values by hand; the second reading is asked for once, for the rows that it decides.
    asked: list[Sequence[int]] = []
    chains, twice = by_hand(router, read, price)
    decided = router.decide(read[PREFIX], Operation(point=OperatingPoint(price)), reading_on(read, asked))
    assert [one.chain for one in decided] == chains
    assert asked == [twice]
    if not price:
        assert 0 < len(twice) < ROWS
        assert len({chains[row] for row in twice}) > 1


def test_every_sample_may_have_an_operation_of_its_own(router: Router, read: dict[int, list[Tensor]]) -> None:
    # Oracle: all samples at each operation; a row is read twice for its own operation alone.
    wished = [OWN_CHOICE, Operation(budget=float(NUM_LAYERS)), Operation(point=OperatingPoint(0.05))]
    each = router.decide_each(read[PREFIX], wished, known_late(read[LATE]))
    assert each == [router.decide(read[PREFIX], one, known_late(read[LATE])) for one in wished]
    mixed = [wished[row % 3] for row in range(ROWS)]
    asked: list[Sequence[int]] = []
    assert router.decide(read[PREFIX], mixed, reading_on(read, asked)) == [each[row % 3][row] for row in range(ROWS)]
    open_rows = {place: set(by_hand(router, read, price)[1]) for place, price in ((0, 0.0), (2, 0.05))}
    assert asked == [[row for row in range(ROWS) if row in open_rows.get(row % 3, set())]]
    with pytest.raises(ValueError, match="read_on: expected what reads after 3 layers"):
        router.decide(read[PREFIX])


def test_its_operating_points_have_their_depths(router: Router, read: dict[int, list[Tensor]]) -> None:
    # Oracle: deciding at each point; and the values, priced, pick what `decide` does.
    chains = list(router.head.chains)  # type: ignore[arg-type]
    values, late = router.values(read[PREFIX], chains, known_late(read[LATE]))
    depths = torch.tensor([float(chain.depth) for chain in chains]).expand_as(values)
    assert len(router.head.budget_points) > 3
    for point in router.head.budget_points:
        decided = router.decide(read[PREFIX], Operation(point=OperatingPoint(point.offset)), known_late(read[LATE]))
        assert sum(one.chain.depth for one in decided) / ROWS == pytest.approx(point.mean_depth)
        chosen = priced_choice(values, depths, point.offset, late)
        assert [chains[place] for place in chosen.tolist()] == [one.chain for one in decided]
    ordered = sorted(router.head.budget_points, key=lambda point: point.offset)
    assert [one.mean_depth for one in ordered] == sorted((one.mean_depth for one in ordered), reverse=True)


def test_out_of_scope_is_told_at_the_first_reading(router: Router, read: dict[int, list[Tensor]]) -> None:
    # Oracle: the router without a scope; what lies outside runs at full depth and is not read on.
    inside = scoped(router, read[PREFIX][: ROWS // 2])
    asked: list[Sequence[int]] = []
    anyhow = router.decide(read[PREFIX], read_on=known_late(read[LATE]))
    decided = inside.decide(read[PREFIX], read_on=reading_on(read, asked))
    held = [one.in_scope for one in decided]
    assert 0 < sum(held) < ROWS
    assert [one.chain for one in decided] == [
        one.chain if is_held else FULL for one, is_held in zip(anyhow, held, strict=True)
    ]
    assert asked == [[row for row in by_hand(router, read, 0.0)[1] if held[row]]]


def test_values_leave_the_scope_out_where_that_is_asked_for(router: Router, read: dict[int, list[Tensor]]) -> None:
    # Oracle: the router without a scope, and outside of one the full chain alone.
    inside = scoped(router, read[PREFIX][: ROWS // 2])
    chains, read_on = [FULL, Chain.parse("0-3", NUM_LAYERS)], known_late(read[LATE])
    anyhow = inside.values(read[PREFIX], chains, read_on, scope=False)
    kept = inside.values(read[PREFIX], chains, read_on)
    held = torch.tensor([one.in_scope for one in inside.decide(read[PREFIX], read_on=read_on)])
    for own, free, plain in zip(kept, anyhow, router.values(read[PREFIX], chains, read_on), strict=True):
        assert own is not None
        assert free is not None
        assert plain is not None
        assert torch.equal(free, plain)
        assert torch.equal(own[held], plain[held])
        assert own[~held].tolist() == [[0.0, -torch.inf]] * int((~held).sum())


def test_both_heads_are_timed(router: Router, read: dict[int, list[Tensor]]) -> None:
    # Oracle: calls of each head; a scope that no drawn state lies in keeps neither from being timed.
    calls = {"first": 0, "late": 0}
    scope = scoped(router, read[PREFIX])
    assert scope.late is not None
    hooks = [
        head.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name, head in (("first", scope.head), ("late", scope.late))
    ]
    try:
        seconds = time_router(scope, batch=2, prompt_tokens=5, rounds=3)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seconds) == 3
    assert calls["first"] == calls["late"] >= 3


def test_it_is_saved_and_read(router: Router, read: dict[int, list[Tensor]], tmp_path: Path) -> None:
    save_router(tmp_path, router)
    loaded = load_router(tmp_path)
    assert loaded.config == router.config
    assert loaded.config.read_layers == (PREFIX, LATE)
    decide = [one.decide(read[PREFIX], read_on=known_late(read[LATE])) for one in (router, loaded)]
    assert decide[0] == decide[1]
    assert loaded.forward_flops(10) == dataclasses.replace(router, late=None).forward_flops(10) + (
        router.late.forward_flops(10)  # type: ignore[union-attr]
    )


@pytest.mark.parametrize(
    ("late", "told"),
    [
        (LateConfig(PREFIX, {"chains": ["0-4", "0-3"]}), "late: expected a menu head that reads later"),
        (LateConfig(4, {"chains": ["0-4", "0-2"]}), r"chains: expected chains that begin with layers 0\.\.3"),
        (
            LateConfig(LATE, {"chains": ["0-4", "0-3"]}),
            r"expected the 4 chains of the menu that begin with layers 0\.\.2",
        ),
        (LateConfig(LATE, {"chains": [*LATE_CHAINS], "hidden": 9}), "expected .* of shape"),
    ],
)
def test_a_late_head_that_does_not_fit_is_refused(router: Router, late: LateConfig, told: str, tmp_path: Path) -> None:
    save_router(tmp_path, dataclasses.replace(router, config=dataclasses.replace(router.config, late=late)))
    with pytest.raises(InputError, match=told):
        load_router(tmp_path)


@pytest.mark.parametrize("variant", EACH, ids="-".join)
def test_each_row_is_what_its_chains_view_generates(variant: tuple[str, str]) -> None:
    # Oracle: the view of the row's chain, the row alone and without padding; all families and attentions. The chain is
    # what `Router.decide` says of the stock model's states.
    model = tiny_model(*variant)
    ids, mask = prompts()
    rows = [row[kept.bool()][None] for row, kept in zip(ids, mask, strict=True)]
    states = [model(input_ids=row, output_hidden_states=True).hidden_states for row in rows]
    first, second = ([of_row[layer][0] for of_row in states] for layer in (PREFIX, LATE))
    for seed in range(40):  # a router both of whose heads decide some rows
        made = late_router(model, seed)
        chains = [one.chain for one in made.decide(first, read_on=known_late(second))]
        if 0 < sum(str(chain) in EARLY_CHAINS for chain in chains) < len(chains):
            break
    assert 0 < sum(str(chain) in EARLY_CHAINS for chain in chains) < len(chains)
    routed = RoutedModel.join(model, made)
    assert [one.chain for one in routed.route(ids, mask)] == chains
    got = routed.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    for row, chain in enumerate(chains):
        own = ids[row][mask[row].bool()][None]
        wanted = alone(model, chain, own, torch.ones_like(own))
        assert torch.equal(got[row][mask[row].logical_not().sum() :], wanted[0])
        assert torch.equal(routed.generate(own, **GREEDY), wanted)


def test_no_layer_runs_twice_over_a_prompt(router: Router) -> None:
    # Oracle: tokens that go through each layer's feed-forward part, summed over rows that are alone in their batch.
    model = tiny_model("llama")
    tokens = [0] * NUM_LAYERS
    for i, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(
            lambda _module, inputs, _output, i=i: tokens.__setitem__(i, tokens[i] + inputs[0].shape[-2])
        )
    routed = RoutedModel.join(model, router)
    ids, mask = prompts()
    kinds = set()
    for row in range(len(ids)):
        own = ids[row][mask[row].bool()][None]
        (chosen,) = routed.route(own)
        kinds.add(str(chosen.chain) in EARLY_CHAINS)
        tokens[:] = [0] * NUM_LAYERS
        routed.generate(own, **GREEDY)
        length = own.shape[1] + GREEDY["max_new_tokens"] - 1
        assert tokens == [length * chosen.chain.layers.count(layer) for layer in range(NUM_LAYERS)]
    assert kinds == {True, False}


def test_a_batch_reads_on_what_is_left_open_alone(router: Router) -> None:
    # Oracle: rows of the calls of the layer between both readings, while a batch is routed.
    model, rows = tiny_model("llama"), list[int]()
    routed = RoutedModel.join(model, router)
    ids, mask = prompts(ROWS)
    chains = [str(one.chain) for one in routed.route(ids, mask)]
    model.model.layers[PREFIX].mlp.register_forward_hook(lambda _m, inputs, _o: rows.append(len(inputs[0])))
    reading = routed.read(ids, mask)
    rows.clear()
    decided = routed.decide(reading)
    assert [str(one.chain) for one in decided] == chains
    twice = [row for row, chain in enumerate(chains) if chain not in EARLY_CHAINS]
    assert rows == [len(twice)]
    assert list(reading.late) == twice
    assert [reading.layers_of(row) for row in range(ROWS)] == [LATE if row in twice else PREFIX for row in range(ROWS)]
    # What was read on is not read on again, and rows of both kinds go on from the first reading.
    rows.clear()
    assert routed.decide(reading) == decided
    assert not rows
    assert reading.select(twice[:2]).furthest.layers == LATE
    others = [row for row in range(ROWS) if row not in twice]
    assert reading.select([*twice[:1], *others]).furthest.layers == PREFIX
    # Some rows of it are decided as they were, whatever was read on before.
    some = [*others[:2], *twice[:3]]
    assert routed.decide(reading.select(some)) == [decided[row] for row in some]
    assert not rows
    assert routed.decide(reading.select([])) == []


def test_a_chain_that_was_not_read_for_runs_rightly(model: PreTrainedModel, router: Router) -> None:
    # Oracle: the view; a reading that went further than the chain's first layers is not replayed into it.
    routed = RoutedModel.join(model, router)
    ids, mask = prompts(ROWS)
    reading = routed.read(ids, mask)
    routed.decide(reading)
    rows = list(reading.late)[:3]
    for text in (*EARLY_CHAINS, *LATE_CHAINS):
        chain = Chain.parse(text, NUM_LAYERS)
        got = routed.generate_as(chain, reading.select(rows), **GREEDY)
        assert torch.equal(got, alone(model, chain, ids[rows], mask[rows]))


def test_a_changed_model_is_followed(router: Router) -> None:
    # Oracle: a routed model joined after the change.
    model = tiny_model("llama")
    routed = RoutedModel.join(model, router)
    ids, mask = prompts()
    routed.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    model.set_attn_implementation("eager")
    wanted = RoutedModel.join(model, router).generate(input_ids=ids, attention_mask=mask, **GREEDY)
    assert torch.equal(routed.generate(input_ids=ids, attention_mask=mask, **GREEDY), wanted)
    copied = copy.deepcopy(routed)
    assert torch.equal(copied.generate(input_ids=ids, attention_mask=mask, **GREEDY), wanted)


def test_choices_are_scored_as_by_the_chains_view(model: PreTrainedModel, router: Router) -> None:
    # Oracle: the chain's view over prompt and choice, each alone; questions together as one by one.
    tokenizer = tiny_tokenizer()
    routed = RoutedModel.join(model, router, tokenizer=tokenizer)
    texts = ["".join(random.Random(i).choices(string.printable, k=3 + i)).strip() for i in range(40)]
    every = [CHOICES[: 1 + i % 4] for i in range(40)]
    questions = [question_of(tokenizer, *one) for one in zip(texts, every, strict=True)]
    scored = routed.score_tokens(questions)
    assert {str(one.routed.chain) in EARLY_CHAINS for one in scored} == {True, False}
    for text, choices, question, one in zip(texts, every, questions, scored, strict=True):
        assert routed.score(text, choices).routed.chain == one.routed.chain
        view = chain_view(model, one.routed.chain)
        for choice, value in zip(question.choices, one.logprobs, strict=True):
            ids = torch.tensor([[*question.prompt, *choice]])
            logprobs = view(input_ids=ids).logits[0].log_softmax(-1)
            places = range(len(question.prompt) - 1, ids.shape[1] - 1)
            wanted = sum(float(logprobs[i, token]) for i, token in zip(places, choice, strict=True))
            assert value == pytest.approx(wanted, abs=1e-4)


def test_a_proxy_takes_the_best_chain_that_is_served(model: PreTrainedModel, router: Router) -> None:
    # Oracle: `decide`, and by hand the heads' values where its chain is not served; layers run to read each prompt.
    routed = RoutedModel.join(model, router, tokenizer=tiny_tokenizer())
    served = [Chain.parse(text, NUM_LAYERS) for text in ("0-4", "0-3", "0-1,3-4")]
    ids, mask = prompts(ROWS)
    texts = [tuple(row[kept.bool()].tolist()) for row, kept in zip(ids, mask, strict=True)]
    picked = RouterChoice(routed, served, BatchLimits(), Budgets(router, 1.0)).read(texts, [None] * ROWS)
    reading = routed.read(ids, mask)
    decided = routed.decide(reading)
    values, late = routed.values(reading, range(ROWS), served)
    assert late is not None
    replaced = 0
    for row, (one, own) in enumerate(zip(picked, decided, strict=True)):
        twice = str(own.chain) not in EARLY_CHAINS
        wanted = own.chain
        if wanted not in served:
            replaced += 1
            wanted = served[int(values[row].argmax())]
            if str(wanted) not in EARLY_CHAINS:
                wanted, twice = served[int(late[row].argmax())], True
        assert one.chain == wanted
        if own.chain in served:
            assert one.layers_read == len(texts[row]) * (LATE if twice else PREFIX)
    assert 0 < replaced < ROWS
