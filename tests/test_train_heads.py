"""`python -m train` of a menu head, end to end on a tiny project: a menu table and the states beside it."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from data.records import ChainResult, SearchRecord, pareto_front, read_records
from data.sample import read_samples, write_samples
from data.states import compute_states
from router.chain import Chain
from router.command import run_command
from router.storage import OperatingPoint, Operation, Router, load_router
from search.__main__ import main as search
from search.menu import Menu, write_menu
from tests.menus import write_records
from tests.test_search_run import arguments as search_arguments
from tests.test_train_command import arguments
from tests.tiny import NUM_LAYERS, scorer_of, tiny_samples, write_project
from train.__main__ import main

LATE = ["0-4", "0-3", "0-2,4", "0-2"]  # what a router may choose that reads layer 3
EARLY = ["0-1,3-4", "0-1,4"]
READ = 3
SIZES = {"train": 90, "validation": 40, "test": 60}


@pytest.fixture(scope="module")
def tabled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project: a menu table made with prefix 2, the states of layer 3 kept beside it, a router trained on it."""
    folder = write_project(tmp_path_factory.mktemp("tabled"))
    pool, start = tiny_samples("train", sum(SIZES.values())), 0
    random.Random(0).shuffle(pool)  # later numbers have more digits
    for split, size in SIZES.items():  # of one distribution, unlike those of `write_project`, which name their split
        own = [dataclasses.replace(sample, split=split) for sample in pool[start : start + size]]
        write_samples(folder / "data" / f"{split}.jsonl", own)
        start += size
    chains = [Chain.parse(text, NUM_LAYERS) for text in LATE + EARLY]
    write_menu(folder / "menu.json", Menu(tuple(chains), 2))
    table = {"menu": folder / "menu.json", "read_layers": f"[{READ}]", "first_editable": 2, "verify": "false"}
    search(search_arguments(folder, folder / "records", splits="[train,validation]", **table))
    main(settings(folder))
    return folder


@pytest.fixture(scope="module")
def states(tabled: Path) -> dict[str, dict[str, torch.Tensor]]:
    """States at the read layer by split and sample, from the model."""
    scorer = scorer_of(tabled)
    return {
        split: compute_states(scorer, read_samples(tabled / "data" / f"{split}.jsonl"), READ, split) for split in SIZES
    }


@pytest.fixture
def project(tabled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tabled, tmp_path / "project"))


def settings(project: Path, **changes: object) -> list[str]:
    own = {"head.kind": "menu", "head.pooling": "ends", "head.hidden": 16, "read_layer": READ}
    return arguments(project, **(own | {name.replace("__", "."): value for name, value in changes.items()}))


def rewrite(project: Path, results: Callable[[str, SearchRecord], Sequence[ChainResult]]) -> None:
    """Give every record other results."""
    for split in ("train", "validation"):
        path = project / "records" / f"{split}.jsonl"
        made = [(one, tuple(results(split, one))) for one in read_records(path)]
        write_records(path, [dataclasses.replace(one, results=own, pareto=pareto_front(own)) for one, own in made])


def test_a_head_is_trained_on_a_table_at_a_later_read_layer(
    project: Path, states: dict[str, dict[str, torch.Tensor]]
) -> None:
    # Oracle: the records' fingerprints, the laws of the routes, and the kept states: none had to be computed.
    record = read_records(project / "records" / "train.jsonl")[0]
    router = load_router(project / "router", record.fingerprints)
    assert (router.config.head, router.config.read_layer, record.first_editable) == ("menu", READ, 2)
    assert not (project / "records" / "states").exists()
    assert router.config.head_settings["chains"] == LATE
    for budget in (None, *(point.mean_depth for point in router.config.budget_points)):
        chains = [one.chain for one in router.decide(list(states["test"].values()), Operation(budget))]
        assert len(chains) == SIZES["test"]
        assert all(chain.unedited_prefix >= READ for chain in chains)
    told = json.loads((project / "router" / "train.json").read_text())["validation"]
    names = {"auc_correct", "auc_agree", "accuracy", "full_accuracy"}
    assert told.keys() >= names | {"full_share", "distinct_chains", "mean_depth", "head_mflops"}
    assert all(0 <= told[name] <= 1 for name in names)
    # Every operating point's accuracy is in the table: nothing had to be run for it.
    table = {record.sample_id: record for record in read_records(project / "records" / "validation.jsonl")}
    samples = read_samples(project / "data" / "validation.jsonl")
    read = compute_states(scorer_of(project), samples, READ, "validation")
    for point in router.config.budget_points:
        chosen = router.decide(list(read.values()), Operation(point=OperatingPoint(point.offset)))
        judged = [
            next(result.stands for result in table[name].results if result.chain == one.chain)
            for name, one in zip(read, chosen, strict=True)
        ]
        assert point.accuracy == sum(judged) / len(judged)


def test_the_same_seed_gives_the_same_router(project: Path, states: dict[str, dict[str, torch.Tensor]]) -> None:
    # Oracle: the bytes; states from the model in place of the kept ones give the same route, if not the same bits.
    main(settings(project, out=project / "again"))
    weights = [(project / name / "router.safetensors").read_bytes() for name in ("router", "again")]
    assert weights[0] == weights[1]
    for split in ("train", "validation"):
        shutil.rmtree(project / "records" / f"{split}.states")
    main(settings(project, out=project / "computed"))
    assert len(list((project / "records" / "states").iterdir())) >= 2
    one, other = (load_router(project / name).decide(list(states["test"].values())) for name in ("router", "computed"))
    assert [x.score for x in one] == pytest.approx([x.score for x in other], abs=1e-2)


