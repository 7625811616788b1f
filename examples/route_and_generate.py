"""Load a router with its base model, see the chains that it picks, generate under them, and score choices.

    python -m examples.route_and_generate --router runs/demo/router --budget 25

`make demo` leaves that router. Any other folder or hub id of a router will do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic.dataclasses import dataclass

from router.command import parse_settings, run_command
from router.routed import RoutedModel
from router.strip import draw_strip, marks_for
from router.validation import SETTINGS, Positive

PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "Plants make their food from sunlight in a process that is called",
]
QUESTION = "Question: Which of these do plants need to make their food?\nAnswer:"
CHOICES = [" sunlight", " sand", " smoke", " sound"]


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Example:
    """Settings of the example.

    Attributes:
        router: a router's folder or hub id.
        budget: mean depth wanted, layers; unset: the router's own choice.
        max_new_tokens: tokens to generate.
    """

    router: str = "runs/demo/router"
    budget: float | None = None
    max_new_tokens: Positive = 12


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example."""
    example, _ = parse_settings(Example, argv, "examples.route_and_generate", "See what a router picks.")
    routed = RoutedModel.from_pretrained(example.router, budget=example.budget)
    tokenizer, layers = routed.tokenizer, routed.router.config.num_layers
    assert tokenizer is not None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # what it fills is masked
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True).to(routed.device)

    marks = marks_for(sys.stdout.encoding)
    print(marks.legend())
    for prompt, one in zip(PROMPTS, routed.route(**batch), strict=True):
        strip = draw_strip(one.chain, routed.router.config.read_layer, marks)
        print(f"{strip}  {one.chain.depth} of {layers} layers  {prompt!r}")

    # Rows of one chain run together; a row's text does not hang on its neighbours.
    out = routed.generate(**batch, max_new_tokens=example.max_new_tokens, do_sample=False)
    for text in tokenizer.batch_decode(out, skip_special_tokens=True):
        print(f"\n{text}")

    scored = routed.score(QUESTION, CHOICES)
    print(f"\n{QUESTION}  [{scored.routed.chain}]")
    for choice, logprob in zip(CHOICES, scored.logprobs, strict=True):
        print(f"{logprob:9.3f} {choice}{'  <- best' if choice == CHOICES[scored.best] else ''}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
