"""Show the chain that a router picks for each prompt, drawn as a strip of layers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from router.command import first_word, parse_settings
from router.commands.prompts import PromptSettings, encode_prompts, read_prompts
from router.head import ScoredChain
from router.routed import RoutedModel
from router.routed.settings import load_routed
from router.strip import draw_strip, marks_for, ruler


@dataclass(frozen=True)
class RouteSettings(PromptSettings):
    """Settings of `python -m router route`.

    Attributes:
        choices: choices that may follow the prompt, which the router reads too, as in training on such tasks; each as
            text that begins where the prompt ends.
    """

    choices: list[str] | None = None

    def __post_init__(self) -> None:
        """Refuse settings that exclude each other."""
        super().__post_init__()
        if self.choices is not None and (self.prompts is not None or self.chat):
            raise ValueError("choices: expected a prompt of its own, as text, got prompts or chat")


def main(argv: Sequence[str]) -> None:
    """Route prompts and print their chains.

    Raises:
        InputError: at bad input.
    """
    description = "Show the chain of layers that a router picks for each prompt."
    settings, _ = parse_settings(RouteSettings, first_word(argv, "router"), "router route", description)
    prompts = read_prompts(settings)
    routed = load_routed(settings)
    depths: list[int] = []
    for texts, chosen in _decisions(routed, prompts, settings):
        if not depths and not settings.json:
            print(marks_for(sys.stdout.encoding).legend())
        for text, one in zip(texts, chosen, strict=True):
            depths.append(one.chain.depth)
            print(as_json(text, one) if settings.json else drawn(text, one, routed.router.config.prefix_layers))
    if len(depths) > 1 and not settings.json:
        print(f"\nmean depth {sum(depths) / len(depths):.2f} of {routed.router.config.num_layers} layers")


def _decisions(
    routed: RoutedModel, prompts: Sequence[str], settings: RouteSettings
) -> Iterator[tuple[list[str], list[ScoredChain]]]:
    if settings.choices is not None:
        yield list(prompts), [routed.score(prompts[0], settings.choices).routed]
        return
    for texts, ids, mask in encode_prompts(routed, prompts, settings):
        yield texts, routed.route(ids, mask)


def drawn(prompt: str, routed: ScoredChain, prefix_layers: int) -> str:
    """Return a prompt and its chain as four lines."""
    chain, shown = routed.chain, " ".join(prompt.split())
    shown = shown if len(shown) <= 100 else shown[:99] + "…"
    strip = draw_strip(chain, prefix_layers, marks_for(sys.stdout.encoding))
    told = f"{chain.depth} of {chain.num_layers} layers, score {routed.score:.3f}"
    return f"\n{shown}\n  {strip}   {told}\n  {ruler(chain.num_layers)}\n  {chain}"


def as_json(prompt: str, routed: ScoredChain, **more: object) -> str:
    """Return a prompt and its chain as one line of JSON."""
    chain = routed.chain
    value = {"prompt": prompt, **more, "chain": str(chain), "layers": list(chain.layers), "depth": chain.depth}
    return json.dumps(value | {"score": routed.score}, ensure_ascii=False)
