"""Search chains for every sample of one or more splits.

    python -m search --config configs/search/demo.yaml
    python -m search --config configs/search/demo.yaml --splits '[train]' --search.simulations 200
    accelerate launch --num_processes 8 -m search --config configs/search/demo.yaml

Writes `<out>/<split>.jsonl`, one record a sample (docs/formats.md), `<out>/<split>.settings.json` and
`<out>/<split>.verification.json`. Any number of processes share the samples: those of a launch, and others started by
hand with the same settings, at any time. A run that was killed goes on where it stopped when the same command is given
again, with as many processes as one likes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from data.launch import this_process
from data.scoring import ChainScorer
from data.tasks import read_tasks
from router.command import one_line, parse_settings, provenance, run_command
from router.engine.load import load_model
from router.files import require_directory, writable_directory
from router.validation import InputError
from search.menu import Menu, read_menu
from search.run import SplitSearch, SplitWork, expected, run_all
from search.settings import RunSettings
from search.summary import summary


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    settings, plain = parse_settings(RunSettings, argv, "search", "Search chains of layers for every sample.")
    require_directory(settings.data, "data")
    tasks = read_tasks(settings.data)
    samples = {split: settings.read_samples(split, tasks) for split in settings.splits}
    if settings.shuffle:
        tasks = tasks.shuffled(settings.shuffle)
    writable_directory(settings.out, "out")
    launch = this_process(settings.device)
    model, tokenizer = load_model(
        settings.model, dtype=settings.dtype, device=launch.device, revision=settings.revision
    )
    scorer = ChainScorer(model, tokenizer, tasks, batch_tokens=settings.batch_tokens, state_bytes=settings.state_bytes)
    if settings.first_editable >= scorer.num_layers:
        raise InputError(
            f"first_editable: expected fewer than the model's {scorer.num_layers} layers, got {settings.first_editable}"
        )
    if max(settings.read_layers, default=0) >= scorer.num_layers:
        raise InputError(
            f"read_layers: expected fewer than the model's {scorer.num_layers} layers, got {max(settings.read_layers)}"
        )
    menu = _menu(settings, scorer)
    search = SplitSearch(
        scorer,
        settings.search if menu is None else replace(settings.search, simulations=len(menu.chains)),
        settings.first_editable,
        settings.reward_target,
        settings.batch_samples,
        settings.verify,
        menu,
        settings.read_layers,
    )
    try:
        search.searcher("any")
    except ValueError as error:
        raise InputError(f"search.{one_line(error)}") from error
    run = {**provenance(plain), "processes": launch.processes}
    works = [SplitWork(split, search, samples[split], settings.limit, settings.out, run) for split in settings.splits]
    if launch.is_main:
        total, left = sum(len(work.samples) for work in works), sum(len(work.waiting) for work in works)
        print(f"{left:,} samples to search, {total - left:,} of {total:,} are finished", flush=True)
    if settings.estimate_only:
        if launch.is_main and left:
            print(_estimate(works, launch.processes))
        return

    def show(work: SplitWork) -> None:
        if launch.is_main:
            found = work.records.merged_records()
            for line in summary(work.name, found, work.before, work.seconds, work.records.total_bytes):
                tqdm.write(line)

    run_all(works, shown=launch.is_main, done=show, processes=launch.processes)
    if launch.is_main:
        print("".join(f"note: {note}\n" for note in scorer.notes), end="")
        print(f"records: {settings.out}")


def _estimate(works: Sequence[SplitWork], processes: int) -> str:
    """Search the first batch that is not finished, keep nothing of it, and return what the whole would cost."""
    work = next(work for work in works if work.waiting)
    finished = work.records.finished
    batch = next(batch for _, batch in work.batches if any(one.sample.id not in finished for one in batch))
    start = time.monotonic()
    records = work.search.search(batch, lambda _: None)
    seconds = time.monotonic() - start
    waiting = [one for work in works for one in work.waiting_encoded]
    return expected(batch, records, seconds, waiting, work.records.path.parent, processes)


def _menu(settings: RunSettings, scorer: ChainScorer) -> Menu | None:
    """Read the menu, and refuse one of another model or with chains that edit the prefix."""
    if settings.menu is None:
        return None
    menu = read_menu(settings.menu)
    if menu.num_layers != scorer.num_layers:
        raise InputError(f"menu: expected chains of {scorer.num_layers} layers, got {menu.num_layers}")
    if menu.first_editable < settings.first_editable:
        raise InputError(
            f"first_editable: expected at most the menu's {menu.first_editable}, got {settings.first_editable}"
        )
    return menu


if __name__ == "__main__":
    raise SystemExit(run_command(main))
