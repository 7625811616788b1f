"""`python -m eval` end to end on a tiny model, with records that the chain scorer made."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import data.sample
from data.models import load_model
from data.records import SearchRecord, pareto_front
from data.sample import SPLITS, Sample, write_samples
from data.scoring import ChainScorer
from data.tasks import load_task
from eval.__main__ import main
from eval.figure import spread
from eval.metrics import arm_of, paired
from eval.policies import ARMS
from eval.report import REPORT_FILE, write_report
from eval.results import RESULTS_FILE, RUN_FILE, read_results
from eval.settings import EvalSettings
from eval.static import CANDIDATES_FILE, STATIC_FILE
from router.chain import Chain
from router.command import InputError, parse_settings, run_command
from router.durable import read_json, sha256_file
from router.fingerprint import Fingerprints
from router.layerwise import LayerwiseHead
from router.storage import Router, RouterConfig, load_router, save_router
from tests.tiny import NUM_LAYERS, save_tiny

ROOT = Path(data.sample.__file__).parent.parent
PREFIX = 2
SIZES = {"train": 20, "validation": 8, "test": 14}
FULL = Chain.full(NUM_LAYERS)
TRIED = [FULL, *(FULL.skip(i, k) for k in (1, 2) for i in range(PREFIX, NUM_LAYERS + 1 - k)), FULL.repeat(3, 1, 1)]
WORDS = ("ice", "tea", "oil", "ash", "mud", "fog")


def make_samples() -> dict[str, list[Sample]]:
    """Samples of several lengths whose choices are equally long, so that no choice wins by length alone."""
    made, number = {}, 0
    for split in SPLITS:
        made[split] = []
        for _ in range(SIZES[split]):
            choices = tuple(WORDS[(number * 5 + j) % 6] for j in range(3))
            question = f"Which {'really ' * (number % 3)}is number {number}?"
            made[split].append(Sample("arc_easy", split, question, choices, (number * 7 // 3) % 3))
            number += 1
    return made


def make_data(folder: Path, samples: dict[str, list[Sample]]) -> None:
    folder.mkdir(exist_ok=True)
    for split, of_split in samples.items():
        write_samples(folder / f"{split}.jsonl", of_split)
    vouch(folder)


def vouch(folder: Path) -> None:
    files = {f"{split}.jsonl": sha256_file(folder / f"{split}.jsonl") for split in SPLITS}
    (folder / "manifest.json").write_text(json.dumps({"task": "arc_easy", "files": files}))


def make_records(scorer: ChainScorer, samples: list[Sample], split: str) -> list[SearchRecord]:
    block = scorer.load([scorer.encode(sample) for sample in samples])
    records = []
    for i, sample in enumerate(samples):
        results = tuple(scorer.score(block, [(i, chain) for chain in TRIED]))
        records.append(
            SearchRecord(
                sample_id=sample.id,
                task="arc_easy",
                split=split,
                mode="continuation",
                num_layers=NUM_LAYERS,
                prefix_layers=PREFIX,
                dtype="float32",
                reward_target="gold",
                seed=0,
                simulations=len(TRIED),
                nominal_layers=sum(chain.depth for chain in TRIED),
                executed_layers=block.executed(i),
                results=results,
                pareto=pareto_front(results),
                fingerprints=scorer.fingerprints,
                search="0" * 64,
            )
        )
    return records


def write_records(path: Path, records: list[SearchRecord]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))


def make_router(scorer: ChainScorer, samples: list[Sample], folder: Path) -> None:
    """An untrained router, its weights wide enough for several chains, with operating points on validation."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"hidden": 8, "windows": 2, "dropout": 0.0}
    config = RouterConfig(
        head="layerwise",
        head_settings=settings,
        num_layers=NUM_LAYERS,
        prefix_layers=PREFIX,
        d_model=scorer.d_model,
        task="arc_easy",
        mode="continuation",
        base_model="tiny",
        revision=None,
        dtype="float32",
        fingerprints=scorer.fingerprints,
    )
    head = config.build()
    assert isinstance(head, LayerwiseHead)
    for parameter in head.parameters():
        parameter.data.normal_(0, 1)
    states = scorer.states(scorer.load([scorer.encode(sample) for sample in samples]), PREFIX)
    with torch.inference_mode():
        head.calibrate(torch.cat([head(s.float()[None], torch.ones(1, len(s), dtype=torch.bool)) for s in states]))
    save_router(folder, Router(dataclasses.replace(config, budget_points=head.budget_points), head.eval()))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny layers on several threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class World:
    """A folder with everything that an evaluation reads."""

    folder: Path

    def arguments(self, **changed: object) -> list[str]:
        values: dict[str, object] = {
            **{name: self.folder / name for name in ("data", "records", "router", "model", "out")},
            "dtype": "float32",
            "device": "cpu",
            "batch_samples": 5,
            "budget": 4.2,
            "static_pool": 2,
            "static_trials": 4,
        }
        return [f"--{name}={value}" for name, value in (values | changed).items()]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def edit_lines(self, name: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
        path = self.folder / name
        values = [json.loads(line) for line in path.read_text().splitlines()]
        change(values)
        path.write_text("".join(json.dumps(value) + "\n" for value in values))

    def edit_config(self, **changed: object) -> None:
        path = self.folder / "router" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that has been evaluated once; tests read it and never change it."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model")
    model, tokenizer = load_model(str(folder / "model"), dtype="float32", device="cpu")
    scorer = ChainScorer(model, tokenizer, load_task("arc_easy"))
    samples = make_samples()
    make_data(folder / "data", samples)
    for split in ("train", "test"):
        write_records(folder / "records" / f"{split}.jsonl", make_records(scorer, samples[split], split))
    make_router(scorer, samples["validation"], folder / "router")
    world = World(folder)
    main(world.arguments())
    return world


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    """A copy without results, to be changed."""
    for name in ("data", "records", "router"):
        shutil.copytree(finished.folder / name, tmp_path / name)
    (tmp_path / "model").symlink_to(finished.folder / "model")
    return World(tmp_path)


