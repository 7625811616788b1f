"""A router's scope: what lies near the training prompts, what lies far, and what then runs."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformers import PreTrainedModel

from router.__main__ import main
from router.chain import Chain
from router.decision import Guarantee, OperatingPoint, Operation, Router
from router.heads.head import pad_states
from router.routed import RoutedModel
from router.scope import SURE, Scope, pooled
from router.storage import load_router, save_router, weights_sha256
from router.validation import InputError, to_plain
from tests.routed_folders import GREEDY, PADDING, prompts, router_for, scoped, small_router, small_states, write_routed
from tests.tiny import tiny_model
from train.scope import one_token_errors, scope_of

WIDTH = 16
FULL = Chain.full(6)


def kinds_of_prompts(count: int, seed: int) -> list[Tensor]:
    """States of prompts of three kinds: each kind's tokens lie around places of its own."""
    places = torch.randn(3, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        tokens = 4 + int(torch.randint(9, (), generator=generator))
        noise = torch.randn(tokens, WIDTH, generator=generator)
        made.append(places[i % 3, torch.arange(tokens) % 2] + (0.1 + 0.1 * (i % 3)) * noise)
    return made


def read(many: list[Tensor]) -> Tensor:
    return pooled(*pad_states(many))


def contained(scope: Scope, many: list[Tensor]) -> Tensor:
    """Which prompts lie inside of a scope."""
    return scope.judge(read(many))[0]


def made_scope(share: float = 0.1) -> Scope:
    return scope_of(read(kinds_of_prompts(300, 1)), read(kinds_of_prompts(2000, 2)), share)


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_false_alarms_are_as_many_as_were_asked_for(share: float) -> None:
    # Oracle: the share itself, on 2,000 prompts of the same kinds that nothing was measured on; prompts of others.
    scope = made_scope(share)
    fresh = contained(scope, kinds_of_prompts(2000, 3))
    assert share / 2 < float((~fresh).float().mean()) < 2 * share
    assert not contained(scope, small_states(40, seed=5)).any()


def test_the_distance_is_scikit_learns() -> None:
    # Oracle: scikit-learn's log-likelihood under probabilistic principal components, up to its constant.
    train, fresh = read(kinds_of_prompts(300, 1)), read(kinds_of_prompts(50, 4) + small_states(10))
    scope = scope_of(train, fresh, 0.1)
    scaler = StandardScaler().fit(train.double().numpy())
    fitted = PCA(scope.config.components).fit(scaler.transform(train.double().numpy()))
    distances, _ = scope.places(fresh)
    found = distances.double().square()
    told = -2 * torch.tensor(fitted.score_samples(scaler.transform(fresh.double().numpy())))
    assert scope.config.components == WIDTH
    assert (found - found[0]).tolist() == pytest.approx((told - told[0]).tolist(), rel=1e-3, abs=1e-2)
    assert float((distances > scope.threshold).double().mean()) == pytest.approx(0.1, abs=0.01)


def test_a_prompts_batch_does_not_matter() -> None:
    # Oracle: each prompt alone.
    scope, many = made_scope(), kinds_of_prompts(60, 6) + small_states(6)
    together = contained(scope, many).tolist()
    assert together == [bool(contained(scope, [one])) for one in many]
    assert set(together) == {True, False}


def scoped_router(seed: int = 0) -> Router:
    """A router of six layers with operating points, a guarantee and a scope."""
    made = small_router(seed)
    with torch.inference_mode():
        made.head.calibrate(made.head(*pad_states(kinds_of_prompts(40, 7))))
    promised = Guarantee(0.1, 0.1, "accuracy", 0.5, None, 10, 0.0, 5.0, None)
    config = dataclasses.replace(made.config, budget_points=made.head.budget_points)
    return Router(config, made.head, promised, made_scope())


def test_what_lies_outside_runs_at_full_depth_at_every_operation() -> None:
    # Oracle: the same router without a scope, and the scope by itself.
    router = scoped_router()
    plain, many = dataclasses.replace(router, scope=None), kinds_of_prompts(30, 8) + small_states(6)
    assert router.scope is not None
    inside = contained(router.scope, many).tolist()
    assert not any(inside[30:])
    for wanted in (Operation(), Operation(3.0), Operation(guaranteed=True), Operation(point=OperatingPoint(None))):
        anyhow = plain.decide(many, wanted)
        for one, other, known in zip(router.decide(many, wanted), anyhow, inside, strict=True):
            assert one.in_scope == known
            assert one.chain == (other.chain if known else FULL)
        if not wanted.guaranteed:
            assert router.decide(many, dataclasses.replace(wanted, scope=False)) == anyhow
    chains = [FULL, FULL.skip(3, 1)]
    expected = torch.where(torch.tensor(inside)[:, None], plain.values(many, chains)[0], torch.tensor([0, -torch.inf]))
    assert torch.equal(router.values(many, chains)[0], expected)
    mixed = router.decide(many, [Operation(scope=i % 2 == 0) for i in range(36)])
    assert [one.in_scope for one in mixed] == [i % 2 == 1 or known for i, known in enumerate(inside)]
    with pytest.raises(ValueError, match="scope: expected true with guaranteed, which was certified with it"):
        router.require(Operation(guaranteed=True, scope=False))


def test_a_scope_is_stored_with_the_weights(tmp_path: Path) -> None:
    # Oracle: the router in memory; one of before scopes, whose config does not know the word.
    router, many = scoped_router(), kinds_of_prompts(30, 8) + small_states(6)
    save_router(tmp_path / "r", router)
    loaded = load_router(tmp_path / "r")
    assert loaded.scope is not None
    assert router.scope is not None
    assert loaded.config.scope == loaded.scope.config == router.scope.config
    assert loaded.decide(many) == router.decide(many)
    assert weights_sha256(loaded) == weights_sha256(router) != weights_sha256(dataclasses.replace(router, scope=None))
    path = tmp_path / "r" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"scope": config["scope"] | {"components": 4096}}))
    with pytest.raises(InputError, match=r"scope.axes of shape \[32, 4096\], got \[32, 16\]"):
        load_router(tmp_path / "r")

    save_router(tmp_path / "old", dataclasses.replace(router, scope=None))
    assert "scope" not in json.loads((tmp_path / "old" / "config.json").read_text())
    old = load_router(tmp_path / "old")
    assert old.scope is None
    assert old.decide(many) == dataclasses.replace(router, scope=None).decide(many)


