"""Certify a router: the cheapest operating point whose loss against full depth is below epsilon, surely enough.

    python -m train.calibrate --router runs/qwen/router --data runs/qwen/data --model qwen2.5-coder-1.5b-instruct         --epsilon 0.02 --delta 0.1

Learn then Test (Angelopoulos et al., arXiv 2110.01052; `train.guarantee`) on a split that neither training nor the
choice of settings has seen. Writes `guarantee.json` beside the router; with too few data it says what they would have
been enough for, and the router falls back to full depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from data.accuracy import ModelSettings, claim, open_scorer
from data.records import ChainResult, DenseTable, SearchRecord, read_records
from data.sample import Sample
from data.scoring import ChainScorer, batches_by_length
from data.tasks import TASKS_FILE
from router.chain import Chain
from router.command import parse_settings, plain_values, provenance, run_command
from router.files import JsonLog, read_json, read_json_lines, require_directory, require_file, sha256_file, sha256_json
from router.heads.budget import BudgetPoint
from router.storage import (
    CONFIG_FILE,
    GUARANTEE_FILE,
    TRAINED_ON_FILE,
    WEIGHTS_FILE,
    Guarantee,
    Router,
    load_router,
    trained_questions,
    write_guarantee,
)
from router.validation import InputError
from train.guarantee import Certificate, certify

RESULTS_FILE = "results.jsonl"


@dataclass(frozen=True)
class CalibrateSettings:
    """Settings of `python -m train.calibrate`.

    Attributes:
        router: folder of the trained router; the guarantee is written there.
        data: folder of `python -m data prepare`, with the split.
        epsilon: loss allowed against full depth, at least 0 and below 1.
        delta: probability of being wrong, above 0 and below 1.
        loss: "accuracy": accuracy lost against full depth; "disagreement": share of samples answered otherwise.
        split: the calibration split; no question of it may have been trained on.
        points: operating points to test, evenly spread over the router's.
        least_scores: tries each of these fallbacks too: samples whose chain scores less run at full depth (of a menu
            head the score is a value in 0..1); delta is shared among them. None: the price alone decides.
        static: folder of menu tables (train.jsonl and validation.jsonl): their best chain of each depth is certified
            in the same way, as the baseline; null: no baseline.
        out: folder for the results; a run that was stopped goes on there; null: `calibration` in the router's folder.
        model: base model: an offline asset, a local directory or a hub id.
        revision: hub revision of the model.
        dtype: dtype of the model.
        device: torch device, or auto.
        limit: samples at most, the first ones; null: all.
        batch_samples: samples run at once.
        batch_tokens: tokens in one call of a layer at most.
    """

    router: Path
    data: Path
    epsilon: float = 0.02
    delta: float = 0.1
    loss: Literal["accuracy", "disagreement"] = "accuracy"
    split: str = "calibration"
    points: int = 24
    least_scores: tuple[float, ...] = ()
    static: Path | None = None
    out: Path | None = None
    model: str = "smollm2-135m-instruct"
    revision: str | None = None
    dtype: str = "bfloat16"
    device: str = "auto"
    limit: int | None = None
    batch_samples: int = 32
    batch_tokens: int = 1024

    def __post_init__(self) -> None:
        """Refuse values out of bounds."""
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon: expected at least 0 and below 1, got {self.epsilon}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta: expected above 0 and below 1, got {self.delta}")
        if self.points < 1:
            raise ValueError(f"points: expected at least 1, got {self.points}")
        self.measured()  # refuses what it refuses

    def measured(self) -> ModelSettings:
        """Return the model and samples that are named."""
        return ModelSettings(
            data=self.data,
            out=self.out or self.router / "calibration",
            model=self.model,
            revision=self.revision,
            split=self.split,
            dtype=self.dtype,
            device=self.device,
            limit=self.limit,
            batch_samples=self.batch_samples,
            batch_tokens=self.batch_tokens,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    description = "Certify a router's loss against full depth."
    settings, plain = parse_settings(CalibrateSettings, argv, "train.calibrate", description)
    require_directory(settings.router, "router")
    router = load_router(settings.router)
    key = _key(settings)
    if router.guarantee is not None and read_json(settings.router / GUARANTEE_FILE).get("key") == key:
        print(f"calibrated already, with these settings and samples: {settings.router / GUARANTEE_FILE}")
        print(_told(router.guarantee, router.config.num_layers))
        return
    tried = settings_of(router.head.budget_points, settings.points, settings.least_scores)
    measured = settings.measured()
    scorer, samples = open_scorer(measured)
    router.config.fingerprints.require(scorer.fingerprints, f"router {settings.router}")
    _require_unseen(settings.router, samples)
    weights = sha256_file(settings.router / WEIGHTS_FILE)
    # The settings may change from run to run: a chain's result on a sample does not hang on them.
    claim(measured, scorer, samples, {"batch_samples": settings.batch_samples, "batch_tokens": settings.batch_tokens})
    path = measured.out / RESULTS_FILE
    fixed = [] if settings.static is None else static_settings(_table_records(settings.static))
    done = run_settings(router, scorer, samples, [*tried, *fixed], path, settings.batch_samples)
    n = scorer.num_layers
    own, static = done.part(slice(len(tried))), done.part(slice(len(tried), None))
    found = _certify(own, settings, starts=max(1, len(settings.least_scores)))
    guarantee = _guarantee(settings, tried, own, found)
    print(_table([_name(one) for one in tried], own, found))
    more: dict[str, Any] = {"tried": plain_values([asdict(one) for one in tried]), "certificate": asdict(found)}
    if fixed:
        of_static = _certify(static, settings, starts=1)
        print(_table([_name(one) for one in fixed], static, of_static))
        chosen = of_static.chosen
        depth = float(n) if chosen is None else float(static.depths[chosen])
        more["static"] = {
            "chain": str(Chain.full(n) if chosen is None else fixed[chosen].chain),
            "depth": depth,
            "certificate": asdict(of_static),
        }
        print(f"best static chain with the same guarantee: {more['static']['chain']}, depth {depth:g}")
    weights = sha256_file(settings.router / WEIGHTS_FILE)
    more |= {"depths": [float(depth) for depth in own.depths], "key": key, **provenance(plain)}
    write_guarantee(settings.router, guarantee, weights, plain_values(more))
    print(f"full depth is right on {sum(result.correct for result in own.full) / len(own.full):.4f}")
    print(_told(guarantee, n))
    print(f"guarantee: {settings.router / GUARANTEE_FILE}")


def _key(settings: CalibrateSettings) -> str:
    """Return a hash of everything that decides the guarantee."""
    files = {"weights": settings.router / WEIGHTS_FILE, "config": settings.router / CONFIG_FILE}
    files |= {name: settings.data / name for name in (TASKS_FILE, f"{settings.split}.jsonl")}
    if settings.static is not None:
        files |= {f"static/{split}": settings.static / f"{split}.jsonl" for split in ("train", "validation")}
    hashes = {name: sha256_file(require_file(path, name)) for name, path in files.items()}
    places = ("router", "data", "out", "device", "static")
    decisive = {name: value for name, value in plain_values(settings).items() if name not in places}
    return sha256_json({"settings": decisive, "files": hashes})


def _table_records(folder: Path) -> list[SearchRecord]:
    require_directory(folder, "static")
    return [record for split in ("train", "validation") for record in read_records(folder / f"{split}.jsonl", "static")]


def _certify(done: Calibration, settings: CalibrateSettings, starts: int) -> Certificate:
    depths = [float(depth) for depth in done.depths]
    losses = done.losses(settings.loss)
    try:
        return certify(losses, depths, settings.epsilon, settings.delta, kind=settings.loss, starts=starts)
    except ValueError as error:
        raise InputError(str(error)) from error


def _name(setting: Setting) -> str:
    if setting.chain is not None:
        return str(setting.chain)
    least = "" if setting.least_score is None else f", least score {setting.least_score:g}"
    return f"offset {setting.offset:.4g}{least}"


def _require_unseen(folder: Path, samples: Sequence[Sample]) -> None:
    """Refuse samples that the router was trained or chosen on."""
    seen = trained_questions(folder)
    if seen is None:
        path = folder / TRAINED_ON_FILE
        print(f"note: {path} is missing, so it could not be checked that the router never saw these questions")
        return
    known = [sample for sample in samples if sample.split_hash in seen]
    if known:
        raise InputError(
            f"split: expected questions that the router was not trained on, got {len(known)} that it was, "
            f"for example {known[0].id}"
        )


def _guarantee(
    settings: CalibrateSettings, tried: Sequence[Setting], done: Calibration, found: Certificate
) -> Guarantee:
    chosen = found.chosen
    return Guarantee(
        epsilon=settings.epsilon,
        delta=settings.delta,
        loss=settings.loss,
        offset=None if chosen is None else tried[chosen].offset,
        least_score=None if chosen is None else tried[chosen].least_score,
        samples=found.samples,
        mean_loss=found.mean_loss,
        mean_depth=float(done.full[0].chain.depth if chosen is None else done.depths[chosen]),
        smallest_epsilon=found.smallest_epsilon,
    )


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


if __name__ == "__main__":
    raise SystemExit(run_command(main))


# What a router's settings answer on a calibration split: chains really run, kept line by line, resumable.


@dataclass(frozen=True)
class Setting:
    """One setting that may be certified: of a router, or a static chain.

    Attributes:
        offset: operating point of the head; None: a static chain.
        least_score: chains that score less give way to full depth; None: none do.
        chain: the static chain; None: the router chooses.
    """

    offset: float | None
    least_score: float | None = None
    chain: Chain | None = None

    def chains(self, router: Router, output: Tensor) -> list[Chain]:
        """Return the chain of each row of the head's output."""
        if self.chain is not None:
            return [self.chain] * len(output)
        return [one.chain for one in router.route_at(output, self.offset, self.least_score)]