def test_every_arm_answers_every_test_sample(finished: World) -> None:
    # Oracle: each chain run alone, one sample a batch, choices in rows of their own.
    model, tokenizer = load_model(str(finished.folder / "model"), dtype="float32", device="cpu")
    scorer = ChainScorer(model, tokenizer, load_task("arc_easy"), packed=False)
    samples = {sample.id: sample for sample in make_samples()["test"]}
    results = read_results(finished.out / RESULTS_FILE, NUM_LAYERS)
    assert {(one.policy, one.sample_id) for one in results} == {(arm, key) for arm in ARMS for key in samples}
    for one in results:
        block = scorer.load([scorer.encode(samples[one.sample_id])])
        (expected,) = scorer.score(block, [(0, one.chain)])
        assert one.scores == pytest.approx(expected.scores, abs=1e-4)
        assert (one.prediction, one.correct) == (expected.prediction, expected.correct)
        assert one.correct == (one.prediction == samples[one.sample_id].answer)
    assert len({one.correct for one in results}) == 2


def test_chains_are_those_of_their_policies(finished: World) -> None:
    # Oracle: router and records read by hand.
    model, tokenizer = load_model(str(finished.folder / "model"), dtype="float32", device="cpu")
    scorer = ChainScorer(model, tokenizer, load_task("arc_easy"))
    router = load_router(finished.folder / "router")
    chains: dict[str, dict[str, Chain]] = {name: {} for name in ARMS}
    for one in read_results(finished.out / RESULTS_FILE, NUM_LAYERS):
        chains[one.policy][one.sample_id] = one.chain
    lines = (finished.folder / "records" / "test.jsonl").read_text().splitlines()
    records = [SearchRecord.from_json(json.loads(line)) for line in lines]
    for sample, record in zip(make_samples()["test"], records, strict=True):
        block = scorer.load([scorer.encode(sample)])
        (routed,) = router.route(scorer.states(block, PREFIX), 4.2)
        assert chains["router"][sample.id] == routed.chain
        assert chains["full"][sample.id] == FULL
        assert chains["random"][sample.id].depth == routed.chain.depth
        right = [result.chain.depth for result in record.results if result.correct]
        assert chains["oracle"][sample.id].depth == min(right, default=NUM_LAYERS)
    assert len(set(chains["router"].values())) > 1
    assert len(set(chains["static"].values())) == 1
    assert all(chain.layers[:PREFIX] == (0, 1) for chain in chains["random"].values())


