"""Expert iteration: search, train a router on what was found, search again with the router as prior, and so on.

    python -m examples.expert_iteration --data runs/demo/data --out runs/demo/rounds --prefix_layers 12 --rounds 3 \
        --search_args '[--search.simulations=32]'
    python -m examples.expert_iteration --data runs/demo/data --out runs/demo/rounds --prefix_layers 12 --rounds 3 \
        --new_task runs/other/data --sizes '[64, 256, 1024]' --seeds '[0, 1, 2]'

The first writes `<out>/rounds.json` after each round. The second takes the last round's router (or `--old_router`) to a
new task: routers trained there from scratch and from its weights, on the same records; `<out>/transfer/transfer.json`.
Every stage keeps what it has finished: the same command goes on. The search is told the right answers, so what it finds
is an upper bound; a router's measures are those of the validation split that also chose its epoch, so they are for
comparing, and `python -m eval` is for results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.records import read_records
from examples.new_task import transfer
from examples.stages import Iteration, claim, search_for, told, train_on
from router.command import parse_settings, provenance, run_command
from router.durable import read_json, writable_directory, write_json
from search.menu import main as make_menu
from search.priors import main as make_prior
from search.quality import Trace, found_by
from train.datamodule import SPLITS


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example."""
    settings, plain = parse_settings(Iteration, argv, "examples.expert_iteration", "Expert iteration, and transfer.")
    writable_directory(settings.out, "out")
    if settings.new_task is None:
        iterate(settings, plain)
    else:
        transfer(settings, settings.new_task, plain)


def iterate(settings: Iteration, plain: dict[str, Any]) -> None:
    """Run the rounds and log each."""
    claim(settings.out, plain, settings.data)
    path, rounds, tables = settings.out / "rounds.json", list[dict[str, Any]](), list[Path]()
    logged = len(read_json(path)["rounds"]) if path.exists() else 0
    for number in range(settings.rounds):
        folder = writable_directory(settings.round(number), "out")
        prior = [f"--prior={_prior(settings, number)}"] if number else []
        search_for(settings, settings.data, folder / "records", *prior)
        tables.append(folder / "records" / "train.jsonl")
        taught = folder / "records"
        if settings.head == "menu":
            taught, menu = folder / "table", folder / "menu.json"
            if not menu.exists():
                records = json.dumps([str(table) for table in tables])
                named = [f"--records={records}", f"--prefix_layers={settings.prefix_layers}", f"--out={menu}"]
                make_menu([*named, *settings.menu_args])
            search_for(settings, settings.data, taught, f"--menu={menu}")
        measured = train_on(
            settings, settings.data, taught, folder / "router", f"--model.kind={settings.head}", *settings.train_args
        )
        found = {split: found_in(folder / "records" / f"{split}.jsonl") for split in SPLITS}
        rounds.append({"round": number, "prior": bool(number), "search": found, "router_on_validation": measured})
        if len(rounds) >= logged:
            write_json(path, {**provenance(plain), "rounds": rounds})
        for split, figures in found.items():
            print(f"round {number}, search of {split} (told the answers): {told(figures)}")
        print(f"round {number}, router on validation (of this round's own records): {told(measured)}")
    print(f"rounds: {path}")


def found_in(path: Path) -> dict[str, float | None]:
    """Return what a search found: shares of samples, depths and costs in layers (`search.quality.Found`)."""
    traces = [
        Trace(one.num_layers, tuple(r.chain.depth for r in one.results), tuple(r.correct for r in one.results))
        for one in read_records(path)
    ]
    found = found_by(traces)
    return {"full_depth_accuracy": found.full_right / found.samples, **asdict(found)}


def _prior(settings: Iteration, number: int) -> Path:
    path = settings.round(number) / "prior.json"
    if not path.exists():
        named = ["--kind=router", f"--router={settings.round(number - 1) / 'router'}", f"--data={settings.data}"]
        make_prior([*named, f"--out={path}", "--more_splits=[validation]", *settings.model_args, *settings.prior_args])
    return path


if __name__ == "__main__":
    raise SystemExit(run_command(main))