@dataclass(frozen=True)
class Calibration:
    """What the settings did.

    Attributes:
        full: what full depth answered, by sample.
        routed: for each setting what its chain answered, in the samples' order.
    """

    full: tuple[ChainResult, ...]
    routed: tuple[tuple[ChainResult, ...], ...]

    def losses(self, kind: Literal["accuracy", "disagreement"]) -> Int[np.ndarray, "settings samples"]:
        """Return each setting's loss against full depth: -1, 0 or 1 (accuracy), or 0 or 1 (disagreement)."""
        if kind == "disagreement":
            rows = [
                [int(a.prediction != b.prediction) for a, b in zip(self.full, row, strict=True)] for row in self.routed
            ]
        else:
            rows = [
                [int(a.correct) - int(b.correct) for a, b in zip(self.full, row, strict=True)] for row in self.routed
            ]
        return np.array(rows, dtype=np.int64)

    def part(self, settings: slice) -> Calibration:
        """Return what some of the settings did."""
        return Calibration(self.full, self.routed[settings])

    @property
    def depths(self) -> Float[np.ndarray, " settings"]:
        """Mean depth of each setting, layers."""
        return np.array([np.mean([result.chain.depth for result in row]) for row in self.routed])


def settings_of(points: Sequence[BudgetPoint], count: int, least_scores: Sequence[float]) -> list[Setting]:
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
    return [Setting(ordered[place].offset, least) for least in fallbacks for place in places]


