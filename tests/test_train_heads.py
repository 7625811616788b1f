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
from eval.curves import main as curves
from router.chain import Chain
from router.decision import OperatingPoint, Operation, Router
from router.heads.budget import BudgetPoint
from router.heads.head import known_late
from router.storage import GUARANTEE_FILE, load_router, save_router
from search.__main__ import main as search
from search.menu import Menu, write_menu
from tests.conftest import Refusal
from tests.menus import write_records
from tests.test_search_run import arguments as search_arguments
from tests.test_train_command import arguments
from tests.tiny import NUM_LAYERS, scorer_of, tiny_samples, write_project
from train.__main__ import main
from train.calibrate import main as calibrate
from train.calibrate import settings_of

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


def test_states_from_the_model_do_as_well_as_kept_ones(
    project: Path, states: dict[str, dict[str, torch.Tensor]]
) -> None:
    # Oracle: the same route, if not the same bits.
    for split in ("train", "validation"):
        shutil.rmtree(project / "records" / f"{split}.states")
    main(settings(project, out=project / "computed"))
    assert len(list((project / "records" / "states").iterdir())) >= 2
    one, other = (load_router(project / name).decide(list(states["test"].values())) for name in ("router", "computed"))
    assert [x.score for x in one] == pytest.approx([x.score for x in other], abs=1e-2)


@pytest.mark.parametrize(("kind", "precision"), [("menu", "bf16-mixed"), ("layerwise", "bf16-true")])
def test_training_in_half_precision_makes_a_router_in_float32(project: Path, kind: str, precision: str) -> None:
    # Oracle: the weights' dtype, and that they are read back.
    main(settings(project, head__kind=kind, trainer__precision=precision))
    assert {one.dtype for one in load_router(project / "router").head.state_dict().values()} == {torch.float32}


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


