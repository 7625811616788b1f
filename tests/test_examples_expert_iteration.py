"""The expert-iteration example end to end on a tiny model: rounds, what goes on after a stop, and the new task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.records import read_records
from data.sample import read_samples, write_samples
from data.tasks import TaskSet, load_task, write_tasks
from examples.expert_iteration import found_in, main
from router.command import run_command
from router.durable import sha256_file
from router.storage import load_router
from search.prior_file import read_prior
from tests.tiny import NUM_LAYERS, tiny_samples, write_project

SPLITS = ("train", "validation")
QUICK = "[--trainer.max_epochs=2,--trainer.enable_progress_bar=false,--tracking.mode=disabled,--model.hidden=8]"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a task in `data/` and the same questions asked otherwise, a new task, in `other/`."""
    folder = write_project(tmp_path_factory.mktemp("world"), train=24, validation=8)
    (folder / "other").mkdir()
    write_tasks(folder / "other", TaskSet.of(load_task("arc_easy", "letter")))
    for split, count in (("train", 16), ("validation", 6)):
        write_samples(folder / "other" / f"{split}.jsonl", tiny_samples(split, 40)[-count:])
    return folder


def arguments(world: Path, out: Path, head: str, **changes: object) -> list[str]:
    settings = {
        "data": world / "data", "out": out, "prefix_layers": 2, "rounds": 2, "head": head, "model": world / "model",
        "dtype": "float32", "device": "cpu", "search_args": "[--search.simulations=12]", "train_args": QUICK,
        "menu_args": "[--tried=1,--size=6,--least=0.0,--max_depth=4]",
    } | changes  # fmt: skip
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="module")
def iterated(world: Path) -> dict[str, Path]:
    """Two finished rounds with a program head and two with a menu head."""
    for head in ("program", "menu"):
        main(arguments(world, world / head, head))
    return {head: world / head for head in ("program", "menu")}


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("head", ["program", "menu"])
def test_the_second_round_searches_with_the_first_ones_router_as_prior(
    world: Path, iterated: dict[str, Path], head: str
) -> None:
    # Oracle: the files of the stages themselves.
    out = iterated[head]
    prior = read_prior(out / "round-1" / "prior.json")
    assert prior.source["weights_sha256"] == sha256_file(out / "round-0" / "router" / "router.safetensors")
    ids = {sample.id for split in SPLITS for sample in read_samples(world / "data" / f"{split}.jsonl")}
    assert set(prior.samples) == ids
    told = [read(out / f"round-{i}" / "records" / "train.settings.json")["runs"][-1]["settings"] for i in (0, 1)]
    assert [one["prior"] for one in told] == [None, str(out / "round-1" / "prior.json")]
    tried = [
        [[result.chain for result in record.results] for record in read_records(path)]
        for path in (out / f"round-{i}" / "records" / "train.jsonl" for i in (0, 1))
    ]
    assert tried[0] != tried[1]
    assert load_router(out / "round-1" / "router").config.head == head


def test_the_logged_figures_are_those_of_the_records(iterated: dict[str, Path]) -> None:
    # Oracle: the definitions, counted here from the records.
    rounds = read(iterated["program"] / "rounds.json")["rounds"]
    assert [one["round"] for one in rounds] == [0, 1]
    for i, one in enumerate(rounds):
        folder = iterated["program"] / f"round-{i}"
        for split in SPLITS:
            records = read_records(folder / "records" / f"{split}.jsonl")
            figures = one["search"][split]
            right = [[r.chain.depth for r in record.results if r.correct] for record in records]
            shortest = [min(depths) for depths in right if depths]
            volumes = [max(0, 2 * NUM_LAYERS - min(depths)) / (2 * NUM_LAYERS) if depths else 0.0 for depths in right]
            assert figures["full_depth_accuracy"] == sum(r.full.correct for r in records) / len(records)
            assert figures["right"] == len(shortest) / len(records)
            assert figures["shortest"] == pytest.approx(sum(shortest) / len(shortest))
            assert figures["hypervolume"] == pytest.approx(sum(volumes) / len(volumes))
        assert one["router_on_validation"] == read(folder / "router" / "train.json")["validation"]