def static_settings(records: Sequence[SearchRecord]) -> list[Setting]:
    """Return the best static chain of each depth below the model's, from the deepest to the shallowest.

    Args:
        records: menu tables of training and validation samples; "best" is by right answers on them.

    Raises:
        InputError: where the records have no chain in common but the full one.
    """
    table = DenseTable.of(records)
    best = [table.chains[column] for column in table.best_of_each_depth()]
    shorter = [chain for chain in reversed(best) if chain.depth < chain.num_layers]
    if not shorter:
        raise InputError("static: expected menu tables with chains shorter than the full one, got none in common")
    return [Setting(None, chain=chain) for chain in shorter]


def run_settings(
    router: Router,
    scorer: ChainScorer,
    samples: Sequence[Sample],
    settings: Sequence[Setting],
    log_path: Path,
    batch_samples: int,
) -> Calibration:
    """Route every sample at every setting and run the chains, in the mode of evaluation.

    A chain runs once for a sample, however many settings choose it. What is on the disk is not run again.

    Args:
        router: the router.
        scorer: its base model.
        samples: the calibration samples.
        settings: the settings.
        log_path: JSON Lines file that keeps the results.
        batch_samples: samples loaded at once.

    Raises:
        InputError: where the file is corrupt.
    """
    encoded = scorer.encode_all(samples)
    routes: dict[str, list[Chain]] = {}
    full = Chain.full(scorer.num_layers)
    with JsonLog(log_path) as log, tqdm(total=len(samples), desc="calibrate", unit="sample") as bar:
        known = _read(log_path, scorer.num_layers)  # the log has cut off what a killed run left torn
        for batch in batches_by_length([one.length for one in encoded], batch_samples):
            block = scorer.load([encoded[i] for i in batch])
            states = [state.cpu() for state in scorer.states(block, router.config.read_layer)]
            output = router.outputs(states)
            by_setting = [one.chains(router, output) for one in settings]
            jobs: list[tuple[int, Chain]] = []
            for place, i in enumerate(batch):
                routes[samples[i].id] = [chains[place] for chains in by_setting]
                jobs += [(place, chain) for chain in dict.fromkeys([full, *routes[samples[i].id]])]
            names = [samples[i].id for i in batch]
            if any((names[place], chain) not in known for place, chain in jobs):
                # The batch runs whole, so that a chain runs in the same company as in an unbroken run.
                results = zip(jobs, scorer.judge(block, jobs), strict=True)
                fresh = [(names[place], one) for (place, chain), one in results if (names[place], chain) not in known]
                log.append(*({"sample_id": name, **one.to_json()} for name, one in fresh))
                known.update({(name, one.chain): one for name, one in fresh})
            bar.update(len(batch))
    return Calibration(
        full=tuple(known[sample.id, full] for sample in samples),
        routed=tuple(
            tuple(known[sample.id, routes[sample.id][place]] for sample in samples) for place in range(len(settings))
        ),
    )


def _read(path: Path, num_layers: int) -> dict[tuple[str, Chain], ChainResult]:
    known: dict[tuple[str, Chain], ChainResult] = {}
    for number, value in read_json_lines(path) if path.exists() else ():
        fields: dict[str, Any] = dict(value)
        try:
            name = str(fields.pop("sample_id"))
            result = ChainResult.from_json(fields, num_layers)
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path}, line {number}: expected a result, got {error}") from error
        known[name, result.chain] = result
    return known
