"""Make a menu: the chains that a router may choose from.

    python -m search.menu --kind subsets --model qwen2.5-coder-1.5b-instruct --prefix_layers 22 --out runs/x/menu.json
    python -m search.menu --kind records --records '[runs/x/search/train.jsonl]' --prefix_layers 20 --size 64 \
        --out runs/x/menu.json
    python -m search --menu runs/x/menu.json --data runs/x/data --out runs/x/table ...

The last line then runs all samples through the whole menu: the *menu table*, which a menu head is trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data.records import SearchRecord, read_records
from router.chain import Chain
from router.command import InputError, parse_settings, provenance, run_command
from router.durable import sha256_file, writable_directory
from router.models import layers_of
from search.menu_choice import Outcomes, ValueKind, best_of_each_depth, chain_means, choose_chains, outcomes_of
from search.menu_file import Menu, write_menu

MOST_SUBSETS = 2**12
"""Chains of kind subsets at most."""


@dataclass(frozen=True)
class MenuSettings:
    """Settings of `python -m search.menu`.

    Attributes:
        kind: "records": choose from the chains that searches (or menu tables) tried; "subsets": every chain that
            drops some of the layers from `prefix_layers` on.
        out: the file to write.
        prefix_layers: layers that run unedited in every chain.
        records: record files of training samples, all of one model and prompt (kind records).
        size: chains of the menu, at most (kind records).
        value: what a chain is chosen for: right answers, agreement with full depth, or both (kind records).
        predictable: share of the difference between samples that a router is expected to foresee, 0..1: 1 chooses for
            coverage, 0 the best chains on average (kind records).
        prices: prices of a full depth's layers, in units of value, at which the menu is to be good (kind records).
        least: mean value of a candidate, in times full depth's: chains that hardly do better than a guess are right
            by luck (kind records).
        tried: samples on which a chain must have been tried to be a candidate (kind records).
        max_dropped: layers that a chain drops at most (kind subsets); null: all.
        max_depth: layers of the deepest chain, besides the full one; null: any.
        min_depth: layers of the shallowest chain.
        limit: samples of each record file to use, the first ones; null: all.
        model: base model, for the number of its layers (kind subsets).
        revision: its hub revision.
    """

    out: Path
    prefix_layers: int
    kind: Literal["records", "subsets"] = "records"
    records: tuple[Path, ...] = ()
    size: int = 64
    value: ValueKind = "correct"
    predictable: float = 0.3
    prices: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
    least: float = 0.5
    tried: int = 8
    max_dropped: int | None = None
    max_depth: int | None = None
    min_depth: int = 1
    limit: int | None = None
    model: str = "smollm2-135m-instruct"
    revision: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of bounds."""
        least = {
            "prefix_layers": 0,
            "size": 2,
            "tried": 1,
            "max_dropped": 1,
            "max_depth": 1,
            "min_depth": 1,
            "limit": 1,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name}: expected at least {bound}, got {value}")
        if not 0 <= self.predictable <= 1:
            raise ValueError(f"predictable: expected 0..1, got {self.predictable}")
        if not self.prices or not all(0 <= price < float("inf") for price in self.prices):
            raise ValueError(f"prices: expected finite numbers of at least 0, got {list(self.prices)}")
        if self.kind == "records" and not self.records:
            raise ValueError("records: expected a file at least with kind records, got none")

    def allows(self, chain: Chain) -> bool:
        """Whether a chain's depth is within bounds; the full chain always is."""
        return chain.is_full or (chain.depth >= self.min_depth and chain.depth <= (self.max_depth or chain.depth))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    settings, plain = parse_settings(MenuSettings, argv, "search.menu", "Make a menu of chains.")
    writable_directory(settings.out.parent, "out")
    made = provenance(plain)
    if settings.kind == "subsets":
        menu = Menu.of(list(subsets(settings)), settings.prefix_layers, made)
    else:
        menu = _chosen(settings, made)
    if len(menu.chains) < 2:
        raise InputError("records: expected a chain worth choosing besides the full one, got none")
    write_menu(settings.out, menu)
    depths = [chain.depth for chain in menu.chains]
    print(f"menu: {len(menu.chains)} chains of depth {min(depths)}..{max(depths)}, {settings.out} ({menu.sha256[:16]})")


def subsets(settings: MenuSettings) -> Iterator[Chain]:
    """Give every chain that drops some of the layers from `prefix_layers` on.

    Raises:
        InputError: where there would be too many.
    """
    n = layers_of(settings.model, settings.revision)
    if not 1 <= settings.prefix_layers < n:
        raise InputError(f"prefix_layers: expected 1..{n - 1}, got {settings.prefix_layers}")
    editable = range(settings.prefix_layers, n)
    most = min(len(editable), settings.max_dropped or n, n - settings.min_depth)
    count = 0
    for k in range(most + 1):
        for dropped in itertools.combinations(editable, k):
            chain = Chain(tuple(layer for layer in range(n) if layer not in dropped), n)
            if settings.allows(chain):
                count += 1
                if count > MOST_SUBSETS:
                    raise InputError(f"max_dropped: expected at most {MOST_SUBSETS} chains in all, got more")
                yield chain


def _chosen(settings: MenuSettings, made: dict[str, object]) -> Menu:
    """Choose from records."""
    outcomes = _outcomes(settings)
    try:
        chosen = choose_chains(
            outcomes,
            settings.size,
            predictable=settings.predictable,
            prices=settings.prices,
            keep=best_of_each_depth(outcomes),
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    hashes = {str(path): sha256_file(path) for path in settings.records}
    gains = {str(chain): round(gain, 6) for chain, gain in chosen}
    print(f"{len(outcomes.chains)} candidates on {len(outcomes.values)} samples; the first chosen, and what each adds:")
    for chain, gain in chosen[:12]:
        print(f"  {chain!s:<32} depth {chain.depth:>3}  {gain:+.4f}")
    made = {**made, "records": hashes, "samples": len(outcomes.values), "gains": gains}
    return Menu.of([chain for chain, _ in chosen], settings.prefix_layers, made)


def _outcomes(settings: MenuSettings) -> Outcomes:
    records: dict[str, SearchRecord] = {}
    first = None
    for path in settings.records:
        for record in read_records(path)[: settings.limit]:
            first = first or record
            if record.split == "test" or record.reward_target != "gold":
                raise InputError(f"records: expected a search of training samples told the right answers in {path}")
            record.fingerprints.require(first.fingerprints, f"records: {path}")
            known = records.get(record.sample_id)
            records[record.sample_id] = record if known is None else _joined(known, record)
    kept = outcomes_of(records.values(), settings.value, settings.prefix_layers, settings.tried)
    means = chain_means(kept.values)
    allowed = [
        i
        for i, chain in enumerate(kept.chains)
        if chain.is_full or (settings.allows(chain) and means[i] >= settings.least * means[0])
    ]
    return kept.only(allowed)


def _joined(one: SearchRecord, other: SearchRecord) -> SearchRecord:
    """Return a record with the chains of both; of a chain tried in both, what the first found."""
    known = {result.chain for result in one.results}
    return replace(one, results=(*one.results, *(new for new in other.results if new.chain not in known)))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