def test_a_stopped_run_goes_on_and_finished_stages_are_left_alone(
    iterated: dict[str, Path], tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: the unbroken run's files; a stage that is finished must not be run again.
    out = Path(shutil.copytree(iterated["program"], tmp_path / "out"))
    before = read(out / "rounds.json")["rounds"]
    (out / "rounds.json").unlink()
    shutil.rmtree(out / "round-1" / "router")

    def never(*_: object) -> None:
        raise AssertionError("this stage was finished")

    for name in ("examples.stages.search", "examples.expert_iteration.make_prior"):
        monkeypatch.setattr(name, never)
    main(arguments(world, out, "program"))
    assert read(out / "rounds.json")["rounds"] == before
    assert found_in(out / "round-0" / "records" / "train.jsonl") == before[0]["search"]["train"]


def test_another_experiment_in_the_same_folder_is_refused(
    iterated: dict[str, Path], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = arguments(world, iterated["program"], "program", search_args="[--search.simulations=13]")
    assert run_command(main, changed) == 2
    assert "the same search_args" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["program", "menu"])
def test_transfer_compares_starts_on_the_same_records_and_measures_the_old_task_before_and_after(
    iterated: dict[str, Path], tmp_path: Path, world: Path, head: str
) -> None:
    # Oracle: the routers' own weights and files, and the table's columns for the static chain.
    out = Path(shutil.copytree(iterated[head], tmp_path / "out"))
    main(arguments(world, out, head, new_task=world / "other", sizes="[4,16]", seeds="[5]", budget=4.5))
    folder = out / "transfer"
    written = read(folder / "transfer.json")
    assert written["validation_questions_seen_by_old_router"] == 0  # the tasks share no question
    entries = written["entries"]
    assert [(one["start"], one["samples"]) for one in entries] == [
        ("old router as it is", 0),
        ("from scratch", 4), ("warm start", 4), ("from scratch", 16), ("warm start", 16),
    ]  # fmt: skip
    old = load_router(out / "round-1" / "router")
    seen = set(read(out / "round-1" / "router" / "trained_on.json")["split_hashes"])
    for size in (4, 16):
        scratch, warm = (folder / f"{start}-{size}-5" for start in ("from-scratch", "warm-start"))
        kept = "encoder.bottleneck.weight"
        drift = [
            (load_router(one).head.state_dict()[kept] - old.head.state_dict()[kept]).abs().mean()
            for one in (warm, scratch)
        ]
        assert drift[0] < 0.5 * drift[1]  # two epochs move a weight little; another initialisation is elsewhere
        assert seen <= set(read(warm / "trained_on.json")["split_hashes"])
        assert not seen <= set(read(scratch / "trained_on.json")["split_hashes"])
    # What is measured of the old router on its own task is what its training measured there.
    then = old.config.training["validation"]
    before = entries[0]["old_task"]
    assert {name: before[name] for name in then if name in before} == pytest.approx(
        {name: then[name] for name in then if not name.startswith("head_")}  # the head's cost, which is no quality
    )
    if head == "menu":
        table = read_records(folder / "records" / "train.jsonl")
        assert [result.chain for result in table[0].results] == list(old.head.chains)
        known = sorted(table, key=lambda record: record.sample_id)
        held_out = read_records(folder / "records" / "validation.jsonl")
        for entry in entries[1:]:
            new, size = entry["new_task"], entry["samples"]
            right = {
                chain: sum(record.results[i].correct for record in known[:size])
                for i, chain in enumerate(old.head.chains)
                if chain.depth <= 4.5
            }
            best = [chain for chain in right if right[chain] == max(right.values())]
            shares = {
                (chain.depth, sum(r.correct for record in held_out for r in record.results if r.chain == chain) / 6)
                for chain in best
            }
            assert (new["static_depth"], new["static_accuracy"]) in shares
        assert any("priced_depth" in one["new_task"] for one in entries)
        assert all(one["new_task"].get("priced_depth", 4.5) <= 5 for one in entries)


def test_sizes_beyond_the_new_tasks_records_are_refused(
    iterated: dict[str, Path], tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(iterated["program"], tmp_path / "out"))
    assert run_command(main, arguments(world, out, "program", new_task=world / "other", sizes="[17]")) == 2
    assert "sizes: expected at most the new task's 16 records, got 17" in capsys.readouterr().err