def test_the_static_chain_is_chosen_without_the_test_split(finished: World) -> None:
    # Oracle: the dense table, added up by hand; it holds train and validation only.
    static = read_json(finished.out / STATIC_FILE)
    results = read_results(finished.out / CANDIDATES_FILE, NUM_LAYERS)
    samples = make_samples()
    seen = {sample.id for split in ("train", "validation") for sample in samples[split]}
    assert {one.sample_id for one in results} == seen
    score: dict[Chain, int] = {}
    for one in results:
        score[one.chain] = score.get(one.chain, 0) + one.correct
    assert len(results) == len(score) * len(seen)
    bound = static["router_validation_depth"]
    within = {chain: right for chain, right in score.items() if chain.depth <= bound}
    chosen = Chain.from_json(static["chain"], NUM_LAYERS)
    assert within[chosen] == max(within.values()) == static["correct"]
    assert FULL in score
    assert chosen.depth <= bound < NUM_LAYERS


def test_report_is_rebuilt_from_files_alone(finished: World, tmp_path: Path) -> None:
    # Oracle: the report of the run, and the metrics of the results read back.
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    for name in (RUN_FILE, RESULTS_FILE, STATIC_FILE):
        shutil.copy(finished.out / name, copied / name)
    report = write_report(copied)
    assert report == json.loads((copied / REPORT_FILE).read_text())
    assert (copied / REPORT_FILE).read_bytes() == (finished.out / REPORT_FILE).read_bytes()
    by_arm: dict[str, list[Any]] = {name: [] for name in ARMS}
    for one in sorted(read_results(copied / RESULTS_FILE, NUM_LAYERS), key=lambda one: one.sample_id):
        by_arm[one.policy].append(one)
    for arm in report["arms"]:
        measured = dataclasses.asdict(arm_of(by_arm[arm["name"]], by_arm["full"], 0))
        assert json.loads(json.dumps(measured)).items() <= arm.items()
        knob = ", budget 4.2 layers" if arm["name"] == "router" else ""
        assert arm["label"] == ARMS[arm["name"]] + knob
    against = json.loads(json.dumps(dataclasses.asdict(paired(by_arm["router"], by_arm["random"], 0))))
    assert report["router_against"]["random"] == against
    assert "has seen the answer" in report["arms"][-1]["label"]
    assert (report["n"], report["split"], report["task"]) == (14, "test", "arc_easy")
    assert report["inputs"]["router/router.safetensors"] == sha256_file(
        finished.folder / "router" / "router.safetensors"
    )
    assert {"settings", "commit", "versions"} <= report["provenance"].keys()
    router = next(arm for arm in report["arms"] if arm["name"] == "router")
    random = next(arm for arm in report["arms"] if arm["name"] == "random")
    assert router["mean_depth"] == random["mean_depth"]


