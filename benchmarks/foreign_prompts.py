"""How many prompts of kinds that a router never saw run at full depth, and how many that it knows do so needlessly.

    python benchmarks/foreign_prompts.py --router runs/demo/router --data runs/demo/data [--json PATH] [--quick]

Prompts in the model's chat template: talk, code, translations and summaries, made of the short lists below, and the
lines of any `--more NAME=FILE.jsonl` (a prompt under `question`, `problem` or `prompt`). Each goes through
`RoutedModel.route` at the budget given, as it would when served. Intervals are Wilson's.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from data.encoding import batches_by_length
from data.sample import read_samples
from data.scoring import ChainScorer
from data.statistics import share_of
from data.tasks import read_tasks
from eval.tables import number, table
from router.command import run_command
from router.engine.load import chat_tokens, left_padded, padding_token
from router.files import read_json_lines, write_json
from router.heads.head import Decision
from router.routed import RoutedModel
from router.validation import InputError, to_plain

ROWS = 16
"""Prompts in one call."""
KNOWN = "known"
"""Name of the prompts that the router knows."""
PROMPT_FIELDS = ("question", "problem", "prompt")
TALK = """Hi! How are you today?
I had a bad day at work. Can you cheer me up?
Tell me a story about a dragon who is afraid of fire.
What should I cook tonight with potatoes, leeks and an egg?
Write a short poem about the sea in winter.
I want to learn to play the guitar. How do I begin?
Help me plan a weekend in Lisbon with two children.
Why do cats purr, and should I worry when mine does it all night?
Write an email to my landlord: the heating has been broken for a week.
Give me five names for a small bakery.
How do I tell a friend that I cannot come to her wedding?
Explain inflation to me as if I were ten years old.
What is a good present for a retired teacher who likes gardens?
Let us play a game: you are a pirate and I am your parrot.
My houseplant has yellow leaves. What am I doing wrong?
Compare living in the city with living in the country.
How can I fall asleep faster?
Write a toast for my brother's fiftieth birthday.
What are the arguments for and against a four-day week?
Recommend three novels for a long train journey, and say why.""".splitlines()
FRAMES = ("{}", "{} Please answer at length.", "Be honest with me. {}", "{} Keep it under a hundred words.")
PROGRAMS = """reverses a linked list
checks whether a string is a palindrome
finds the shortest path in a grid with walls
parses a CSV file with quoted fields
counts the words of a text file and prints the ten most frequent
merges overlapping intervals
computes the n-th Fibonacci number without recursion
sorts a list of dictionaries by two keys
validates an email address
solves a sudoku by backtracking
downloads a page and lists its links
converts Roman numerals to integers
implements a queue with two stacks
removes duplicates from a list and keeps the order
computes the greatest common divisor of two numbers""".splitlines()
LANGUAGES = ("Python", "JavaScript", "Rust", "SQL and a short comment on why", "Go", "C++", "Bash", "Haskell")
SENTENCES = """The train to the coast leaves at half past seven from platform two.
She has lived in this house since before the war.
If it rains tomorrow, we shall stay at home and bake bread.
The committee has not yet decided who will give the speech.
He forgot his keys on the table and had to climb through the window.
Could you tell me where the nearest pharmacy is?
The old bridge was closed after the flood, and nobody repaired it.
My grandmother taught me how to mend a shirt.
Prices have risen by a fifth within a single year.
We look forward to hearing from you, and remain yours faithfully.
The children built a castle of sand, which the tide took away.
This contract ends on the last day of March unless it is renewed.
A cold wind blew over the empty square.
The doctor said that I should drink less coffee.
Nobody knew the answer, so the teacher told a story instead.""".splitlines()
TONGUES = ("French", "German", "Spanish", "Italian", "Dutch", "Polish", "Swedish", "Portuguese")
SUMMARIES = (
    "Summarise this passage in one sentence:\n\n{}",
    "Give the main points of the following text as a list:\n{}",
    "{}\n\nTL;DR",
    "Write a headline for this text.\n\n{}",
    "Shorten this text to half its length and keep its tone:\n\n{}",
)


def foreign(data: Path, count: int, more: list[str]) -> dict[str, list[str]]:
    """Return prompts by kind; texts to summarise are the contexts of the samples in `data`, longest first."""
    contexts = sorted({one.context for one in read_samples(data / "test.jsonl") if one.context}, key=len, reverse=True)
    kinds = {
        "talk": [frame.format(line) for frame, line in itertools.product(FRAMES, TALK)],
        "code": [
            f"Write a function in {language} that {what}." for language, what in itertools.product(LANGUAGES, PROGRAMS)
        ],
        "translation": [f"Translate into {tongue}: {text}" for tongue, text in itertools.product(TONGUES, SENTENCES)],
        "summaries": [frame.format(text) for text, frame in zip(contexts, itertools.cycle(SUMMARIES), strict=False)],
    }
    for given in more:
        name, _, path = given.partition("=")
        if name in ("", KNOWN, *kinds):
            raise InputError(f"more: expected NAME=FILE with the name of another kind, got {given!r}")
        kinds[name] = [_prompt(line, f"{path}, line {number}") for number, line in read_json_lines(Path(path))]
    drawn = random.Random(0)
    return {name: drawn.sample(prompts, min(count, len(prompts))) for name, prompts in kinds.items() if prompts}


def _prompt(line: dict[str, Any], where: str) -> str:
    """Return the prompt in a line of a `--more` file."""
    found = next((line[key] for key in PROMPT_FIELDS if key in line), None)
    if not isinstance(found, str):
        raise InputError(f"{where}: expected text under one of {', '.join(PROMPT_FIELDS)}, got {found!r}")
    return found


def routes(routed: RoutedModel, prompts: list[list[int]], name: str) -> list[Decision]:
    """Return what the router decides of each prompt, run in batches of like length."""
    padding = padding_token(None, routed.generation_config.eos_token_id)
    decided: dict[int, Decision] = {}
    for batch in tqdm(batches_by_length([len(prompt) for prompt in prompts], ROWS), desc=name, unit="batch"):
        ids, mask = left_padded([prompts[i] for i in batch], routed.device, padding)
        decided |= zip(batch, routed.route(ids, mask), strict=True)
    return [decided[i] for i in range(len(prompts))]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, required=True, help="folder of the router")
    parser.add_argument("--data", type=Path, required=True, help="folder of its prepared data, with a test split")
    parser.add_argument("--budget", type=float, help="mean depth wanted; without it the router's own choice")
    parser.add_argument("--count", type=int, default=100, help="prompts of each foreign kind at most")
    parser.add_argument("--known", type=int, default=400, help="test samples at most")
    parser.add_argument("--more", action="append", default=[], metavar="NAME=FILE", help="another kind, JSON Lines")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quick", action="store_true", help="ten prompts of each kind")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    count, known = (10, 20) if options.quick else (options.count, options.known)
    routed = RoutedModel.from_pretrained(options.router, dtype=options.dtype, budget=options.budget)
    tokenizer = routed.tokenizer
    tokens = {
        name: [list(chat_tokens(tokenizer, [{"role": "user", "content": text}])) for text in prompts]
        for name, prompts in foreign(options.data, count, options.more).items()
    }
    scorer = ChainScorer(routed.plain_model(), tokenizer, read_tasks(options.data))
    samples = read_samples(options.data / "test.jsonl")[:known]
    tokens |= {KNOWN: [list(one.prompt) for one in scorer.encode_all(samples)]}
    decided = {name: routes(routed, prompts, name) for name, prompts in tokens.items()}
    decided["all foreign"] = [one for name, of_kind in decided.items() if name != KNOWN for one in of_kind]
    rows, figures = [], {}
    for name, of_kind in decided.items():
        shares = {"full": share_of([one.chain.is_full for one in of_kind])}
        shares["outside"] = share_of([not one.in_scope for one in of_kind])
        cells = ["-" if one is None else number(one.share, one.interval) for one in shares.values()]
        rows.append([name, str(len(of_kind)), *cells])
        figures[name] = {key: to_plain(one) for key, one in shares.items()}
    Console(width=100).print(table(None, ("kind", "prompts", "at full depth (95 %)", "out of scope (95 %)"), rows))
    if options.json is not None:
        write_json(options.json, {"router": str(options.router), "budget": options.budget, "kinds": figures})


if __name__ == "__main__":
    raise SystemExit(run_command(main))
