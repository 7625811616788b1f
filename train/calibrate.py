"""Certify a router: the cheapest operating point whose loss against full depth is below epsilon, surely enough.

    python -m train calibrate --router runs/qwen/router-0 --data runs/qwen/data --epsilon 0.02 --delta 0.1

    python -m train calibrate --router runs/demo/router --data runs/demo/data --records runs/demo/table

Learn then Test (Angelopoulos et al., arXiv 2110.01052; `train.guarantee`) on a split that neither training nor the
choice of settings has seen. Writes `guarantee.json` beside the router; with too few data it says what they would have
been enough for, and the router falls back to full depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from data.encoding import EncodedSample, batches_by_length
from data.pool import Batch, Pool, PoolSettings, Report, Task, run_batches
from data.records import ChainResult, DenseTable, SearchRecord, agrees, read_records
from data.sample import Sample, Split, read_samples
from data.scoring import ChainScorer, base_model, delivered, open_scorer
from data.splits import require_unseen
from data.states import StatesOrigin, kept_at_each
from data.store import Store
from data.tasks import TASKS_FILE, read_tasks
from router.chain import Chain
from router.command import parse_settings, plain_values, provenance
from router.decision import Guarantee, OperatingPoint, Operation, Router
from router.engine.load import ModelSettings
from router.files import read_json, require_directory, require_file, sha256_file, sha256_json
from router.heads.budget import BudgetPoint
from router.heads.head import Decision, known_late
from router.storage import (
    CONFIG_FILE,
    GUARANTEE_FILE,
    WEIGHTS_FILE,
    load_router,
    write_guarantee,
)
from router.validation import SETTINGS, STORED, Count, InputError, Positive
from train.guarantee import Certificate, LossKind, certify

TABLES = ("train", "validation")
"""Splits whose menu tables say which static chain is best."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class CalibrateSettings(ModelSettings, PoolSettings):
    """Settings of `python -m train calibrate`.

    Attributes:
        router: folder of the trained router; the guarantee is written there.
        data: folder of `python -m data prepare`, with the split.
        epsilon: loss allowed against full depth.
        delta: probability of being wrong.
        loss: "accuracy": accuracy lost against full depth; "disagreement": share of samples answered otherwise.
        split: the calibration split; no question of it may have been trained on.
        points: operating points to test, evenly spread over the router's.
        least_scores: tries each of these fallbacks too: samples whose chain scores less run at full depth (of a menu
            head the score is a value in 0..1); delta is shared among them. None: the price alone decides.
        records: folder of a menu table of the split, with the states that the router reads: what stands there is taken
            from it, in the mode that it was made in, and no model runs; null: run the chains in the mode of evaluation.
        static: folder of menu tables (train.jsonl and validation.jsonl): their best chain of each depth is certified
            in the same way, as the baseline; null: no baseline.
        out: folder for the results; a run that was stopped goes on there; null: `calibration` in the router's folder.
        limit: samples at most, the first ones; null: all.
        batch_samples: samples run at once.
        batch_tokens: tokens in one call of a layer at most.
    """

    router: Path
    data: Path
    epsilon: Annotated[float, Field(ge=0, lt=1)] = 0.02
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.1
    loss: LossKind = "accuracy"
    split: Split = "calibration"
    points: Positive = 24
    least_scores: tuple[float, ...] = ()
    records: Path | None = None
    static: Path | None = None
    out: Path | None = None
    limit: Positive | None = None
    batch_samples: Positive = 32
    batch_tokens: Positive = 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        InputError: at bad input.
    """
    settings, plain = parse_settings(CalibrateSettings, argv, "train calibrate", "Certify a router's loss.")
    require_directory(settings.router, "router")
    router = load_router(settings.router)
    key = _key(settings)
    if router.guarantee is not None and read_json(settings.router / GUARANTEE_FILE).get("key") == key:
        print(f"calibrated already, with these settings and samples: {settings.router / GUARANTEE_FILE}")
        print(_told(router.guarantee, router.config.num_layers))
        return
    tried = settings_of(router.head.budget_points, settings.points, settings.least_scores)
    fixed = [] if settings.static is None else static_settings(settings.static, router)
    if settings.records is None:
        done = _run(router, settings, [*tried, *fixed])
    else:
        done = _look_up(router, settings, settings.records, [*tried, *fixed])
    n = router.config.num_layers
    own, static = done.part(slice(len(tried))), done.part(slice(len(tried), None))
    found = _certify(own, settings, starts=max(1, len(settings.least_scores)))
    print(_table([_name(one) for one in tried], own, found))
    more: dict[str, Any] = {"tried": plain_values([asdict(one) for one in tried]), "certificate": asdict(found)}
    if fixed:
        of_static = _certify(static, settings, starts=1)
        print(_table([_name(one) for one in fixed], static, of_static))
        chosen = of_static.chosen
        depth = float(n) if chosen is None else float(static.depths[chosen])
        chain = str(Chain.full(n) if chosen is None else fixed[chosen])
        more["static"] = {"chain": chain, "depth": depth, "certificate": asdict(of_static)}
        print(f"best static chain with the same guarantee: {chain}, depth {depth:g}")
    more |= {"depths": [float(depth) for depth in own.depths], "key": key, **provenance(plain)}
    point = None if found.chosen is None else tried[found.chosen]
    guarantee = Guarantee(
        epsilon=settings.epsilon,
        delta=settings.delta,
        loss=settings.loss,
        offset=None if point is None else point.offset,
        least_score=None if point is None else point.least_score,
        samples=found.samples,
        mean_loss=found.mean_loss,
        mean_depth=float(n if found.chosen is None else own.depths[found.chosen]),
        smallest_epsilon=found.smallest_epsilon,
    )
    write_guarantee(settings.router, guarantee, sha256_file(settings.router / WEIGHTS_FILE), plain_values(more))
    print(f"full depth is right on {sum(result.right for result in own.full) / len(own.full):.4f}")
    print(_told(guarantee, n))
    print(f"guarantee: {settings.router / GUARANTEE_FILE}")


def _run(router: Router, settings: CalibrateSettings, tried: Sequence[OperatingPoint | Chain]) -> Calibration:
    scorer, samples = open_scorer(
        base_model(settings, router.config),
        settings.data,
        settings.split,
        limit=settings.limit,
        batch_tokens=settings.batch_tokens,
    )
    router.config.fingerprints.require(scorer.fingerprints, f"router {settings.router}")
    require_unseen(settings.router, samples, "split")
    with settings.pool() as pool:
        return run_settings(router, scorer, samples, tried, settings, pool)


def _look_up(
    router: Router, settings: CalibrateSettings, folder: Path, tried: Sequence[OperatingPoint | Chain]
) -> Calibration:
    """Return what a menu table says that the settings did.

    Raises:
        InputError: where it was made for another model or prompt, or lacks a sample, its states or a chain.
    """
    path = folder / f"{settings.split}.jsonl"
    samples = read_samples(settings.data / f"{settings.split}.jsonl", f"data: {settings.split}")[: settings.limit]
    require_unseen(settings.router, samples, "split")
    records = {record.sample_id: record for record in read_records(path)}
    unknown = [sample.id for sample in samples if sample.id not in records]
    if unknown:
        raise InputError(f"records: expected a record of each sample in {path}, got none of {unknown[0]}")
    first, ids = records[samples[0].id], [sample.id for sample in samples]
    _require_fit(first, router, f"records {path}")
    origin = StatesOrigin(first.fingerprints, first.dtype)
    tasks = read_tasks(settings.data)
    picked: list[tuple[Decision, ...]] = []
    folder, layers = path.with_suffix(".states"), router.config.read_layers
    for part in kept_at_each(folder, origin, ids, layers, settings.split):
        picked += _decisions(router, part, tried)
    routed: list[list[ChainResult]] = [[] for _ in tried]
    for sample, decided in zip(samples, picked, strict=True):
        known = {result.chain: result for result in records[sample.id].results}
        missing = [one.chain for one in decided if one.chain not in known]
        if missing:
            raise InputError(f"records: expected every chain of the router in {path}, got none of {missing[0]}")
        for of_setting, one in zip(routed, decided, strict=True):
            of_setting.append(delivered(known[one.chain], tasks[sample.task], one_token=one.one_token))
    return Calibration(tuple(records[key].full for key in ids), tuple(map(tuple, routed)))


def _key(settings: CalibrateSettings) -> str:
    """Return a hash of everything that decides the guarantee."""
    files = {"weights": settings.router / WEIGHTS_FILE, "config": settings.router / CONFIG_FILE}
    files |= {name: settings.data / name for name in (TASKS_FILE, f"{settings.split}.jsonl")}
    if settings.static is not None:
        files |= {f"static/{split}": settings.static / f"{split}.jsonl" for split in TABLES}
    if settings.records is not None:
        files["records"] = settings.records / f"{settings.split}.jsonl"
    hashes = {name: sha256_file(require_file(path, name)) for name, path in files.items()}
    places = ("router", "data", "out", "device", "records", "static", "workers", "cluster")
    decisive = {name: value for name, value in plain_values(settings).items() if name not in places}
    return sha256_json({"settings": decisive, "files": hashes})


def _certify(done: Calibration, settings: CalibrateSettings, starts: int) -> Certificate:
    losses = done.losses(settings.loss)
    return certify(losses, done.depths, settings.epsilon, settings.delta, kind=settings.loss, starts=starts)


def _name(setting: OperatingPoint | Chain) -> str:
    if isinstance(setting, Chain):
        return str(setting)
    least = "" if setting.least_score is None else f", least score {setting.least_score:g}"
    return f"offset {setting.offset:.4g}{least}"


def _table(names: Sequence[str], done: Calibration, found: Certificate) -> str:
    width = max(20, *(len(name) + 2 for name in names))
    lines = [f"{'setting':<{width}}{'mean depth':>10}{'loss':>9}{'p':>9}{'alone at':>10}"]
    for i, name in enumerate(names):
        p, alone = found.p_values[i], found.smallest_epsilons[i]
        mark = "  certified" if i in found.certified else ""
        shown = "" if p is None else f"{p:.4f}"
        lines.append(
            f"{name:<{width}}{done.depths[i]:>10.2f}{found.mean_losses[i]:>+9.4f}{shown:>9}"
            f"{'' if alone is None else f'{alone:.4f}':>10}{mark}"
        )
    return "\n".join(lines)


def _told(guarantee: Guarantee, num_layers: int) -> str:
    claim = f"{guarantee.loss} loss of at most {guarantee.epsilon:g} with probability {1 - guarantee.delta:g}"
    if guarantee.offset is not None:
        return (
            f"certified on {guarantee.samples} samples: {claim}, at mean depth {guarantee.mean_depth:.2f} of "
            f"{num_layers} (loss here {guarantee.mean_loss:+.4f})"
        )
    least = guarantee.smallest_epsilon
    could = "no epsilon below 1" if least is None else f"epsilon {least:.4f} or more"
    return (
        f"not certified on {guarantee.samples} samples: {claim}; they are enough for {could}. "
        "With the guarantee the router runs full depth."
    )


@dataclass(frozen=True, config=STORED)
class Routed:
    """What all settings did on one sample.

    Attributes:
        sample_id: the sample.
        results: what full depth answered, then each other chain that some setting picked.
        choices: for each setting the place of its chain in `results`.
    """

    sample_id: str
    results: Annotated[tuple[ChainResult, ...], Field(min_length=1)]
    choices: tuple[Count, ...]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What the settings did.

    Attributes:
        full: what full depth answered, by sample.
        routed: for each setting what its chain answered, in the samples' order.
    """

    full: tuple[ChainResult, ...]
    routed: tuple[tuple[ChainResult, ...], ...]

    def losses(self, kind: LossKind) -> Int[np.ndarray, "settings samples"]:
        """Return each setting's loss against full depth (`train.guarantee.LossKind`)."""

        def loss(full: ChainResult, one: ChainResult) -> int:
            if kind == "disagreement":
                return not agrees(one, full)
            if one.verified is None:  # a table's full depth was judged twice, and other chains only where they may be
                return full.correct - one.correct  # labels: without this they would gain by it
            return full.right - one.right

        rows = [[loss(full, one) for full, one in zip(self.full, row, strict=True)] for row in self.routed]
        return np.array(rows, dtype=np.int64)

    def part(self, settings: slice) -> Calibration:
        """Return what some of the settings did."""
        return Calibration(self.full, self.routed[settings])

    @property
    def depths(self) -> Float[np.ndarray, " settings"]:
        """Mean depth of each setting, layers."""
        return np.array([np.mean([result.chain.depth for result in row]) for row in self.routed])


