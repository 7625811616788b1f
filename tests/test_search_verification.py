"""Which chains are judged again, that they run in other batches then, and how flips are counted."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from data.encoding import EncodedSample
from data.records import ChainResult, SearchRecord, read_records
from data.scoring import ChainScorer, SampleBlock
from router.chain import Chain
from router.engine.capture import LayerCapture
from router.heads.layerwise import classes_of
from search.__main__ import main
from search.summary import Agreement, Summary
from search.verification import chains_to_verify, companies
from tests import menus
from tests.test_search_run import arguments
from tests.tiny import write_project
from tests.toys import space_of
from train.objectives import layer_classes

N = 8


def made_up(rng: random.Random, count: int) -> list[ChainResult]:
    """Return results of random chains behind a prefix of two layers, the full chain first; margins often equal."""
    space = space_of(N, 2, max_depth=14)
    chains = {Chain.full(N): None}
    while len(chains) < count:
        chain = rng.choice(list(chains))
        if space.count(chain):
            chains[space.sample(chain, rng).apply(chain)] = None
    return [ChainResult.from_scores(chain, (rng.randint(-4, 4) / 2, 0.0), 0) for chain in chains]


def record_of(results: list[ChainResult], mode: str = "letter") -> SearchRecord:
    return menus.record_of("0" * 16, results, mode=mode, first_editable=2)


def best(results: list[ChainResult], rule: str) -> ChainResult | None:
    """The label among some results that were not refused, by the definition."""
    standing = [result for result in results if result.correct and result.verified is not False]
    depth_first = lambda one: (one.chain.depth, -one.margin)  # noqa: E731
    margin_first = lambda one: (-one.margin, one.chain.depth)  # noqa: E731
    return min(standing, key=depth_first if rule == "shortest" else margin_first, default=None)


@pytest.mark.parametrize("seed", range(8))
def test_every_label_has_stood_its_verification(seed: int) -> None:
    # Oracle: training's own choice of labels, and the definition of a label for each kind of chain. Flips are drawn.
    rng = random.Random(seed)
    results = made_up(rng, 60)
    assert 0 in chains_to_verify(results, 2)
    while places := chains_to_verify(results, 2):
        for i in places:
            assert results[i].verified is None
            results[i] = dataclasses.replace(results[i], verified=rng.random() < 0.5, verified_by="letter")
    judged = {result.chain.layers: result for result in results}
    for rule in ("shortest", "margin"):
        for kind in (lambda _: True, lambda chain: classes_of(chain, 2) is not None):
            label = best([result for result in results if kind(result.chain)], rule)
            assert label is None or label.verified
    classes = layer_classes(record_of(results), record_of(results).first_editable)
    if classes is not None:
        assert judged[Chain.from_counts((1, 1, *classes)).layers].verified
    assert sum(result.verified is not None for result in results) < 30  # and not simply everything was judged


def shapes(lengths: list[list[int]], group: list[int], batch_tokens: int) -> list[set[tuple[int, int]]]:
    """The first layer's calls of a group, as the executor cuts them, written anew: for each member its shapes."""
    rows = sorted((length, place) for place, i in enumerate(group) for length in lengths[i])
    calls: list[list[tuple[int, int]]] = []
    for row in rows:
        if calls and row[0] * (len(calls[-1]) + 1) <= batch_tokens:
            calls[-1].append(row)
        else:
            calls.append([row])
    found: list[set[tuple[int, int]]] = [set() for _ in group]
    for call in calls:
        for _, place in call:
            found[place].add((len(call), call[-1][0]))
    return found


@pytest.mark.parametrize("seed", range(16))
def test_in_its_company_every_row_runs_in_a_call_of_another_shape(seed: int) -> None:
    # Oracle: the calls written out anew. Rows that run alone in any company are left out: nothing can change there;
    # so are samples of several rows, of which only the whole is checked.
    rng = random.Random(seed)
    n, tokens = rng.choice([1, 2, 3, 8, 32]), rng.choice([100, 256, 1024])
    same = rng.random() < 0.3
    lengths = [[40 if same else rng.randint(20, 90)] * rng.choice([1, 1, 4] if seed % 2 else [1]) for _ in range(n)]
    groups = companies(lengths, tokens)
    assert sorted({i for group in groups for i in group}) == list(range(n))
    assert len([i for group in groups for i in set(group)]) == n
    before = shapes(lengths, list(range(n)), tokens)
    for group in groups:
        for place, after in enumerate(shapes(lengths, group, tokens)):
            i = group[place]
            if len(lengths[i]) == 1 and 3 * max(lengths[i]) <= tokens:
                assert not after & before[i], (lengths, groups)