def test_prompts_whose_answers_are_judged_by_one_token_are_told_from_the_others() -> None:
    # Oracle: the kinds themselves, of which one is judged so; scikit-learn's probabilities; none, and all, are.
    many, fresh = kinds_of_prompts(300, 1), kinds_of_prompts(300, 9)
    train, unknown, short = read(many), read(fresh), [i % 3 == 0 for i in range(300)]
    scope = scope_of(train, unknown, 0.1, short)
    inside, probability = scope.judge(unknown)
    assert ((probability > 0.5).tolist(), scope.config.one_token) == (short, True)
    fitted = LogisticRegression(C=100.0, max_iter=1000).fit(scope.places(train)[1], short)
    told = fitted.predict_proba(scope.places(unknown)[1])[:, 1]
    assert probability.tolist() == pytest.approx(told.tolist(), abs=1e-4)
    assert inside.float().mean() > 0.85
    few, few_told = scope_of(train[:12], unknown, 0.1, short[:12]).judge(unknown)
    assert ((few_told > 0.5).tolist(), few.float().mean() > 0.85) == (short, True)
    none, every = scope_of(train, unknown, 0.1), scope_of(train, unknown, 0.1, [True] * 300)
    assert (none.config.one_token, bool(none.judge(unknown)[1].any())) == (False, False)
    assert bool((every.judge(unknown)[1] > SURE).all())
    assert "one_token" not in to_plain(none.config)
    assert set(scope.state_dict()) - set(none.state_dict()) == {"slopes", "intercept"}


