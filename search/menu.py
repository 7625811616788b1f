"""Menus: the chains that a router may choose from: the file, the choice, and `python -m search menu`.

    python -m search menu --kind subsets --model qwen2.5-coder-1.5b-instruct --first_editable 22 --out runs/x/menu.json
    python -m search menu --records '[runs/x/search/train.jsonl]' --first_editable 20 --size 64 --out runs/x/menu.json
    python -m search --menu runs/x/menu.json --data runs/x/data --out runs/x/table ...

The last line then runs all samples through the whole menu: the *menu table*, which a menu head is trained on.

Which chains make a good menu? A router that knew every outcome would gain the most from chains that are right by luck;
one that knew nothing, from those that are best on average. What a router can know lies between, so each outcome is
shrunk towards its chain's mean on the sample's task: a value v of chain k on sample s counts as (1 - p) * mean + p * v,
where p, the *predictable share*, says how much of the difference between samples a router is expected to foresee (1:
coverage; 0: the static frontier of each task). At a price per layer a menu is worth the mean over samples of its best
priced value; the sum over prices from 0 up serves several budgets at once. This worth is monotone and submodular in the
menu, so the greedy choice reaches at least 1 - 1/e of the best (Nemhauser, Wolsey and Fisher 1978), and a chain that
does what another one does gains nothing: diversity follows.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, ValidationInfo, model_validator
from pydantic.dataclasses import dataclass

from data.records import ChainResult, SearchRecord, joined, mean_agreement, read_records
from router.chain import Chain
from router.command import parse_settings, provenance
from router.engine.load import DEFAULT_MODEL, outline_of
from router.files import read_json, require_file, sha256_file, sha256_json, writable_directory, write_json
from router.validation import (
    SETTINGS,
    STORED,
    Count,
    InputError,
    NotNegative,
    Positive,
    Share,
    explain,
    from_plain,
    shown,
    to_plain,
)
from search.gains import find_gains

SCHEMA = 2
"""Version of the menu file's format."""


def _parse_chain(value: object, info: ValidationInfo) -> Chain:
    if isinstance(value, Chain):
        return value
    if not isinstance(value, str) or info.context is None:
        raise ValueError(f"chain: expected text, got {shown(value)}")
    return Chain.parse(value, info.context["num_layers"])


ChainText = Annotated[Chain, BeforeValidator(_parse_chain), PlainSerializer(str)]
"""A chain, in files its text form."""


