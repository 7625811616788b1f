"""`python -m train` end to end on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from data.records import ChainResult, SearchRecord, pareto_front, read_records
from data.sample import read_samples
from data.states import compute_states
from data.tasks import TaskSet, load_task, read_tasks, write_tasks
from data.tracking import TrackingSettings
from router.__main__ import main as router_command
from router.chain import Chain
from router.command import run_command
from router.decision import OperatingPoint, Operation
from router.fingerprint import Fingerprints
from router.storage import load_router
from router.validation import to_plain
from search.__main__ import main as search
from tests.conftest import Refusal
from tests.menus import write_records
from tests.test_search_run import arguments as search_arguments
from tests.tiny import FULL, NUM_LAYERS, save_tiny, scorer_of, write_project
from tests.wandb_runs import run_files
from train.__main__ import _deciding, main
from train.module import HeadSettings
from train.operating import POINTS


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose train and validation splits have been searched, and a router trained on them."""
    folder = write_project(tmp_path_factory.mktemp("searched"), train=60, validation=20)
    few = {"splits": "[train,validation]", "first_editable": 2, "search__simulations": 6, "verify": "false"}
    search(search_arguments(folder, folder / "records", **few))
    main(arguments(folder))
    return folder


@pytest.fixture
def project(searched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(searched, tmp_path / "project"))