def test_errors_about_answers_of_one_token_are_those_of_the_worse_kind() -> None:
    # Oracle: by hand: one of two short answers is told wrongly, and one of four long ones.
    told, truth = torch.tensor([1, 0, 0, 0, 0, 1]).bool(), torch.tensor([1, 1, 0, 0, 0, 0]).bool()
    assert one_token_errors(told, truth) == 0.5
    assert one_token_errors(told[2:], truth[2:]) == 0.25
    assert one_token_errors(told[:0], truth[:0]) == 0.0


def test_a_prompt_that_may_have_either_answer_is_outside() -> None:
    # Oracle: prompts of one kind, half of which are said to be judged by one token: nothing tells which.
    one_kind = read(kinds_of_prompts(900, 1)[::3])
    scope = scope_of(one_kind, one_kind, 0.0, [i % 2 == 0 for i in range(300)])
    inside, probability = scope.judge(one_kind)
    sure = (probability - 0.5).abs() >= SURE - 0.5
    assert bool((scope.places(one_kind)[0] <= scope.threshold).all())
    assert inside.tolist() == sure.tolist()
    assert not sure.all()


def test_decisions_say_where_generation_ends_after_one_token() -> None:
    # Oracle: the scope by itself; the same router whose scope tells no lengths.
    plain, many = scoped_router(), kinds_of_prompts(30, 8) + small_states(6)
    short = [i % 3 == 0 for i in range(300)]
    scope = scope_of(read(kinds_of_prompts(300, 1)), read(kinds_of_prompts(2000, 2)), 0.1, short)
    router = dataclasses.replace(plain, scope=scope)
    inside = contained(scope, many).tolist()
    for wanted in (Operation(3.0), Operation(3.0, scope=False), Operation(6.0)):
        decided = router.decide(many, wanted)
        expected = [i % 3 == 0 and inside[i] and not one.chain.is_full for i, one in enumerate(decided[:30])]
        assert [one.one_token for one in decided[:30]] == expected
        assert any(expected) == (wanted.budget == 3.0)
        assert not any(one.one_token for one in plain.decide(many, wanted))
        assert not any(one.one_token for one in decided[30:])


def prompts_states(model: PreTrainedModel, rows: int) -> list[Tensor]:
    ids, mask = prompts(rows)
    hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[2]
    return [row[kept.bool()] for row, kept in zip(hidden, mask, strict=True)]


def test_a_routed_model_runs_what_it_does_not_know_at_full_depth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the base model's own generate; `route` on each row; the same model with its scope off.
    folder, model = write_routed(tmp_path), tiny_model("llama")
    # The rows below are some of the known prompts, and one that is no prompt of that kind.
    made = scoped(load_router(folder), prompts_states(model, 24))
    save_router(folder, made)
    routed = RoutedModel.from_pretrained(folder, budget=4.0)
    ids, mask = prompts(6)
    ids[5] = torch.full_like(ids[5], 7)  # one token over and over
    mask[5] = 1
    decided = routed.route(ids, mask)
    assert [one.in_scope for one in decided] == [True] * 5 + [False]
    assert decided[5].chain.is_full
    assert not all(one.chain.is_full for one in decided)
    generated = routed.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    assert torch.equal(generated[5:], model.generate(input_ids=ids[5:], attention_mask=mask[5:], **GREEDY))
    assert routed.decide(routed.read(ids, mask), [3.2] * 6)[5].chain.is_full
    for off in (RoutedModel.from_pretrained(folder, budget=4.0, scope=False), copy.deepcopy(routed)):
        off.scope = False
        assert [one.chain for one in off.route(ids, mask)][:5] == [one.chain for one in decided[:5]]
        assert not off.route(ids, mask)[5].chain.is_full
        assert copy.deepcopy(off).scope is False
    assert routed.score("7" * 30, [" 7"]).routed.in_scope is False
    for scope in ("true", "false"):
        main(["route", str(folder), "--prompt", "7" * 30, "--scope", scope])
        assert ("5 of 5 layers, out of the router's scope" in capsys.readouterr().out) == (scope == "true")
    assert routed.tokenizer is not None
    routed.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    routed.tokenizer.save_pretrained(made.config.base_model)
    for chat, hinted in (("false", True), ("true", False)):
        main(["route", str(folder), "--prompt", "7" * 30, "--chat", chat, "--verify", "false"])
        assert ("--chat true asks them so" in capsys.readouterr().err) == hinted
    with pytest.raises(ValueError, match="scope: expected true with guaranteed"):
        RoutedModel.join(
            model, dataclasses.replace(made, guarantee=router_for(model).guarantee), guaranteed=True, scope=False
        )