def test_figure_files_are_whole(finished: World) -> None:
    # Oracle: PNG's signature and end chunk; SVG parses as XML and names the oracle for what it is.
    from xml.etree import ElementTree

    png = (finished.out / "accuracy_by_depth.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png[-8:-4] == b"IEND"
    root = ElementTree.parse(finished.out / "accuracy_by_depth.svg").getroot()
    assert root.tag.endswith("svg")
    assert "has seen the answer" in (finished.out / "accuracy_by_depth.svg").read_text()
    assert not [path.name for path in finished.out.iterdir() if path.name.startswith(".")]


def test_labels_are_moved_apart() -> None:
    # Oracle: the property: order kept, gaps kept, and labels that are far apart stay.
    heights = [0.5, 0.52, 0.51, 0.9, 0.5]
    moved = spread(heights, 0.1)
    placed = sorted(moved)
    assert all(upper - lower > 0.0999 for lower, upper in itertools.pairwise(placed))
    assert sorted(range(5), key=moved.__getitem__) == sorted(range(5), key=heights.__getitem__)
    assert spread([0.1, 0.9, 0.5], 0.1) == [0.1, 0.9, 0.5]


def test_a_second_run_needs_no_model_and_prints_the_same_table(
    world: World, finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the model is gone; files and lines stay the same.
    shutil.copytree(finished.out, world.out)
    (world.folder / "model").unlink()
    before = {path.name: path.read_bytes() for path in world.out.iterdir()}
    # The model's name belongs to what was run, so the run is asked for under the same one.
    main(world.arguments(model=finished.folder / "model"))
    assert {path.name: path.read_bytes() for path in world.out.iterdir()} == before
    printed = capsys.readouterr().out
    assert "oracle: upper bound, has seen the answer" in printed
    assert "\x1b" not in printed
    report = read_json(world.out / REPORT_FILE)
    for arm in report["arms"]:
        line = next(line for line in printed.splitlines() if f"| {arm['label']} " in line)
        assert f" {arm['accuracy']:.3f} " in line
        assert f" {arm['mean_depth']:.2f} " in line


@pytest.mark.parametrize("name", [RESULTS_FILE, CANDIDATES_FILE])
def test_a_run_killed_in_the_middle_of_a_line_goes_on(world: World, finished: World, name: str) -> None:
    # Oracle: the unbroken run's files, byte by byte but for the order of lines.
    world.out.mkdir()
    names = [RUN_FILE, CANDIDATES_FILE]
    if name == RESULTS_FILE:
        names += [STATIC_FILE, RESULTS_FILE]
    for one in names:
        shutil.copy(finished.out / one, world.out / one)
    whole = (finished.out / name).read_bytes()
    cut = whole[: len(whole) * 2 // 5]
    assert not cut.endswith(b"\n")
    (world.out / name).write_bytes(cut)
    main(world.arguments(model=finished.folder / "model"))
    assert (world.out / name).read_bytes().startswith(cut)
    assert sorted((world.out / name).read_bytes().splitlines()) == sorted(whole.splitlines())
    for one in ("arms", "static", "router_collapse"):
        assert read_json(world.out / REPORT_FILE)[one] == read_json(finished.out / REPORT_FILE)[one]


def refused(world: World, capsys: pytest.CaptureFixture[str], **changed: object) -> str:
    """Run the command, expect exit status 2 and one line; return the line."""
    capsys.readouterr()
    assert run_command(main, world.arguments(**changed)) == 2
    captured = capsys.readouterr()
    # Libraries draw their bar while they load a model; it ends before the error's line.
    lines = [line for line in captured.err.splitlines() if line and not line.lstrip("\r").startswith("Loading weights")]
    assert len(lines) == 1, captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return lines[0]


def empty(path: Path) -> None:
    path.write_text("")


def tear(path: Path) -> None:
    path.write_text(path.read_text() + '{"schema": 1, "sam\n')


def copy_question(world: World, split: str) -> None:
    """Let a test sample have the question of another split's sample, in capitals."""
    samples = make_samples()
    question = samples[split][0].question.upper()
    samples["test"][0] = dataclasses.replace(samples["test"][0], question=question)
    make_data(world.folder / "data", samples)


def set_all(key: str, value: object) -> Callable[[list[dict[str, Any]]], None]:
    def change(values: list[dict[str, Any]]) -> None:
        for one in values:
            one[key] = value

    return change


def reprint(key: str) -> Callable[[list[dict[str, Any]]], None]:
    """Make records another model's, tokenizer's or prompt's."""

    def change(values: list[dict[str, Any]]) -> None:
        for one in values:
            one["fingerprints"][key] = "f" * 64

    return change


BEFORE_LOADING: dict[str, tuple[Callable[[World], object], str]] = {
    "no data": (lambda w: shutil.rmtree(w.folder / "data"), "data: expected an existing directory"),
    "no records": (lambda w: shutil.rmtree(w.folder / "records"), "records: expected an existing directory"),
    "no router": (lambda w: shutil.rmtree(w.folder / "router"), "router: expected an existing directory"),
    "no manifest": (lambda w: (w.folder / "data/manifest.json").unlink(), "data: expected an existing file"),
    "no test split": (lambda w: (w.folder / "data/test.jsonl").unlink(), "data: expected an existing file"),
    "empty split": (lambda w: empty(w.folder / "data/validation.jsonl"), "got the empty split"),
    "changed split": (lambda w: w.edit_lines("data/train.jsonl", list.pop), "with another SHA-256"),
    "samples of another split": (
        lambda w: shutil.copy(w.folder / "data/train.jsonl", w.folder / "data/test.jsonl"),
        "expected only samples of the split test",
    ),
    "test question in train": (lambda w: copy_question(w, "train"), "in no other split"),
    "test question in validation": (lambda w: copy_question(w, "validation"), "in no other split"),
    "no test records": (lambda w: (w.folder / "records/test.jsonl").unlink(), "records: expected an existing file"),
    "empty records": (lambda w: empty(w.folder / "records/train.jsonl"), "got the empty file"),
    "corrupt record": (
        lambda w: tear(w.folder / "records/test.jsonl"),
        "test.jsonl, line 15: expected a JSON object, got a corrupt line",
    ),
    "records of another split": (
        lambda w: shutil.copy(w.folder / "records/train.jsonl", w.folder / "records/test.jsonl"),
        "expected split test in",
    ),
    "records of other samples": (
        lambda w: w.edit_lines("records/test.jsonl", lambda v: v[3].update(sample_id="f" * 16)),
        "expected only samples of the test split",
    ),
    "records of fewer samples": (
        lambda w: w.edit_lines("records/test.jsonl", list.pop),
        "for each of 14 test samples, got none for 1 of them",
    ),
    "records of a control": (
        lambda w: w.edit_lines("records/test.jsonl", set_all("reward_target", "wrong")),
        "expected reward_target gold",
    ),
    "records of another mode": (
        lambda w: w.edit_lines("records/train.jsonl", set_all("mode", "letter")),
        "expected mode continuation",
    ),
    "records of another prefix": (
        lambda w: w.edit_lines("records/test.jsonl", set_all("prefix_layers", 3)),
        "expected prefix_layers 2",
    ),
    "records of two prefixes": (
        lambda w: w.edit_lines("records/test.jsonl", lambda v: v[5].update(prefix_layers=1)),
        "expected prefix_layers 2",
    ),
    "records of another prompt": (
        lambda w: w.edit_lines("records/test.jsonl", reprint("prompt")),
        "expected it to be made for the prompt",
    ),
    "changed router": (
        lambda w: (w.folder / "router/router.safetensors").write_bytes(b"x"),
        "with the SHA-256 in config.json",
    ),
    "broken router": (lambda w: (w.folder / "router/config.json").write_text("{"), "got a corrupt file"),
    "out is a file": (lambda w: w.out.write_text("x"), "out: expected a directory that can be written"),
}


@pytest.mark.parametrize("case", BEFORE_LOADING)
def test_bad_files_are_refused_before_the_model_is_loaded(
    world: World, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: one line that says so, nothing written; the model does not exist, so it cannot have been loaded.
    change, message = BEFORE_LOADING[case]
    change(world)
    (world.folder / "model").unlink()
    assert message in refused(world, capsys)
    assert not world.out.is_dir()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("batch_samples", 0, "batch_samples: expected an integer of at least 1"),
        ("seed", -1, "seed: expected an integer of at least 0"),
        ("static_pool", 0, "static_pool"),
        ("budget", ".nan", "budget: expected a mean depth above 0"),
        ("budget", 99, "budget: expected a mean depth in"),
        ("dtype", "int8", "dtype"),
        ("device", "abacus", "device: expected auto, cpu or a device"),
        ("task", "arc_eazy", "task: expected one of"),
        ("mode", "letter", "mode letter"),
        ("no_such_setting", 1, "no_such_setting"),
        ("model", " ", "model: expected a name"),
    ],
)
def test_bad_settings_are_refused(
    world: World, setting: str, value: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: one line that names the setting, nothing written.
    assert message in refused(world, capsys, **{setting: value})
    assert not world.out.exists()


@pytest.mark.parametrize("part", ["model", "tokenizer"])
@pytest.mark.parametrize("what", ["records", "router"])
def test_another_models_files_are_refused(
    world: World, what: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: one line that names what was made for another model; no results.
    if what == "records":
        world.edit_lines("records/test.jsonl", reprint(part))
    else:
        stored = json.loads((world.folder / "router/config.json").read_text())["fingerprints"]
        world.edit_config(fingerprints=stored | {part: "f" * 64})
    line = refused(world, capsys)
    assert line.startswith(f"error: {what} ")
    assert f"made for the {part}" in line
    assert list(world.out.iterdir()) == []


def test_a_missing_model_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: one line; no results.
    assert "model: expected" in refused(world, capsys, model="./nowhere")
    assert list(world.out.iterdir()) == []


@pytest.mark.parametrize(("setting", "value"), [("seed", 5), ("budget", 4.0), ("batch_samples", 6)])
def test_other_settings_never_go_on_in_the_same_folder(
    world: World, finished: World, setting: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the folder's bytes before and after; the line names what differs and what to do.
    shutil.copytree(finished.out, world.out)
    before = {path.name: path.read_bytes() for path in world.out.iterdir()}
    line = refused(world, capsys, model=finished.folder / "model", **{setting: value})
    assert f"made with another {setting}; choose another out, or remove" in line
    assert {path.name: path.read_bytes() for path in world.out.iterdir()} == before


def test_other_records_never_go_on_in_the_same_folder(
    world: World, finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: one line that names the inputs.
    shutil.copytree(finished.out, world.out)
    world.edit_lines("records/test.jsonl", set_all("seed", 9))
    assert "made with another inputs" in refused(world, capsys, model=finished.folder / "model")


@pytest.mark.parametrize("name", [RUN_FILE, RESULTS_FILE, STATIC_FILE])
def test_a_corrupt_file_of_an_earlier_run_is_named(
    world: World, finished: World, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: one line that names the file; results are kept.
    shutil.copytree(finished.out, world.out)
    kept = (world.out / CANDIDATES_FILE).read_bytes()
    (world.out / name).write_text("no JSON\n")
    assert name in refused(world, capsys, model=finished.folder / "model")
    assert (world.out / CANDIDATES_FILE).read_bytes() == kept


def test_incomplete_results_make_no_report(finished: World, tmp_path: Path) -> None:
    # Oracle: one line too few; the refusal names the arm's count, and no report is there.
    for name in (RUN_FILE, STATIC_FILE):
        shutil.copy(finished.out / name, tmp_path / name)
    lines = (finished.out / RESULTS_FILE).read_text().splitlines(keepends=True)
    (tmp_path / RESULTS_FILE).write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match="expected 14 samples for each arm, got 13"):
        write_report(tmp_path)
    assert not (tmp_path / REPORT_FILE).exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "eval").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_parse(path: Path) -> None:
    # Oracle: the parser, which refuses unknown keys.
    settings, resolved = parse_settings(EvalSettings, [f"--config={path}"], "eval", "")
    assert settings.dtype == resolved["dtype"] == "bfloat16"


def test_the_module_runs_as_a_process() -> None:
    # Oracle: exit status and one line from the real interpreter.
    done = subprocess.run(
        [sys.executable, "-m", "eval", "--data=/nowhere", "--records=/nowhere", "--router=/nowhere", "--out=/nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: data: expected an existing directory, got '/nowhere'\n"


def test_fingerprints_have_the_parts_that_are_checked() -> None:
    # Oracle: the refusals above cover every part.
    assert Fingerprints.__slots__ == ("model", "tokenizer", "prompt")