@pytest.mark.parametrize("batch_samples", [1, 4])
def test_layers_run_in_other_batches_when_chains_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_samples: int
) -> None:
    # Oracle: the shapes in which the layers before every edit really ran: the first `rounds` calls are the search's.
    project = write_project(tmp_path, train=4)
    calls: list[tuple[int, ...]] = []
    loading: list[object] = []
    run_layer, load = LayerCapture.run_layer, ChainScorer.load

    def noted(self: LayerCapture, layer: int, hidden: Tensor, *arguments: object, **named: object) -> object:
        if layer == 1 and not loading:
            calls.append(tuple(hidden.shape[:2]))
        return run_layer(self, layer, hidden, *arguments, **named)  # type: ignore[arg-type]

    def loaded(self: ChainScorer, samples: Sequence[EncodedSample], *, share: bool = True) -> SampleBlock:
        loading.append(self)  # which may run layers on rows of its own to learn the masks
        try:
            return load(self, samples, share=share)
        finally:
            loading.pop()

    monkeypatch.setattr(LayerCapture, "run_layer", noted)
    monkeypatch.setattr(ChainScorer, "load", loaded)
    words = {"batch_samples": batch_samples, "first_editable": 2}
    main(arguments(project, tmp_path / "a", verify="false", **words))
    alone, calls[:] = list(calls), []
    main(arguments(project, tmp_path / "b", **words))
    assert len(calls) > len(alone)
    again = list(calls)
    for shape in alone:
        again.remove(shape)  # what is left is the verification's
    assert again
    assert not set(again) & set(alone)
    marks = [one.verified for record in read_records(tmp_path / "b" / "train.jsonl") for one in record.results]
    assert any(marks)
    assert not any(mark is False for mark in marks)  # float32


def marked(margin: float, verified: bool | None, *, scores: bool = True) -> ChainResult:
    if not scores:
        one = ChainResult.from_answer(Chain.full(N), "x", margin > 0)
        return dataclasses.replace(one, verified=verified, verified_by="generate")
    one = ChainResult.from_scores(Chain.full(N), (margin, 0.0), 0)
    return dataclasses.replace(one, verified=verified, verified_by=None if verified is None else "letter")


def test_flips_are_counted_by_margin() -> None:
    # Oracle: made-up marks, counted by hand.
    results = [
        *[marked(0.01, True)] * 3,
        marked(0.049, False),
        marked(0.05, True),
        *[marked(0.5, True)] * 5,
        marked(0.999, False),
        *[marked(1.0, True)] * 4,
        marked(7.0, None),
        marked(-0.3, False),
        marked(-2.0, True),
    ]
    letters = (
        "letter verified by letter: 26 of 30 right answers and 2 of 4 wrong answers confirmed, right ones flipped by "
        "margin (nats): below 0.05 2 of 8, to 0.2 0 of 2, to 1 2 of 12, above 0 of 8"
    )
    assert Agreement([record_of(results), record_of(results)]).line() == letters
    exact = [dataclasses.replace(one, verified_by="generate") for one in (marked(0.5, True), marked(0.5, False))]
    assert Agreement([record_of(results), record_of(exact, "exact"), record_of(results)]).line() == (
        f"exact verified by generate: 1 of 2 right answers confirmed, right ones flipped by margin (logits): "
        f"to 1 1 of 2; {letters}"
    )


def test_generated_answers_have_no_margin() -> None:
    results = [*[marked(1, True, scores=False)] * 3, marked(1, False, scores=False), marked(-1, True, scores=False)]
    line = "generate verified by generate: 3 of 4 right answers and 1 of 1 wrong answers confirmed"
    assert Agreement([record_of(results, "generate")]).line() == line
    assert Agreement([record_of([marked(1.0, None)])]).line() == ""


def test_a_summary_takes_no_refuted_answer_for_a_right_one() -> None:
    # Oracle: counting; full depth is a chain too, so no more samples can have it right than some chain.
    refuted = record_of([marked(1.0, False)])
    (line, *_) = Summary([refuted, record_of([marked(1.0, True)])], {"none"}).lines(1.0, 1)
    assert "full depth right 0.500; some chain right 0.500" in line


def test_a_run_prints_how_far_it_was_confirmed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: the marks in the records.
    project = write_project(tmp_path)
    main(arguments(project, tmp_path / "out"))
    records = read_records(tmp_path / "out" / "train.jsonl")
    right = [one for record in records for one in record.results if one.correct and one.verified is not None]
    line = f"train: continuation verified by continuation: {len(right)} of {len(right)} right answers"
    assert line in capsys.readouterr().out
    main(arguments(project, tmp_path / "plain", verify="false"))
    assert "verified" not in capsys.readouterr().out