def arguments(project: Path, **changes: object) -> list[str]:
    settings = {
        "out": project / "router",
        "data": project / "data",
        "records": project / "records",
        "model": project / "model",
        "trainer.max_epochs": 3,
        "trainer.enable_progress_bar": "false",
        "tracking.mode": "disabled",
    } | {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--{name}={value}" for name, value in settings.items()]


def test_what_decides_a_router_is_as_before_some_settings_left() -> None:
    # Oracle: the head's settings at commit b247e29, by hand. A finished router is not trained anew.
    head = _deciding({"head": to_plain(HeadSettings(kind="menu")), "late_read_layer": None})["head"]
    assert head["layerwise"] == {"target": "shortest", "gamma": 2.0, "beta": 0.99}
    assert head["menu"] == {"agreement": 0.5, "auxiliary": 0.1, "softness": 0.0}


def test_the_router_of_the_best_epoch_is_written_and_routes(project: Path) -> None:
    # Oracle: fingerprints of the records, states computed by hand, the routes' own laws; the questions of train and
    # validation, and none of test.
    record = read_records(project / "records" / "train.jsonl")[0]
    router = load_router(project / "router", record.fingerprints)
    assert (router.config.num_layers, router.config.read_layer) == (NUM_LAYERS, 2)
    scorer = scorer_of(project)
    samples = read_samples(project / "data" / "test.jsonl")
    chains = [one.chain for one in router.decide(list(compute_states(scorer, samples, 2, "states").values()))]
    assert all(chain.layers[:2] == (0, 1) and max(chain.to_counts()) <= 2 for chain in chains)
    told = json.loads((project / "router" / "train.json").read_text())
    assert set(told["versions"]) >= {"torch", "transformers", "lightning"}
    assert told["validation"]["mean_depth"] == router.config.training["validation"]["mean_depth"]
    seen = set(json.loads((project / "router" / "trained_on.json").read_text())["split_hashes"])
    hashes = {
        split: {sample.split_hash for sample in read_samples(project / "data" / f"{split}.jsonl")}
        for split in ("train", "validation", "test")
    }
    assert seen == hashes["train"] | hashes["validation"]
    assert not seen & hashes["test"]


def test_info_shows_how_prompts_look_that_the_router_knows(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: a sample's own prompt, its words put into the braces.
    assert not run_command(router_command, ["info", str(searched / "router")])
    shown = capsys.readouterr().out
    assert "prompts of arc_easy (plain text; the answer begins with Answer:)" in shown
    form = load_router(searched / "router").config.training["prompts"]["arc_easy"]["asked"]
    assert all(f"  {line}\n" in shown for line in form.splitlines())
    task = read_tasks(searched / "data")["arc_easy"]
    sample = read_samples(searched / "data" / "train.jsonl")[0]
    assert form.replace("{question}", sample.question) == task.query(sample).asked


def test_the_accuracy_of_operating_points_is_measured_on_all_of_validation(project: Path) -> None:
    # Oracle: every sample under the chain that the written router picks, one by one; full depth as the records have it.
    router = load_router(project / "router")
    records = read_records(project / "records" / "validation.jsonl")
    samples = read_samples(project / "data" / "validation.jsonl")
    scorer = scorer_of(project)
    made = compute_states(scorer, samples, 2, "states")
    states = [made[sample.id] for sample in samples]
    block = scorer.load(scorer.encode_all(samples))
    known = {record.sample_id: {one.chain: one.stands for one in record.results} for record in records}

    def right(place: int, chain: Chain) -> bool:
        own = known[samples[place].id]
        if chain not in own:
            own[chain] = scorer.score(block, [(place, chain)])[0].stands
        return own[chain]

    def accuracy(operation: Operation) -> float:
        chosen = router.decide(states, operation)
        return sum(right(place, one.chain) for place, one in enumerate(chosen)) / len(samples)

    own = router.measured()
    assert own is not None
    assert own.accuracy == accuracy(Operation())
    assert own.full_accuracy == sum(record.full.stands for record in records) / len(records)
    assert own.chance_accuracy == pytest.approx(sum(1 / len(sample.choices) for sample in samples) / len(samples))
    assert own.samples == len(samples) == 20
    assert own.mean_depth == pytest.approx(sum(one.chain.depth for one in router.decide(states)) / len(samples))
    measured = [point for point in router.config.budget_points if point.accuracy is not None]
    assert len(measured) >= min(POINTS, len(router.config.budget_points))
    for point in measured:
        assert point.accuracy == accuracy(Operation(point=OperatingPoint(point.offset)))
        near = router.measured(point.mean_depth)
        assert near is not None
        assert near.accuracy == point.accuracy


def refuted(record: SearchRecord) -> SearchRecord:
    """The record, in which a second run has refuted full depth."""
    results = (dataclasses.replace(record.full, verified=False), *record.results[1:])
    return dataclasses.replace(record, results=results)


def test_measures_compare_like_with_like(project: Path) -> None:
    # Oracle: counting. A second run refuted full depth everywhere; of the chains that the router picks there is none.
    path = project / "records" / "validation.jsonl"
    records = read_records(path)
    write_records(path, [refuted(one) for one in records])
    main(arguments(project, trainer__max_epochs=1))
    own = load_router(project / "router").measured()
    assert own is not None
    assert own.full_accuracy == sum(record.full.correct for record in records) / len(records) > 0


def test_budgets_and_calibration_know_the_scope_and_the_head_does_not(project: Path) -> None:
    # Oracle: what the router decides on validation; the run without a scope, whose head is the same to the bit.
    main(arguments(project, out=project / "plain", scope="null"))
    main(arguments(project, out=project / "narrow", scope__share=0.25))
    plain, narrow = (load_router(project / name) for name in ("plain", "narrow"))
    assert plain.scope is None
    assert "out_of_scope" not in plain.config.training["validation"]
    for name, tensor in narrow.head.state_dict().items():
        assert torch.equal(tensor, plain.head.state_dict()[name])
    samples = read_samples(project / "data" / "validation.jsonl")
    states = list(compute_states(scorer_of(project), samples, 2, "states").values())
    decided = narrow.decide(states)
    assert [one.in_scope for one in decided].count(False) == 5
    assert all(one.chain.is_full for one in decided if not one.in_scope)
    assert narrow.config.training["validation"]["out_of_scope"] == 0.25
    # The greatest price: all that is inside runs at its shallowest.
    cheapest = min(narrow.config.budget_points, key=lambda point: point.mean_depth)
    inside = [i for i, one in enumerate(decided) if one.in_scope]
    least = narrow.decide([states[i] for i in inside], Operation(point=OperatingPoint(cheapest.offset)))
    mean = 0.75 * sum(one.chain.depth for one in least) / len(inside) + 0.25 * NUM_LAYERS
    assert cheapest.mean_depth == pytest.approx(mean)


def test_training_learns_a_rule_that_the_states_carry(project: Path) -> None:
    # Oracle: targets made from the states themselves (the sign of one pooled direction), so they can be learned.
    scorer = scorer_of(project)
    threshold = None
    for split in ("train", "validation"):
        samples = read_samples(project / "data" / f"{split}.jsonl")
        by_id = compute_states(scorer, samples, 2, split)
        states = [by_id[sample.id] for sample in samples]
        signs = torch.stack([torch.nn.functional.layer_norm(s, s.shape[-1:]).mean(0)[3] for s in states])
        threshold = signs.median() if threshold is None else threshold  # one rule for both splits
        lines: list[SearchRecord] = []
        for record in read_records(project / "records" / f"{split}.jsonl"):
            sign = signs[[sample.id for sample in samples].index(record.sample_id)] > threshold
            chain = FULL.skip(2, 1) if sign else FULL.repeat(4, 1, 1)
            results = (
                ChainResult(FULL, (0.0, 1.0), 1, False, -1.0),
                ChainResult(chain, (1.0, 0.0), 0, True, 1.0),
            )
            lines.append(dataclasses.replace(record, results=results, pareto=pareto_front(results)))
        write_records(project / "records" / f"{split}.jsonl", lines)
    long = {"trainer__max_epochs": 300, "trainer__check_val_every_n_epoch": 5, "early_stopping__patience": 60}
    main(arguments(project, head__windows=1, head__learning_rate=0.01, **long))
    measured = load_router(project / "router").config.training["validation"]
    assert measured["f1_skip"] > 0.8
    assert measured["f1_repeat"] > 0.8
    assert measured["distinct_chains"] >= 2


def test_the_same_seed_gives_the_same_router_and_a_second_run_has_nothing_to_do(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the weights' bytes; the base model is the one that the records name, where none is named.
    first = (project / "router" / "router.safetensors").read_bytes()
    main(arguments(project))  # the model's folder is another one than the first time
    assert (project / "router" / "router.safetensors").read_bytes() == first
    capsys.readouterr()
    main(arguments(project))
    assert "already" in capsys.readouterr().out
    main([word for word in arguments(project, out=project / "again") if not word.startswith("--model=")])
    assert (project / "again" / "router.safetensors").read_bytes() == first
    main(arguments(project, seed_everything=1))  # over the first
    assert (project / "router" / "router.safetensors").read_bytes() != first


@pytest.mark.parametrize("lost", ["weights of another router", "train.json", "config.json"])
def test_a_training_that_was_killed_between_its_files_is_made_again(project: Path, lost: str) -> None:
    # Oracle: the unbroken run's files.
    folder = project / "router"
    whole = (folder / "router.safetensors").read_bytes()
    if lost == "weights of another router":
        main(arguments(project, out=project / "other", seed_everything=7, trainer__max_epochs=1))
        shutil.copy(project / "other" / "router.safetensors", folder)
    else:
        (folder / lost).unlink()
    main(arguments(project))
    assert (folder / "router.safetensors").read_bytes() == whole
    assert (folder / "train.json").exists()
    load_router(folder)


def test_an_offline_wandb_run_is_kept_with_losses_and_artifacts(project: Path) -> None:
    # Oracle: the run's own files.
    main(arguments(project, out=project / "new", tracking__mode="offline", tracking__name="tiny"))
    (run,) = run_files(project / "new" / "wandb")
    content = run.read_bytes()
    for text in (b"validation/loss", b"validation/f1_skip", b"validation/full_share", b"validation/distinct_chains"):
        assert text in content
    assert b"search-records" in content


@pytest.mark.parametrize(
    ("environment", "mode"),
    [({}, "offline"), ({"WANDB_API_KEY": "x" * 40}, "online"), ({"WANDB_MODE": "disabled"}, "disabled")],
)
def test_tracking_is_offline_without_a_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], mode: str
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert TrackingSettings().resolved_mode() == mode
    assert TrackingSettings(mode="offline").resolved_mode() == "offline"
    if not environment:
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "x" * 40)
        assert TrackingSettings().resolved_mode() == "online"


RECORDS: dict[str, dict[str, object]] = {
    "record of another split": {"split": "test"},
    "records of two searches": {"first_editable": 1},
    "record of another tokenizer": {"fingerprints": Fingerprints("m", "z", "p")},
    "record of an unknown sample": {"sample_id": "0" * 16},
}


def damage(project: Path, name: str) -> None:
    """Make one thing wrong in a project."""
    train = project / "records" / "train.jsonl"
    if name in RECORDS:
        first, *others = read_records(train)
        write_records(train, [dataclasses.replace(first, **RECORDS[name]), *others])
    elif name == "records of the control":
        for path in (train, train.with_name("validation.jsonl")):
            write_records(path, [dataclasses.replace(one, reward_target="wrong") for one in read_records(path)])
    elif name == "other model":
        save_tiny(project / "model", seed=9)
    elif name == "unknown task":
        write_tasks(project / "data", TaskSet.of(dataclasses.replace(load_task("arc_easy"), name="quiz")))
    elif name == "another mode":
        write_tasks(project / "data", TaskSet.of(load_task("arc_easy", "letter")))


BAD: dict[str, tuple[dict[str, object], str]] = {
    "record of another split": ({}, "expected records of the split train, got one of test"),
    "records of two searches": ({}, "expected records of one search, got first_editable"),
    "record of another tokenizer": ({}, "expected records of one search, got fingerprints"),
    "record of an unknown sample": ({}, "expected records of the samples in"),
    "records of the control": ({}, "records: expected the reward target gold, got wrong"),
    "other model": ({}, "expected it to be made for the model"),
    "unknown task": ({}, "data: expected samples of the tasks quiz, got one of arc_easy"),
    "another mode": ({}, "records: expected the modes of"),
    "no epoch": ({"trainer.max_epochs": 0}, "trainer.max_epochs: expected at least one epoch"),
    "unknown monitor": (
        {"early_stopping.monitor": "validation/luck"},
        "early_stopping.monitor: Early stopping conditioned on metric `validation/luck`",
    ),
    "no such accelerator": ({"trainer.accelerator": "abacus"}, "abacus"),
    "learning rate out of all bounds": (
        {"head.learning_rate": 1e30},
        "head.learning_rate: expected training that stays finite",
    ),
    "a head that no router may have": ({"head.hidden": 2**16 + 1}, "head.hidden: expected at most 65536, got 65537"),
    "seed of no generator": ({"seed_everything": 2**32}, "seed_everything: expected below 4294967296"),
    "no such mode": ({"early_stopping.mode": "best"}, "early_stopping: `mode` can be min, max, got best"),
    "validation after no batch": ({"trainer.val_check_interval": 1000}, "trainer: `val_check_interval` (1000) must be"),
    "too few to validate": ({"trainer.limit_val_batches": 0.001}, "trainer: "),
    "another read layer wanted": ({"read_layer": 1}, "read_layer: expected 2 (as in the records) to 4, got 1"),
    "missing directory": ({"records": "nowhere"}, "records: expected an existing directory"),
    "unwritable output": ({"out": "/proc/router"}, "out: expected a directory that can be written"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(project: Path, refusal: Refusal, name: str) -> None:
    damage(project, name)
    changes, message = BAD[name]
    assert message in refusal(main, arguments(project, **({"out": project / "new"} | changes)))
    assert not [path for path in project.glob("new/*") if path.name != "checkpoints"]