@dataclass(frozen=True, config=STORED)
class Menu:
    """Chains to choose from.

    Attributes:
        chains: the chains, all different, of one model; the full chain is the first.
        first_editable: layers 0..first_editable-1 run unedited in every chain.
        made: how it was made: settings, measures, hashes of what it was chosen from.

    Raises:
        ValueError: where the chains are not so.
    """

    chains: tuple[ChainText, ...]
    first_editable: Count
    made: dict[str, Any] = field(default_factory=dict, compare=False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse chains that are no menu."""
        if not self.chains or not self.chains[0].is_full:
            raise ValueError("chains: expected the full chain as the first, got another or none")
        if len({chain.num_layers for chain in self.chains}) > 1:
            raise ValueError("chains: expected chains of one model, got several numbers of layers")
        if len(set(self.chains)) != len(self.chains):
            raise ValueError("chains: expected every chain once, got one twice")
        if self.first_editable >= self.num_layers:
            raise ValueError(f"first_editable: expected 0..{self.num_layers - 1}, got {self.first_editable}")
        for chain in self.chains:
            if chain.unedited_prefix < self.first_editable:
                raise ValueError(
                    f"chains: expected chains that begin with layers 0..{self.first_editable - 1}, got {chain}"
                )
        return self

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.chains[0].num_layers

    @property
    def sha256(self) -> str:
        """Hash of the chains and the prefix; how they were chosen does not count."""
        return sha256_json([self.first_editable, self.num_layers, [chain.to_json() for chain in self.chains]])

    @classmethod
    def of(cls, chains: Sequence[Chain], first_editable: int, made: dict[str, Any] | None = None) -> Menu:
        """Return the menu of some chains: the full chain first, the others by depth and layers, each once."""
        return cls(in_order({Chain.full(chains[0].num_layers), *chains}), first_editable, made or {})


def in_order(chains: Iterable[Chain]) -> tuple[Chain, ...]:
    """Return chains in the order of a menu: the full one, the others from the deepest on and by their layers."""
    return tuple(sorted(chains, key=lambda chain: (not chain.is_full, -chain.depth, chain.layers)))


def write_menu(path: Path, menu: Menu) -> None:
    """Write a menu file, complete or not at all."""
    write_json(path, {"schema": SCHEMA, "num_layers": menu.num_layers, **to_plain(menu)})


def read_menu(path: Path) -> Menu:
    """Read a menu file.

    Raises:
        InputError: where it is missing or no menu.
    """
    value = read_json(require_file(path, "menu"))
    schema, num_layers = value.pop("schema", None), value.pop("num_layers", None)
    if schema == 1:  # before `first_editable` had its name
        value["first_editable"] = value.pop("prefix_layers", None)
    elif schema != SCHEMA:
        raise InputError(f"{path}: schema: expected {SCHEMA} or 1, got {schema!r}")
    return from_plain(Menu, value, str(path), num_layers=num_layers)


CHAIN_TRUST = 4.0
"""Samples' worth of the mean of all chains that is added to each chain's own."""
TASK_TRUST = 16.0
"""Samples' worth of a chain's mean over all tasks that is added to its mean on one task."""
LEAST_GAIN = 1e-9
"""Mean worth that a chain must add to be chosen."""
ValueKind = Literal["correct", "agree", "both"]


@plain_dataclass(frozen=True)
class Outcomes:
    """What chains did on samples.

    Attributes:
        chains: the chains, the full one first.
        values: `[samples, chains]`, each in 0..1; nan: not tried.
        tasks: each sample's task; none: all are of one.
    """

    chains: tuple[Chain, ...]
    values: Float[np.ndarray, "samples chains"]
    tasks: tuple[str, ...] = ()

    def only(self, columns: Sequence[int]) -> Outcomes:
        """Return the outcomes of some of the chains."""
        return Outcomes(tuple(self.chains[i] for i in columns), self.values[:, list(columns)], self.tasks)

    def worthwhile(self, least: float, tried: int) -> Bool[np.ndarray, " chains"]:
        """Return which chains were tried on so many samples, with so large a mean value in times full depth's."""
        means = chain_means(self.values)
        result: NDArray[np.bool_] = (means >= least * means[0]) & ((~np.isnan(self.values)).sum(0) >= tried)
        return result

    def shrunk(self, predictable: float) -> Float[np.ndarray, "samples chains"]:
        """Return the values shrunk towards their chain's mean on the sample's task: a router can tell tasks apart.

        Args:
            predictable: p of the module's text, 0..1.
        """
        overall = chain_means(self.values)
        means = np.tile(overall, (len(self.values), 1))
        known = ~np.isnan(self.values)
        filled = np.where(known, self.values, 0.0)
        names = np.array(self.tasks)
        for task in dict.fromkeys(self.tasks):
            own = names == task
            means[own] = (filled[own].sum(0) + TASK_TRUST * overall) / (known[own].sum(0) + TASK_TRUST)
        result: NDArray[np.float64] = np.where(known, (1 - predictable) * means + predictable * filled, means)
        return result


def outcomes_of(records: Iterable[SearchRecord], value: ValueKind, first_editable: int, tried: int = 1) -> Outcomes:
    """Return the outcomes of all chains in some records.

    Args:
        records: records of training samples of one model, at least one.
        value: "correct": 1 where a chain is right, and a second run did not say otherwise; "agree": 1 where it answers
            as full depth does; "both": the mean of the two. Of samples asked in several variants the mean over these.
        first_editable: chains that edit an earlier layer are left out.
        tried: samples on which a chain must have been tried; the full chain always stays.
    """
    rows: list[dict[Chain, float]] = []
    tasks: list[str] = []
    counts: Counter[Chain] = Counter()
    for record in records:
        row = {
            result.chain: _value(result, record, value)
            for result in record.results
            if result.chain.unedited_prefix >= first_editable
        }
        counts.update(row.keys())
        rows.append(row)
        tasks.append(record.task)
    chains = in_order(chain for chain, count in counts.items() if count >= tried or chain.is_full)
    values = np.array([[row.get(chain, np.nan) for chain in chains] for row in rows])
    return Outcomes(chains, values, tuple(tasks))


def _value(result: ChainResult, record: SearchRecord, kind: ValueKind) -> float:
    right, same = result.mean_correct(record.variants), mean_agreement(result, record.full)
    return {"correct": right, "agree": same, "both": (right + same) / 2}[kind]


def chain_means(values: Float[np.ndarray, "samples chains"]) -> Float[np.ndarray, " chains"]:
    """Return the mean value of each chain (`Outcomes`); a chain tried seldom, drawn towards the mean of all."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    overall = filled.sum() / known.sum()
    result: NDArray[np.float64] = (filled.sum(0) + CHAIN_TRUST * overall) / (known.sum(0) + CHAIN_TRUST)
    return result


def choose_chains(
    outcomes: Outcomes,
    size: int,
    *,
    predictable: float,
    prices: Sequence[float],
    keep: Sequence[Chain] = (),
) -> list[tuple[Chain, float]]:
    """Choose a menu greedily.

    Args:
        outcomes: what the candidates did; the full chain is always chosen, first.
        size: chains of the menu, at most.
        predictable: share of the difference between samples that a router is expected to foresee.
        prices: prices of a whole model's depth, in units of value, each at least 0; each weighs alike.
        keep: candidates that are chosen in any case, after the full chain.

    Returns:
        The chains in the order of choice, each with what it added to the menu's worth.
    """
    places = {chain: i for i, chain in enumerate(outcomes.chains)}
    shares = np.array([chain.depth / chain.num_layers for chain in outcomes.chains])
    values = outcomes.shrunk(predictable)
    worths = np.stack([values - price * shares for price in prices])  # [prices, samples, chains]
    held = worths[:, :, 0].copy()
    chosen = [(outcomes.chains[0], float(held.mean()))]
    taken = {0}
    waiting = [i for i in dict.fromkeys(places[chain] for chain in keep) if i not in taken]
    while len(chosen) < min(size, len(outcomes.chains)):
        gains = _gains(worths, held)
        gains[list(taken)] = -1.0
        best = waiting.pop(0) if waiting else int(gains.argmax())
        if best in taken or (not waiting and gains[best] <= LEAST_GAIN and outcomes.chains[best] not in keep):
            break
        chosen.append((outcomes.chains[best], float(gains[best])))
        taken.add(best)
        np.maximum(held, worths[:, :, best], out=held)
    return chosen


def _gains(worths: NDArray[np.float64], held: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each chain would add, in mean worth."""
    total = np.zeros(worths.shape[2])
    for of_price, of_held in zip(worths, held, strict=True):
        total += np.maximum(of_price - of_held[:, None], 0.0).mean(axis=0)
    return total / len(worths)


def best_of_each_depth(outcomes: Outcomes) -> list[Chain]:
    """Return for each depth the chain of greatest (shrunk) mean value: the static frontier's candidates."""
    means = chain_means(outcomes.values)
    best: dict[int, int] = {}
    for i, chain in enumerate(outcomes.chains):
        if chain.depth not in best or means[i] > means[best[chain.depth]]:
            best[chain.depth] = i
    return [outcomes.chains[best[depth]] for depth in sorted(best, reverse=True)]


MOST_SUBSETS = 2**12
"""Chains of kind subsets at most."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class MenuSettings:
    """Settings of `python -m search menu`.

    Attributes:
        kind: "records": choose from the chains that searches (or menu tables) tried; "subsets": every chain that
            drops some of the layers from `first_editable` on; "repeats": every chain that runs one to `max_block`
            neighbours of them once more; "gains": the chains of `base`, and of those in menu tables the ones that are
            right more often than full depth on a kind of task, beyond luck (`search.gains`).
        out: the file to write.
        first_editable: layers that run unedited in every chain.
        records: record files of training samples, all of one model and prompt (kinds records and gains).
        base: menu file that the gains are added to (kind gains); null: to the full chain alone.
        size: chains of the menu, at most (kind records).
        value: what a chain is chosen for: right answers, agreement with full depth, or both (kind records).
        predictable: share of the difference between samples that a router is expected to foresee, 0..1: 1 chooses for
            coverage, 0 the best chains on average (kind records).
        prices: prices of a full depth's layers, in units of value, at which the menu is to be good (kind records).
        least: mean value of a candidate, in times full depth's: chains that hardly do better than a guess are right
            by luck (kind records).
        tried: samples on which a chain must have been tried to be a candidate (kind records).
        blocks: drop the layers from `first_editable` on in so many runs of neighbours, as equal as can be and the
            earlier ones the longer, so that a deep model's menu stays small (kind subsets); null: each on its own.
        max_dropped: layers that a chain drops at most (kind subsets); null: all.
        max_block: neighbours that a chain runs once more at most (kind repeats).
        max_depth: layers of the deepest chain, besides the full one; null: any.
        min_depth: layers of the shallowest chain.
        limit: samples of each record file to use, the first ones; null: all.
        model: base model, for the number of its layers (kinds subsets and repeats).
        revision: its hub revision.
    """

    out: Path
    first_editable: Count
    kind: Literal["records", "subsets", "repeats", "gains"] = "records"
    records: tuple[Path, ...] = ()
    base: Path | None = None
    size: Annotated[int, Field(ge=2)] = 64
    value: ValueKind = "correct"
    predictable: Share = 0.3
    prices: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
    least: NotNegative = 0.5
    tried: Positive = 8
    blocks: Positive | None = None
    max_dropped: Positive | None = None
    max_block: Positive = 2
    max_depth: Positive | None = None
    min_depth: Positive = 1
    limit: Positive | None = None
    model: str = DEFAULT_MODEL
    revision: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse records to choose from that are not there."""
        if self.kind in ("records", "gains") and not self.records:
            raise ValueError(f"records: expected a file at least with kind {self.kind}, got none")
        return self

    def allows(self, chain: Chain) -> bool:
        """Whether a chain's depth is within bounds; the full chain always is."""
        return chain.is_full or (chain.depth >= self.min_depth and chain.depth <= (self.max_depth or chain.depth))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    settings, plain = parse_settings(MenuSettings, argv, "search menu", "Make a menu of chains.")
    writable_directory(settings.out.parent, "out")
    made = provenance(plain)
    if settings.kind in ("records", "gains"):
        made["records"] = {str(path): sha256_file(require_file(path, "records")) for path in settings.records}
    match settings.kind:
        case "subsets":
            menu = Menu.of(subsets(settings), settings.first_editable, made)
        case "repeats":
            menu = Menu.of(repeats(settings), settings.first_editable, made)
        case "gains":
            menu = _with_gains(settings, made)
        case "records":
            menu = _chosen(settings, made)
    if len(menu.chains) < 2:
        where = "min_depth or max_depth" if settings.kind in ("subsets", "repeats") else "records"
        raise InputError(f"{where}: expected a chain worth choosing besides the full one, got none")
    write_menu(settings.out, menu)
    depths = [chain.depth for chain in menu.chains]
    print(f"menu: {len(menu.chains)} chains of depth {min(depths)}..{max(depths)}, {settings.out} ({menu.sha256[:16]})")


def subsets(settings: MenuSettings) -> list[Chain]:
    """Return every chain that drops some of the layers from `first_editable` on.

    Raises:
        InputError: where there would be too many.
    """
    n = _layers(settings)
    blocks = np.array_split(range(settings.first_editable, n), min(settings.blocks or n, n - settings.first_editable))
    least, most = n - min(settings.max_depth or n, n), min(settings.max_dropped or n, n - settings.min_depth)
    fewest = max(1, -(-least // len(blocks[0])))  # smaller choices need not be tried: they could be billions
    drops = (
        set(itertools.chain.from_iterable(dropped))
        for k in (0, *range(fewest, min(len(blocks), most) + 1))
        for dropped in itertools.combinations(blocks, k)
        if not k or least <= sum(map(len, dropped)) <= most
    )
    chains = (Chain(tuple(layer for layer in range(n) if layer not in dropped), n) for dropped in drops)
    found = list(itertools.islice(chains, MOST_SUBSETS + 1))
    if len(found) > MOST_SUBSETS:
        raise InputError(f"max_dropped: expected at most {MOST_SUBSETS} chains in all, got more")
    return found


def repeats(settings: MenuSettings) -> list[Chain]:
    """Return every chain that runs one to `max_block` neighbours from `first_editable` on once more."""
    full = Chain.full(_layers(settings))
    blocks = (
        (first, size)
        for size in range(1, settings.max_block + 1)
        for first in range(settings.first_editable, full.num_layers - size + 1)
    )
    return [full, *filter(settings.allows, (full.repeat(first, size, 1) for first, size in blocks))]


def _layers(settings: MenuSettings) -> int:
    """Return the model's layers.

    Raises:
        InputError: where `first_editable` leaves none to edit.
    """
    n = outline_of(settings.model, settings.revision).num_layers
    if not 1 <= settings.first_editable < n:
        raise InputError(f"first_editable: expected 1..{n - 1}, got {settings.first_editable}")
    return n


def _with_gains(settings: MenuSettings, made: dict[str, object]) -> Menu:
    """Add to a menu the chains that gain on a kind.

    Raises:
        InputError: where the records are no menu tables, or the menu is another model's or edits earlier layers.
    """
    outcomes = outcomes_of(_records(settings), "correct", settings.first_editable)
    outcomes = outcomes.only([i for i, chain in enumerate(outcomes.chains) if settings.allows(chain)])
    if np.isnan(outcomes.values).any():
        raise InputError("records: expected menu tables, every chain on every sample, got samples without some")
    base = (outcomes.chains[0],) if settings.base is None else read_menu(settings.base).chains
    gains = find_gains(outcomes.chains, outcomes.values > 0.5, outcomes.tasks, base)  # right in most variants
    counted = f"{len(outcomes.chains)} chains on {len(outcomes.values)} samples"
    print(f"{counted}; of each kind the best chain, and what choosing one gains on samples that did not choose:")
    print("\n".join(one.line() for one in gains))
    kept = [one for one in gains if one.stands]
    made = {**made, "gains": [f"{one.chain} on {one.kind}: {one.judged.value:+.3f}" for one in kept]}
    try:
        return Menu.of([*base, *(one.chain for one in kept)], settings.first_editable, made)
    except ValidationError as error:
        raise InputError(
            f"base: expected a menu that fits the records and first_editable, got {explain(error)}"
        ) from error


def _chosen(settings: MenuSettings, made: dict[str, object]) -> Menu:
    """Choose from records."""
    outcomes = _outcomes(settings)
    chosen = choose_chains(
        outcomes,
        settings.size,
        predictable=settings.predictable,
        prices=settings.prices,
        keep=best_of_each_depth(outcomes),
    )
    gains = {str(chain): round(gain, 6) for chain, gain in chosen}
    print(f"{len(outcomes.chains)} candidates on {len(outcomes.values)} samples; the first chosen, and what each adds:")
    for chain, gain in chosen[:12]:
        print(f"  {chain!s:<32} depth {chain.depth:>3}  {gain:+.4f}")
    made = {**made, "samples": len(outcomes.values), "gains": gains}
    return Menu.of([chain for chain, _ in chosen], settings.first_editable, made)


def _records(settings: MenuSettings) -> list[SearchRecord]:
    """Return the records to choose from; those of one sample are joined."""
    records: dict[str, SearchRecord] = {}
    first = None
    for path in settings.records:
        for record in read_records(path)[: settings.limit]:
            first = first or record
            if settings.first_editable >= record.num_layers:
                raise InputError(f"first_editable: expected 0..{record.num_layers - 1}, got {settings.first_editable}")
            if record.split == "test" or record.reward_target != "gold":
                raise InputError(f"records: expected a search of training samples for the right answers in {path}")
            record.fingerprints.require(first.fingerprints, f"records: {path}")
            known = records.get(record.sample_id)
            records[record.sample_id] = record if known is None else joined(known, record)
    if any(record.split == "calibration" for record in records.values()):
        print("note: chosen on calibration samples too; a guarantee for such a menu needs others")
    return list(records.values())


def _outcomes(settings: MenuSettings) -> Outcomes:
    """Return the outcomes of the candidates: chains that were tried enough, and do better than a guess."""
    kept = outcomes_of(_records(settings), settings.value, settings.first_editable, settings.tried)
    good = kept.worthwhile(settings.least, settings.tried)
    allowed = [i for i, chain in enumerate(kept.chains) if chain.is_full or (settings.allows(chain) and good[i])]
    return kept.only(allowed)