def test_a_limit_takes_the_first_training_samples_by_id_and_all_of_validation(project: Path) -> None:
    # Oracle: the sorted ids; the questions that the router remembers.
    main(settings(project, out=project / "few", limit=7))
    samples = {split: read_samples(project / "data" / f"{split}.jsonl") for split in ("train", "validation")}
    wanted = [*sorted(samples["train"], key=lambda sample: sample.id)[:7], *samples["validation"]]
    told = json.loads((project / "few" / "trained_on.json").read_text())
    assert set(told["split_hashes"]) == {sample.split_hash for sample in wanted}


class Rule:
    """Which of the chains "0-3" and "0-2,4" is right: on which side a sample lies along the widest spread of states."""

    def __init__(self, states: dict[str, dict[str, torch.Tensor]]) -> None:
        self.skips_4: dict[str, bool] = {}
        centre = direction = None
        for of_split in states.values():
            rows = of_split.values()
            pooled = torch.stack([torch.nn.functional.layer_norm(s, s.shape[-1:]).mean(0) for s in rows])
            if centre is None or direction is None:  # set on the training samples
                centre = pooled.median(0).values
                direction = torch.linalg.svd(pooled - pooled.mean(0)).Vh[0]
            side = (pooled - centre) @ direction > 0
            self.skips_4 |= {name: bool(one) for name, one in zip(of_split, side, strict=True)}

    def right(self, sample_id: str, chain: Chain) -> bool:
        return chain.is_full or str(chain) == ("0-3" if self.skips_4[sample_id] else "0-2,4")

    def results(self, record: SearchRecord) -> list[ChainResult]:
        found = []
        for one in record.results:
            right = self.right(record.sample_id, one.chain)
            found.append(ChainResult(one.chain, (3.0, 0.0) if right else (0.0, 3.0), 1 - right, right, 6 * right - 3.0))
        return found


def test_a_head_learns_a_rule_that_the_states_carry_and_beats_every_static_chain(
    project: Path, states: dict[str, dict[str, torch.Tensor]]
) -> None:
    # Oracle: the rule itself, on samples that the training never saw. At depth 4 a static chain is right on about half.
    rule = Rule(states)
    rewrite(project, lambda _, record: rule.results(record))
    long = {"trainer__max_epochs": 60, "trainer__check_val_every_n_epoch": 10, "head__learning_rate": 0.02}
    main(settings(project, head__pooling="windows", head__windows=1, **long))
    router = load_router(project / "router")
    test = states["test"]

    def routed(router: Router, budget: float | None) -> tuple[float, float]:
        chains = [one.chain for one in router.decide(list(test.values()), Operation(budget))]
        right = [rule.right(name, chain) for name, chain in zip(test, chains, strict=True)]
        return sum(right) / len(right), sum(chain.depth for chain in chains) / len(chains)

    static = max(sum(rule.right(name, Chain.parse(text, NUM_LAYERS)) for name in test) / len(test) for text in LATE[1:])
    assert 0.4 < static < 0.7
    accuracy, depth = routed(router, 4.0)
    assert depth == pytest.approx(4.0, abs=0.2)
    assert accuracy > static + 0.3
    assert routed(router, 5.0) == (1.0, 5.0)


def test_a_menu_is_read_before_the_first_layer_that_it_edits(project: Path) -> None:
    # Oracle: the records' menu, every chain of which keeps more layers than the router reads.
    main(settings(project, read_layer=1))
    router = load_router(project / "router")
    assert router.config.read_layer == 1
    assert router.config.head_settings["chains"] == LATE + EARLY


def refused(project: Path, name: str) -> dict[str, object]:
    """Make one thing wrong; returns the changed settings."""
    if name == "no menu table":  # full depth is all that the samples have in common
        rewrite(project, lambda _, one: [one.full, one.results[1 + int(one.sample_id, 16) % 2]])
    elif name == "a sample without a chain":  # some chains are common to all, of training samples not to validation's
        rewrite(project, lambda split, one: one.results if split == "train" else one.results[:1])
    elif name == "no right chain":
        rewrite(project, lambda _, one: [dataclasses.replace(r, correct=False, margin=-1.0) for r in one.results])
        return {"head.kind": "layerwise"}
    changes: dict[str, dict[str, object]] = {
        "read layer of no model": {"read_layer": 5},
        "weight above 1": {"head.menu.agreement": 1.5},
    }
    return changes.get(name, {})


BAD = {
    "no menu table": "records: expected a menu table (python -m search --menu ...)",
    "a sample without a chain": "records: expected a menu table (python -m search --menu ...)",
    "no right chain": "records: expected a sample with a right chain in train, got none",
    "read layer of no model": "read_layer: expected 1 (as in the records) to 4, got 5",
    "weight above 1": "head.menu.agreement: expected at most 1, got 1.5",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(project: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    changes = refused(project, name)
    assert run_command(main, settings(project, **({"out": project / "new"} | changes))) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert BAD[name] in error
    assert not (project / "new" / "config.json").exists()