@pytest.fixture(scope="module")
def twice(tabled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with a router that reads twice, in `twice/`, and each of its heads trained alone."""
    project = Path(shutil.copytree(tabled, tmp_path_factory.mktemp("twice") / "project"))
    for name, layers in (
        ("twice", {"read_layer": 2, "late_read_layer": READ}),
        ("first", {"read_layer": 2}),
        ("late", {"read_layer": READ}),
    ):
        main(settings(project, out=project / name, head__menu__agreement=0, **layers))
    unscoped = {"read_layer": 2, "late_read_layer": READ, "scope": "null"}
    main(settings(project, out=project / "unscoped", head__menu__agreement=0, **unscoped))
    return project


def test_a_router_that_reads_twice_has_the_heads_of_both_trainings(twice: Path) -> None:
    # Oracle: a training of each alone, with the same seed.
    router, first, late = (load_router(twice / name) for name in ("twice", "first", "late"))
    assert router.late is not None
    for one, other in ((router.head, first.head), (router.late, late.head)):
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert router.config.read_layers == (2, READ)
    assert router.config.late is not None
    assert router.config.late.head_settings["chains"] == LATE
    assert router.config.head_settings["chains"] == LATE + EARLY


def test_its_operating_points_are_measured_as_it_decides(twice: Path) -> None:
    # Oracle: the router's decisions on the validation samples, their states from the model, judged by the table.
    router = load_router(twice / "twice")
    table = {record.sample_id: record for record in read_records(twice / "records" / "validation.jsonl")}
    samples, scorer = read_samples(twice / "data" / "validation.jsonl"), scorer_of(twice)
    first, late = (compute_states(scorer, samples, layer, "validation") for layer in (2, READ))
    read = list(first.values()), known_late(list(late.values()))
    assert router.config.budget_points
    for point in router.config.budget_points:
        decided = router.decide(read[0], Operation(point=OperatingPoint(point.offset)), read[1])
        assert sum(one.chain.depth for one in decided) / len(decided) == pytest.approx(point.mean_depth)
        judged = [
            next(result.stands for result in table[name].results if result.chain == one.chain)
            for name, one in zip(first, decided, strict=True)
        ]
        assert point.accuracy == sum(judged) / len(judged)
    for name in ("twice", "unscoped"):
        router = load_router(twice / name)
        own = router.decide(read[0], read_on=read[1])
        told = json.loads((twice / name / "train.json").read_text())["validation"]
        assert told["mean_depth"] == pytest.approx(sum(one.chain.depth for one in own) / len(own))
        assert told["full_share"] == pytest.approx(sum(one.chain.is_full for one in own) / len(own))
        assert told["distinct_chains"] == len({one.chain for one in own})
        assert ("out_of_scope" in told) == (name == "twice")


def scatter(folder: Path) -> Router:
    """Give a router's heads random weights, so that both decide, and operating points to match."""
    router = load_router(folder)
    assert router.late is not None
    torch.manual_seed(4)
    for parameter in (*router.head.parameters(), *router.late.parameters()):
        parameter.data.normal_(0, 0.3)
    points = tuple(BudgetPoint(4.5 - i / 4, 0.02 * i) for i in range(6))
    save_router(folder, dataclasses.replace(router, config=dataclasses.replace(router.config, budget_points=points)))
    return load_router(folder)


def test_a_guarantee_for_it_is_the_same_from_a_table_and_from_running(twice: Path) -> None:
    # Oracle: each other; and the router's decisions on states from the model.
    folder = twice / "calibrated"
    shutil.copytree(twice / "twice", folder)
    router = scatter(folder)
    samples = tiny_samples("calibration", 40)
    write_samples(twice / "data" / "calibration.jsonl", samples)
    table = {"menu": twice / "menu.json", "read_layers": f"[2, {READ}]", "first_editable": 2, "verify": "false"}
    search(search_arguments(twice, twice / "table", splits="[calibration]", **table))
    common = [f"--router={folder}", f"--data={twice / 'data'}", f"--model={twice / 'model'}", "--dtype=float32"]
    told = []
    for more in ([], [f"--records={twice / 'table'}"]):
        calibrate([*common, "--points=5", "--epsilon=0.9", *more])
        told.append(json.loads((folder / GUARANTEE_FILE).read_text()))
    assert told[0]["depths"] == told[1]["depths"]
    assert told[0]["certificate"] == told[1]["certificate"]
    scorer = scorer_of(twice)
    first, late = (list(compute_states(scorer, samples, layer, "calibration").values()) for layer in (2, READ))
    tried = settings_of(router.config.budget_points, 5, ())
    decided = router.decide_each(first, [Operation(point=one) for one in tried], known_late(late))
    assert told[0]["depths"] == pytest.approx([sum(one.chain.depth for one in of) / 40 for of in decided])
    chains = {one.chain for of in decided for one in of}
    assert min(chain.unedited_prefix for chain in chains) < READ < max(chain.unedited_prefix for chain in chains)


def test_its_curve_is_what_deciding_and_looking_up_gives(twice: Path) -> None:
    # Oracle: the router's decisions on the test samples, their states from the model, judged by the table.
    folder = twice / "drawn"
    shutil.copytree(twice / "twice", folder)
    router = scatter(folder)
    table = {"menu": twice / "menu.json", "read_layers": f"[2, {READ}]", "first_editable": 2, "verify": "false"}
    search(search_arguments(twice, twice / "every", splits="[train,validation,test]", **table))
    curves(
        [
            f"--data={twice / 'data'}", f"--records={twice / 'every'}", f"--out={twice / 'curves'}",
            f"--routers={{twice: [{folder}]}}", "--budgets=[3.5,4]",
        ]
    )  # fmt: skip
    scorer = scorer_of(twice)
    read = {}
    for split in ("validation", "test"):
        samples = read_samples(twice / "data" / f"{split}.jsonl")
        read[split] = [compute_states(scorer, samples, layer, split) for layer in (2, READ)]
    records = {one.sample_id: one for one in read_records(twice / "every" / "test.jsonl")}
    offsets, decided = [0.001 * i for i in range(800)], {}
    for split, (first, late) in read.items():
        operations = [Operation(point=OperatingPoint(offset)) for offset in offsets]
        read_on = known_late([late[key] for key in first])
        decided[split] = router.decide_each(list(first.values()), operations, read_on)
    found = set()
    for on_validation, on_test in zip(decided["validation"], decided["test"], strict=True):
        right = [
            next(result.stands for result in records[key].results if result.chain == one.chain)
            for key, one in zip(read["test"][0], on_test, strict=True)
        ]
        depths = [sum(one.chain.depth for one in of) / len(of) for of in (on_validation, on_test)]
        found.add((round(depths[0], 6), round(depths[1], 6), round(sum(right) / len(right), 6)))
    points = json.loads((twice / "curves" / "curves.json").read_text())["points"]
    assert points
    for point in points:
        assert tuple(round(point[name], 6) for name in ("validation_depth", "depth", "accuracy")) in found


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
        "learning rate out of all bounds": {"head.learning_rate": 1e30},
        "late before read layer": {"late_read_layer": READ},
        "late of no model": {"late_read_layer": NUM_LAYERS},
        "late beside layerwise": {"head.kind": "layerwise", "read_layer": 2, "late_read_layer": READ},
        "late and warm": {"late_read_layer": 4, "warm_start": project / "router"},
    }
    return changes.get(name, {})


BAD = {
    "no menu table": "error: records: expected a menu table (python -m search --menu ...)",
    "a sample without a chain": "records: expected a menu table (python -m search --menu ...)",
    "no right chain": "records: expected a sample with a right chain in train, got none",
    "read layer of no model": "read_layer: expected 1 (as in the records) to 4, got 5",
    "learning rate out of all bounds": "head.learning_rate: expected training that stays finite",
    "late before read layer": "late_read_layer: expected 4 (after read_layer) to 4, got 3",
    "late of no model": "late_read_layer: expected 4 (after read_layer) to 4, got 5",
    "late beside layerwise": "late_read_layer: expected head.kind menu and no warm_start beside it, got a layerwise",
    "late and warm": "late_read_layer: expected head.kind menu and no warm_start beside it, got warm_start",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(project: Path, refusal: Refusal, name: str) -> None:
    changes = refused(project, name)
    assert BAD[name] in refusal(main, settings(project, **({"out": project / "new"} | changes)))
    assert not (project / "new" / "config.json").exists()