def test_a_text_ends_after_the_one_token_that_a_chain_was_judged_by(tmp_path: Path) -> None:
    # Oracle: each row's chain's own view, cut to one token; full depth, which ends by itself, for the row outside.
    folder, model = write_routed(tmp_path), tiny_model("llama")
    save_router(folder, scoped(load_router(folder), prompts_states(model, 24), one_token=True))
    routed = RoutedModel.from_pretrained(folder, budget=4.0)
    ids, mask = prompts(6)
    ids[5], mask[5] = torch.full_like(ids[5], 7), 1
    decided = routed.route(ids, mask)
    assert [one.one_token for one in decided] == [not one.chain.is_full for one in decided]
    assert {one.one_token for one in decided} == {True, False}
    generated, width = routed.generate(input_ids=ids, attention_mask=mask, **GREEDY), ids.shape[1]
    for row, one in enumerate(decided):
        own = {"input_ids": ids[row : row + 1], "attention_mask": mask[row : row + 1]}
        whole = routed.view(one.chain).generate(**own, **GREEDY)[0, width:].tolist()
        wanted = [whole[0], *[PADDING] * 5] if one.one_token else whole
        assert generated[row, width:].tolist() == wanted
        (again,) = routed.generate(**own, **GREEDY)[:, width:].tolist()
        assert again == (whole[:1] if one.one_token else whole)
    assert torch.equal(generated[5:], model.generate(input_ids=ids[5:], attention_mask=mask[5:], **GREEDY))
    drawn = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6, "pad_token_id": PADDING}
    sampled = routed.generate(input_ids=ids[:1], attention_mask=mask[:1], **drawn)
    assert sampled.shape == (3, width + 1)
    drafted = routed.generate(input_ids=ids[:1], attention_mask=mask[:1], prompt_lookup_num_tokens=3, **GREEDY)
    assert drafted.shape == (1, width + 1)
    # What is to end a text of full length does not stand in for its only token.
    ended = routed.generate(input_ids=ids[:1], attention_mask=mask[:1], forced_eos_token_id=2, **GREEDY)
    assert torch.equal(ended, drafted)


def test_the_command_says_where_a_text_ends_after_one_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: `route` on the prompts' own tokens; a text of that token alone.
    folder, model = write_routed(tmp_path), tiny_model("llama")
    plain = RoutedModel.from_pretrained(folder, budget=4.0)
    asked = [f"Which is number {i}?" for i in range(24)]
    tokens = [torch.tensor([plain.tokenizer(one)["input_ids"]]) for one in asked]
    known = [model(input_ids=one, output_hidden_states=True).hidden_states[2][0] for one in tokens]
    save_router(folder, scoped(load_router(folder), known, one_token=True))
    routed = RoutedModel.from_pretrained(folder, budget=4.0)
    place = next(i for i, one in enumerate(tokens) if routed.route(one)[0].one_token)
    arguments = ["generate", str(folder), "--prompt", asked[place], "--budget", "4"]
    main([*arguments, "--json", "true"])
    told = json.loads(capsys.readouterr().out)
    (first,) = routed.generate(input_ids=tokens[place], **GREEDY)[:, -1:].tolist()
    assert (told["one_token"], told["text"]) == (True, routed.tokenizer.decode(first))
    main(arguments)
    assert "layers: " in (said := capsys.readouterr().err)
    assert "an answer of one token]" in said
    main(["route", str(folder), "--prompt", asked[place], "--budget", "4"])
    chain = routed.route(tokens[place])[0].chain
    assert f"{chain.depth} of {chain.num_layers} layers, an answer of one token, score" in capsys.readouterr().out
    main(["route", str(folder), "--prompt", asked[place], "--budget", str(chain.num_layers)])
    assert "an answer of one token" not in capsys.readouterr().out