def settings_of(points: Sequence[BudgetPoint], count: int, least_scores: Sequence[float]) -> list[OperatingPoint]:
    """Return settings in the order in which they are tested: from the deepest operating point to the shallowest.

    They were fixed on the validation split, so the calibration split has no part in them.

    Args:
        points: the router's operating points.
        count: how many of them to take, evenly spread.
        least_scores: for each of these the whole sequence again, with that fallback; none: without fallback.

    Raises:
        InputError: where the router has no operating points.
    """
    ordered = sorted(points, key=lambda point: -point.mean_depth)
    if not ordered:
        raise InputError("router: expected one with operating points, got one without")
    places = sorted({round(i * (len(ordered) - 1) / max(1, count - 1)) for i in range(count)})
    fallbacks: list[float | None] = list(least_scores) or [None]
    return [OperatingPoint(ordered[place].offset, least) for least in fallbacks for place in places]


def _require_fit(record: SearchRecord, router: Router, where: str) -> None:
    """Refuse records of another model or prompt, or of the control."""
    router.config.fingerprints.require(record.fingerprints, where)
    record.require_gold(where)


def static_settings(folder: Path, router: Router) -> list[Chain]:
    """Return the best static chain of each depth below the model's, from the deepest to the shallowest.

    Args:
        folder: menu tables of training and validation samples; "best" is by right answers on them.
        router: the router that they are a baseline for.

    Raises:
        InputError: where the records have no chain in common but the full one, or are another model's.
    """
    require_directory(folder, "static")
    records = [one for split in TABLES for one in read_records(folder / f"{split}.jsonl", "static")]
    for record in records:
        _require_fit(record, router, f"static {folder}")
    table = DenseTable.of(records)
    best = [table.chains[column] for column in table.best_of_each_depth()]
    shorter = [chain for chain in reversed(best) if chain.depth < chain.num_layers]
    if not shorter:
        raise InputError("static: expected menu tables with chains shorter than the full one, got none in common")
    return shorter


