"""Load a router with its base model, see the chains that it picks, generate under them, and score choices.

    python -m examples.route_and_generate --router runs/demo/router --budget 25

`make demo` leaves that router. Any other folder or hub id of a router will do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from router.command import run_command
from router.routed import RoutedModel
from router.strip import draw_strip, marks_for

PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "Plants make their food from sunlight in a process that is called",
]
QUESTION = "Question: Which of these do plants need to make their food?\nAnswer:"
CHOICES = [" sunlight", " sand", " smoke", " sound"]


def main(argv: Sequence[str] | None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", default="runs/demo/router", help="a router's folder or hub id")
    parser.add_argument("--budget", type=float, help="mean depth wanted, layers")
    parser.add_argument("--new-tokens", type=int, default=12, help="tokens to generate")
    options = parser.parse_args(argv)

    routed = RoutedModel.from_pretrained(options.router, budget=options.budget)
    tokenizer, layers = routed.tokenizer, routed.router.config.num_layers
    assert tokenizer is not None
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True).to(routed.device)

    marks = marks_for(sys.stdout.encoding)
    print(marks.legend())
    for prompt, one in zip(PROMPTS, routed.route(**batch), strict=True):
        strip = draw_strip(one.chain, routed.router.config.read_layer, marks)
        print(f"{strip}  {one.chain.depth} of {layers} layers  {prompt!r}")

    # Rows of one chain run together; a row's text does not hang on its neighbours.
    out = routed.generate(**batch, max_new_tokens=options.new_tokens, do_sample=False)
    for text in tokenizer.batch_decode(out, skip_special_tokens=True):
        print(f"\n{text}")

    scored = routed.score(QUESTION, CHOICES)
    print(f"\n{QUESTION}  [{scored.routed.chain}]")
    for choice, logprob in zip(CHOICES, scored.logprobs, strict=True):
        print(f"{logprob:9.3f} {choice}{'  <- best' if choice == CHOICES[scored.best] else ''}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
