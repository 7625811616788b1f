"""The read-layer profile: what it observes, against single runs and the stock model; its files, table and figure."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data import profile as profiling
from data.__main__ import main
from data.probes import Measure, Observations, Profile, Skip, probe
from data.profile import confidence_of, draw, observe, table, without
from data.records import ChainResult
from data.sample import Sample, read_samples, write_samples
from data.scoring import ChainScorer
from data.tasks import TaskSet, load_task, read_tasks, write_tasks
from router.chain import Chain
from router.command import run_command
from router.validation import InputError
from tests.conftest import Refusal
from tests.sums import SUMS, digit_model, sums, write_sums
from tests.test_data_probes import LAYERS, planted
from tests.tiny import FULL, NUM_LAYERS, scorer_of, tiny_model, tiny_samples, tiny_tokenizer, write_project

SKIPS = [(4,), (1,), (2, 3), (1, 4)]


def scorer_for(mode: str = "letter", packed: bool = True) -> ChainScorer:
    if mode == "exact":
        return ChainScorer(digit_model(), tiny_tokenizer(), SUMS)
    return ChainScorer(tiny_model("llama"), tiny_tokenizer(), load_task("arc_easy", mode), packed=packed)


def observed_by(
    scorer: ChainScorer, samples: list[Sample], out: Path, skips: list[Skip] = SKIPS, batch_samples: int = 4
) -> Observations:
    return observe(scorer, samples, skips, out, {}, batch_samples)


@pytest.mark.parametrize("mode", ["letter", "continuation", "exact"])
def test_answers_are_those_of_each_chain_run_alone(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: every chain in a block of its own, one sample at a time, its layers written out.
    scorer, samples = scorer_for(mode), (sums if mode == "exact" else tiny_samples)("train", 8)
    monkeypatch.setattr("data.scoring.JOBS_PER_CALL", 7)  # calls end within a chain
    observed = observed_by(scorer, samples, tmp_path)
    assert list(observed.kept) == SKIPS
    differing = 0
    for i, sample in enumerate(samples):

        def alone(chain: Chain, sample: Sample = sample) -> ChainResult:
            return scorer.score(scorer.load([scorer.encode(sample)]), [(0, chain)])[0]

        full = alone(FULL)
        assert observed.correct[i] == full.correct
        if sample.choices:
            confidence = float(np.exp(full.scores)[full.prediction] / np.exp(full.scores).sum())
        else:
            confidence = float(np.prod(np.exp(full.scores)))
        assert observed.confidence[i] == pytest.approx(confidence, abs=1e-4)
        for skip in SKIPS:
            result = alone(Chain(tuple(layer for layer in range(NUM_LAYERS) if layer not in skip), NUM_LAYERS))
            kept = (result.prediction, result.correct) == (full.prediction, full.correct)
            assert observed.kept[skip][i] == kept
            differing += not kept
    assert 0 < differing < len(samples) * len(SKIPS)


def three_choices(count: int) -> list[Sample]:
    """Samples that list three or more choices."""
    return [one for one in tiny_samples("train", 4 * count) if len(one.choices) > 2][:count]


def test_variants_are_answered_as_each_alone_and_change_nothing_else(tmp_path: Path) -> None:
    # Oracle: each variant's tasks, every chain in a block of its own; the same observations without variants.
    scorer, samples = scorer_for(), three_choices(6)
    usual = observed_by(scorer, samples, tmp_path / "usual")
    observed = observe(scorer, samples, SKIPS, tmp_path / "varied", {}, 4, variants=3)
    assert equal(observed, usual)
    assert "margins" not in (tmp_path / "usual" / "answers.jsonl").read_text()
    assert usual.margins is None
    assert observed.margins is not None
    for v in range(3):
        alone = scorer.with_tasks(scorer.tasks.varied(v))
        for i, sample in enumerate(samples):
            for j, chain in enumerate((FULL, *(without(skip, NUM_LAYERS) for skip in SKIPS))):
                (result,) = alone.score(alone.load([alone.encode(sample)]), [(0, chain)])
                assert observed.margins[v, i, j] == pytest.approx(result.margin, abs=1e-4)
    assert np.ptp(observed.margins, axis=0).max() > 0.01  # the variants differ
    headroom = profiling.headroom_of(samples, observed, 0)
    assert headroom is not None
    full = headroom.accuracy["full"]
    assert full is not None
    assert full.share == pytest.approx((observed.margins[:, :, 0] > 0).mean())
    assert headroom.depth["full"] == NUM_LAYERS


def test_samples_are_asked_in_as_many_variants_as_they_have() -> None:
    # Oracle: by hand. Sums list nothing and have one wording; two choices have two orders; more have three.
    scorer, samples = scorer_for(), three_choices(6)
    assert [profiling.variants_of(scorer, samples, wanted) for wanted in (None, 1, 4)] == [3, 1, 4]
    two = replace(samples[0], choices=samples[0].choices[:2], answer=0)
    assert profiling.variants_of(scorer, [*samples, two], None) == 2
    assert profiling.variants_of(scorer_for("exact"), sums("train", 6), None) == 1
    with pytest.raises(InputError, match="variant: expected below 1"):
        profiling.variants_of(scorer_for("exact"), sums("train", 6), 2)


@pytest.mark.parametrize(("mode", "packed"), [("letter", True), ("continuation", False), ("exact", True)])
def test_features_are_the_stock_hidden_states(mode: str, packed: bool, tmp_path: Path) -> None:
    # Oracle: one row a continuation through the stock model; `hidden_states[e]` of the prompt's last token, and the
    # mean over the prompt's tokens and each continuation's without its last. A free answer is not read.
    scorer, samples = scorer_for(mode, packed), (sums if mode == "exact" else tiny_samples)("test", 4)
    model = digit_model() if mode == "exact" else tiny_model("llama")
    observed = observed_by(scorer, samples, tmp_path, batch_samples=3)
    assert sorted(observed.features) == list(range(1, NUM_LAYERS))
    for i, sample in enumerate(samples):
        encoded = scorer.encode(sample)
        n = len(encoded.prompt)
        added = [()] if mode == "exact" else [tokens[:-1] for tokens in encoded.continuations]
        rows = [torch.tensor([[*encoded.prompt, *tokens]]) for tokens in added]
        stock = [model(row, output_hidden_states=True).hidden_states for row in rows]
        for e, features in observed.features.items():
            assert (features.dtype, features.shape) == (np.float32, (len(samples), 2 * scorer.d_model))
            joined = torch.cat([stock[0][e][0, :n], *(states[e][0, n:] for states in stock)])
            wanted = torch.cat([joined[n - 1], joined.mean(0)]).numpy()
            np.testing.assert_allclose(features[i], wanted, rtol=0, atol=2e-5)


def test_shared_prefixes_are_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: counted by hand. 5 layers of full depth, and after each single skip of layer l the n - 1 - l behind it.
    scorer, blocks = scorer_for(), []
    load = scorer.load
    monkeypatch.setattr(scorer, "load", lambda encoded: blocks.append(load(encoded)) or blocks[-1])
    observed_by(scorer, tiny_samples("train", 3), tmp_path, [(1,), (2,), (3,), (4,)], batch_samples=2)
    assert [[block.executed(i) for i in range(len(block.samples))] for block in blocks] == [[5 + 3 + 2 + 1] * 2, [11]]


def test_a_generated_answer_has_no_confidence() -> None:
    # Oracle: it has no scores.
    free = Sample("t", "train", "How many?", (), "12")
    assert confidence_of(free, ChainResult.from_answer(FULL, "12", True)) is None


def test_a_state_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    # Oracle: a model one of whose weights overflows, as in float16; nothing is kept.
    model = tiny_model("llama")
    model.get_input_embeddings().weight.data[:, 0] = math.inf
    with pytest.raises(InputError, match="dtype: expected finite states at layer 1 in float32"):
        observed_by(ChainScorer(model, tiny_tokenizer(), load_task("arc_easy")), tiny_samples("train", 2), tmp_path)
    assert not list(tmp_path.iterdir())


def equal(one: Observations, other: Observations) -> bool:
    """Whether two observations are the same, but for rounding in batches of another composition."""
    return (
        all(np.allclose(one.features[e], other.features[e], rtol=0, atol=2e-5) for e in one.features)
        and np.allclose(one.confidence, other.confidence, atol=1e-5)
        and np.array_equal(one.correct, other.correct)
        and all(np.array_equal(one.kept[skip], other.kept[skip]) for skip in SKIPS)
    )


def test_stopped_observations_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: the observations of an unbroken run with other batches. What was kept is not made again: not after a stop
    # at the third batch, and of a damaged or deleted file of states only its batch.
    scorer, samples = scorer_for(), tiny_samples("train", 10)
    whole = observed_by(scorer, samples, tmp_path / "whole", batch_samples=10)
    runs = []

    def counted(*arguments: object) -> object:
        runs.append(arguments)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return answers_of(*arguments)

    answers_of = profiling.answers_of
    monkeypatch.setattr(profiling, "answers_of", counted)
    with pytest.raises(KeyboardInterrupt):
        observed_by(scorer, samples, tmp_path, batch_samples=3)
    assert equal(observed_by(scorer, samples, tmp_path, batch_samples=3), whole)
    assert len(runs) == 3 + 2
    first, second, *_ = sorted((tmp_path / "states").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    assert equal(observed_by(scorer, samples, tmp_path, batch_samples=3), whole)
    assert len(runs) == 3 + 2 + 2


@pytest.fixture(scope="module")
def made_up() -> Profile:
    return probe(planted(n=80), resamples=20)


def test_the_table_has_a_line_a_layer_and_says_what_is_missing(made_up: Profile) -> None:
    # Oracle: the profile's numbers as text.
    lines = table(made_up).splitlines()
    assert lines[0].split()[:2] == ["e", "editable"]
    for one, line in zip(made_up.layers, lines[1:], strict=False):
        assert line.split()[:3] == [str(one.read_layer), str(one.editable), f"{one.confidence.value:.3f}"]
        assert f"{one.kept.value:.3f} [{one.kept.interval[0]:.3f}..{one.kept.interval[1]:.3f}]" in line
    assert lines[-1] == f"suggestion: {made_up.suggestion.reason}"
    missing = Measure(None, None, 80, 0, 0, "planted")
    layers = tuple(replace(one, correct=missing) for one in made_up.layers)
    assert "e = 1, 2, 3, 4, 5, 6, 7: no correct: planted" in table(replace(made_up, layers=layers))


def test_a_layer_without_a_value_is_a_gap_in_the_figure(made_up: Profile) -> None:
    # Oracle: the lines' data.
    gap = replace(made_up.layers[2], kept=Measure(None, None, 80, 0, 0, "planted"))
    figure = draw(replace(made_up, layers=(*made_up.layers[:2], gap, *made_up.layers[3:])), "gap")
    drawn = figure.axes[2].lines[0].get_ydata()
    assert len(drawn) == LAYERS - 1
    assert np.isnan(drawn[2])
    assert drawn[3] == made_up.layers[3].kept.value


def test_the_command_profiles_a_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: Refusal) -> None:
    # Oracle: the observations of one pass; another measurement is never mixed in.
    project, out = write_sums(tmp_path, count=30, letters=10), tmp_path / "profile"
    words = ["profile", f"--data={project / 'data'}", f"--model={project / 'model'}", f"--out={out}"]
    words += ["--dtype=float32", "--resamples=20", "--folds=4", "--components=4"]
    assert run_command(main, words) == 0
    value = json.loads((out / "profile.json").read_text())["profile"]
    assert [layer["read_layer"] for layer in value["layers"]] == [1, 2, 3, 4]
    assert value["samples"] == 40
    assert (out / "profile.png").stat().st_size > 5000
    assert b"<svg" in (out / "profile.svg").read_bytes()
    printed = capsys.readouterr().out
    assert "suggestion:" in printed
    assert "headroom: not measured (--variants)" in printed  # the sums have nothing to vary
    scorer = scorer_of(project, read_tasks(project / "data"))
    samples = read_samples(project / "data" / "train.jsonl")
    seen = observed_by(scorer, samples, tmp_path, [(2,), (3,), (4,)])
    assert value["accuracy"] == pytest.approx(np.mean(seen.correct))
    for change, message in (
        ("--first_skip=3", "made with another first_skip"),
        ("--first_skip=5", "first_skip: expected 1..4, got 5"),
        ("--limit=10", "folds: expected at least 4 samples each, got 10 for 4 folds"),
        ("--folds=1", "folds: expected at least 2, got 1"),
        ("--out=/proc/profile", "out: expected a directory that can be written"),
    ):
        assert message in refusal(main, [*words, change])


def test_the_command_says_whether_there_is_something_to_route(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the measures in the file, and what stands in the answers.
    project, out = write_project(tmp_path), tmp_path / "profile"
    write_tasks(project / "data", TaskSet.of(load_task("arc_easy", "letter")))
    write_samples(project / "data" / "train.jsonl", three_choices(24))
    words = ["profile", f"--data={project / 'data'}", f"--model={project / 'model'}", f"--out={out}"]
    assert run_command(main, [*words, "--dtype=float32", "--resamples=20", "--folds=4"]) == 0
    found = json.loads((out / "profile.json").read_text())["headroom"]
    assert (found["n"], found["variants"], found["held_out"], found["depth"]["full"]) == (24, 3, False, NUM_LAYERS)
    rows = [json.loads(line)["margins"] for line in (out / "answers.jsonl").read_text().splitlines()]
    right = np.array(rows) > 0
    assert right.shape == (24, 3, 1 + 3)
    assert found["accuracy"]["full"]["share"] == pytest.approx(right[:, :, 0].mean())
    assert found["accuracy"]["oracle"]["share"] == pytest.approx(right.any(2).mean())
    line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith("headroom: "))
    assert f"judged anew gains {found['over_full']['anew']['value']:+.3f} (" in line