def run_settings(
    router: Router,
    scorer: ChainScorer,
    samples: Sequence[Sample],
    tried: Sequence[OperatingPoint | Chain],
    settings: CalibrateSettings,
    pool: Pool | None = None,
) -> Calibration:
    """Route every sample at every setting and run the chains, in the mode of evaluation.

    A chain runs once for a sample, however many settings choose it. What is on the disk is not run again.

    Args:
        router: the router.
        scorer: its base model.
        samples: the calibration samples.
        tried: operating points of the router, and static chains.
        settings: where the results lie, and sizes of batches.
        pool: where the chains run; None: in this process.

    Raises:
        InputError: where the results are corrupt.
        UnfinishedError: where some batches could not be run.
    """
    identity = {
        "fingerprints": asdict(scorer.fingerprints),
        "dtype": scorer.dtype,
        "samples": sha256_json([sample.id for sample in samples]),
        "batches": [settings.batch_samples, settings.batch_tokens],
        "weights": sha256_file(settings.router / WEIGHTS_FILE),
        "tried": [str(one) for one in tried],
    }
    # A file for each router and each set of settings, so that no result is in another one's way.
    path = (settings.out or settings.router / "calibration") / f"{sha256_json(identity)[:16]}.jsonl"
    full = Chain.full(scorer.num_layers)

    def work(batch: Batch[EncodedSample], report: Report) -> list[Routed]:
        block = scorer.load(batch.items)
        picked = _decisions(router, [scorer.states(block, layer) for layer in router.config.read_layers], tried)
        distinct = [list(dict.fromkeys([full, *(one.chain for one in own)])) for own in picked]
        judged = iter(scorer.judge(block, [(i, chain) for i, chains in enumerate(distinct) for chain in chains]))
        made = []
        for one, chains, wanted in zip(batch.items, distinct, picked, strict=True):
            answers = {chain: next(judged) for chain in chains}
            results = [answers[full]]
            results += [delivered(answers[it.chain], one.task, one_token=it.one_token) for it in wanted]
            distinct_results = list(dict.fromkeys(results))
            made.append(Routed(one.sample.id, tuple(distinct_results), tuple(map(distinct_results.index, results[1:]))))
        report.tick(len(made))
        return made

    encoded = scorer.encode_all(samples)
    batches = [
        Batch(str(number), tuple(encoded[i] for i in batch), tuple(samples[i].id for i in batch), len(batch))
        for number, batch in enumerate(batches_by_length([one.length for one in encoded], settings.batch_samples))
    ]
    store = Store(path, Routed, identity, _key_of, num_layers=scorer.num_layers)
    run_batches(store, batches, Task(work, _key_of, scorer), label="calibrate", unit="sample", pool=pool)
    store.finish([sample.id for sample in samples])
    rows = list(store.rows())
    return Calibration(
        full=tuple(row.results[0] for row in rows),
        routed=tuple(tuple(row.results[row.choices[place]] for row in rows) for place in range(len(tried))),
    )


def _key_of(row: Routed) -> str:
    return row.sample_id


def _decisions(
    router: Router, read: Sequence[Sequence[Tensor]], tried: Sequence[OperatingPoint | Chain]
) -> list[tuple[Decision, ...]]:
    """Return for each sample what is decided at each setting, from its states at each read layer."""
    points = [Operation(point=one) for one in tried if isinstance(one, OperatingPoint)]
    states = [state.cpu() for state in read[0]]
    decided = iter(router.decide_each(states, points, known_late(read[-1])))
    by_setting = [[Decision(one, 0.0)] * len(states) if isinstance(one, Chain) else next(decided) for one in tried]
    return list(zip(*by_setting, strict=True))
