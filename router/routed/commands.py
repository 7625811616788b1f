"""The commands of `python -m router` that load a router: info, route, generate and export, and their settings."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import PreTrainedTokenizerBase, set_seed

from router.chain import Chain
from router.command import first_word, parse_settings
from router.decision import ALLOWED_LOSS, Operation, Router
from router.engine.choices import question_of
from router.engine.load import (
    DEFAULT_MODEL,
    ModelSettings,
    chat_tokens,
    context_of,
    left_padded,
    load_model,
    outline_of,
    padding_token,
    prompt_tokens,
)
from router.files import read_json, read_json_lines, require_file
from router.heads.budget import budget_range
from router.heads.head import Decision
from router.heads.menu import MenuHead
from router.latency import budgets_by
from router.routed.export import check_weights, export_chain, free_folder
from router.routed.hub import router_folder
from router.routed.model import RoutedModel
from router.routed.options import grouped
from router.routed.pretrained import require_pair
from router.storage import load_router
from router.strip import BLOCKS, draw_strip, marks_for, ruler
from router.validation import SETTINGS, InputError, Positive, Share, to_plain

OUT_OF_SCOPE = "out of the router's scope"
"""Said of prompts unlike those of training, which run at full depth."""
SHORT = ", an answer of one token"
"""Said of decisions that end generation after a token."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class RoutedSettings(ModelSettings):
    """A router, its base model, and how much depth to spend.

    Attributes:
        router: a router's folder or its hub id; may stand alone, as the first word.
        router_revision: the router's hub revision.
        budget: mean depth wanted, layers; null: the certified operating point where there is one, else the least budget
            that lost at most allow_loss.
        guaranteed: take the certified operating point (`python -m train calibrate`).
        allow_loss: accuracy that a budget may have lost against full depth on the router's validation split; what lost
            more is refused.
        scope: run prompts unlike those that the router was trained on at full depth, where it has a scope.
        latency_factor: latency wanted, in units of full depth's, in place of a budget; needs latency_profile.
        latency_profile: `latency.json` that `python -m eval latency` measured on this device.
        device_map: places the layers on several devices (`auto`), in place of a device.
        attn_implementation: attention of the base model; null: the library's choice.
        verify: whether model and tokenizer must be those that the router was trained for.
    """

    router: str
    router_revision: str | None = None
    budget: float | None = None
    guaranteed: bool = False
    allow_loss: Share = ALLOWED_LOSS
    scope: bool = True
    latency_factor: float | None = None
    latency_profile: Path | None = None
    device_map: str | None = None
    attn_implementation: str | None = None
    verify: bool = True

    @model_validator(mode="after")
    def _spends_depth_one_way(self) -> Self:
        """Refuse settings that exclude each other."""
        wishes = {
            "budget": self.budget is not None,
            "guaranteed": self.guaranteed,
            "latency_factor": self.latency_factor is not None,
        }
        if sum(wishes.values()) > 1:
            given = " and ".join(name for name, is_given in wishes.items() if is_given)
            raise ValueError(f"budget: expected one of budget, guaranteed and latency_factor, got {given}")
        if self.latency_factor is not None and self.latency_profile is None:
            raise ValueError("latency_profile: expected a file of python -m eval latency with latency_factor, got none")
        return self


def load_routed(settings: RoutedSettings) -> RoutedModel:
    """Load the router and its base model.

    Raises:
        InputError: where one cannot be loaded, they do not fit each other, or the depth cannot be spent as asked.
    """
    options: dict[str, Any] = {
        name: value for name in ("device_map", "attn_implementation") if (value := getattr(settings, name)) is not None
    }
    try:
        routed = RoutedModel.from_pretrained(
            settings.router,
            revision=settings.router_revision,
            base_model=settings.model,
            base_revision=settings.revision,
            budget=settings.budget,
            guaranteed=settings.guaranteed,
            allow_loss=settings.allow_loss,
            scope=settings.scope,
            dtype=settings.dtype,
            device=settings.device,
            verify=settings.verify,
            **options,
        )
        if settings.latency_factor is not None and settings.latency_profile is not None:
            budget = depth_for(settings.latency_profile, routed)(settings.latency_factor)
            routed.budget, routed.guaranteed = budget, False
            try:
                routed.router.require_accuracy(budget, settings.allow_loss)
            except ValueError as error:
                raise InputError(
                    f"latency_factor: expected one of a depth that the router has, got {settings.latency_factor:g} "
                    f"({error})"
                ) from error
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from error
    return routed


def depth_for(profile: Path, routed: RoutedModel) -> Callable[[float], float]:
    """Return what says the mean depth, layers, that takes a latency (units of full depth's), by a latency profile."""
    prints, dtype = routed.router.config.fingerprints, str(routed.dtype).removeprefix("torch.")
    return budgets_by(profile, prints, routed.device.type, dtype)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PromptSettings(RoutedSettings):
    """A routed model and prompts for it.

    Attributes:
        prompt: the prompt.
        prompts: file of prompts in its place: `.jsonl` with a "prompt" in each object, else one a line.
        chat: whether a prompt is a user's message, put into the tokenizer's chat template.
        batch_size: prompts run together.
        json: whether the result is printed as JSON Lines.
    """

    prompt: str | None = None
    prompts: Path | None = None
    chat: bool = False
    batch_size: Positive = 8
    json: bool = False

    @model_validator(mode="after")
    def _names_prompts_once(self) -> Self:
        """Refuse settings that exclude each other."""
        if (self.prompt is None) == (self.prompts is None):
            got = "none" if self.prompt is None else "both"
            raise ValueError(f"prompt: expected one of prompt and prompts, got {got}")
        return self


def read_prompts(settings: PromptSettings) -> list[str]:
    """Return the prompts.

    Raises:
        InputError: where the file is missing, a line is no prompt, or a prompt is no text.
    """
    path = None if settings.prompts is None else require_file(settings.prompts, "prompts")
    if path is None:
        found = [settings.prompt or ""]
    elif path.suffix != ".jsonl":
        try:
            # Not `splitlines`, which also parts lines at marks within them; a byte-order mark may begin the file.
            found = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f"prompts: expected text in UTF-8 in {path}, got {error.reason}") from error
    else:
        found = []
        for number, value in read_json_lines(path):
            if not isinstance(value.get("prompt"), str):
                raise InputError(f"prompts: expected a text as prompt in {path}:{number}, got {value.get('prompt')!r}")
            found.append(value["prompt"])
    if not found:
        raise InputError(f"prompts: expected at least one in {path}, got none")
    for prompt in found:
        if re.search(r"[\ud800-\udfff]", prompt):  # half of a surrogate pair, or a byte that was no UTF-8
            raise InputError(f"prompt: expected text that can be written as UTF-8, got {prompt!r}")
    return found


def encode_prompts(
    routed: RoutedModel, prompts: Sequence[str], settings: PromptSettings, reserve: int = 0
) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Give prompts in batches: their texts, token ids padded on the left, and masks; `reserve` tokens may follow each.

    Raises:
        InputError: at a prompt without tokens, one that is too long, or a tokenizer without a chat template.
    """
    tokenizer = routed.tokenizer
    assert tokenizer is not None
    rows = [_tokens(tokenizer, prompt, settings.chat) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        _require_room(routed, row, prompt, reserve)
    for start in range(0, len(prompts), settings.batch_size):
        part = rows[start : start + settings.batch_size]
        yield list(prompts[start : start + settings.batch_size]), *left_padded(part, routed.device)


def _require_room(routed: RoutedModel, tokens: Sequence[int], prompt: str, reserve: int) -> None:
    """Refuse a prompt without tokens, and one too long for the model with as many tokens behind it."""
    context = context_of(routed)
    if not tokens:
        raise InputError(f"prompt: expected at least one token, got {prompt!r}")
    if context is not None and len(tokens) + reserve > context:
        raise InputError(
            f"prompt: expected at most {context - reserve} tokens ({context} positions, {reserve} of them for the "
            f"answer), got {len(tokens)}"
        )


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool) -> tuple[int, ...]:
    if not chat:
        return prompt_tokens(tokenizer, prompt)
    if tokenizer.chat_template is None:
        raise InputError("chat: expected a tokenizer with a chat template, got one without")
    return chat_tokens(tokenizer, [{"role": "user", "content": prompt}])


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class InfoSettings:
    """Settings of `python -m router info`.

    Attributes:
        router: a router's folder or its hub id; may stand alone, as the first word.
        router_revision: its hub revision.
        json: whether the result is printed as JSON.
    """

    router: str
    router_revision: str | None = None
    json: bool = False


def info(argv: Sequence[str]) -> None:
    """Print what a router is.

    Raises:
        InputError: at bad input.
    """
    description = "Say what a router is: its base model, head, budgets and guarantee. No model is loaded."
    settings, _ = parse_settings(InfoSettings, first_word(argv, "router"), "router info", description)
    router = load_router(router_folder(settings.router, revision=settings.router_revision))
    facts = describe(router)
    if settings.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        if name != "prompts":
            print(f"{name.ljust(width)}  {_shown(value)}")
    if isinstance(router.head, MenuHead):
        print(f"\n{marks_for(sys.stdout.encoding).legend()}")
        for chain in router.head.chains:
            strip = draw_strip(chain, router.config.read_layer, marks_for(sys.stdout.encoding))
            print(f"  {strip}  {chain.depth:3}  {chain}")
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, form in facts["prompts"].items():
        alike.setdefault((form["style"], form["lead"], form["asked"]), []).append(name)
    for (style, lead, asked), names in alike.items():
        begun = f"; the answer begins with {lead}" if lead else ""
        print(f"\nprompts of {', '.join(names)} ({'chat' if style == 'chat' else 'plain text'}{begun})")
        print(textwrap.indent(asked, "  "))


def forms_of(router: Router) -> dict[str, dict[str, str]]:
    """Return how the prompts of each task look that the router was trained on; nothing where it does not say."""
    kept = router.config.training.get("prompts")
    names = {"style", "asked", "lead"}
    told = kept.items() if isinstance(kept, dict) else ()
    return {
        name: form
        for name, form in told
        if isinstance(form, dict) and form.keys() == names and all(isinstance(text, str) for text in form.values())
    }


def describe(router: Router) -> dict[str, Any]:
    """Return what is worth knowing of a router, as JSON data."""
    config, certified = router.config, router.guarantee
    points = config.budget_points
    budgets = [round(depth, 2) for depth in budget_range(points, config.num_layers)] if points else None
    facts: dict[str, Any] = {
        "base_model": config.base_model,
        "revision": config.revision,
        "dtype": config.dtype,
        "num_layers": config.num_layers,
        "read_layer": config.read_layer,
        "late_read_layer": None if config.late is None else config.late.read_layer,
        "head": config.head,
        "parameters": router.parameters,
        "task": config.task,
        "mode": config.mode,
        "budgets": budgets,
        "default": said_of(router, router.default_operation()),
        "guarantee": None if certified is None else to_plain(certified),
        "scope": None if config.scope is None else to_plain(config.scope),
        "prompts": forms_of(router),
        "fingerprints": to_plain(config.fingerprints),
    }
    if isinstance(router.head, MenuHead):
        facts["menu"] = [str(chain) for chain in router.head.chains]
    return facts


def said_of(router: Router, operation: Operation) -> str:
    """Return in words how much depth an operation spends."""
    layers = router.config.num_layers
    if operation.guaranteed and router.guarantee is not None:
        if router.guarantee.offset is None:
            return f"its guaranteed depth, which is full depth, {layers} layers"
        return f"its guaranteed depth, about {router.guarantee.mean_depth:.1f} of {layers} layers"
    if operation.budget is None:
        return "the router's own depth, whose accuracy was not measured"
    found = router.measured(operation.budget)
    told = f"a mean depth of {operation.budget:g} of {layers} layers"
    if found is None:
        return told
    return f"{told}; in validation right on {found.accuracy:.3f}, full depth on {found.full_accuracy:.3f}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one[:12] if isinstance(one, str) else one}" for name, one in value.items())
    if isinstance(value, list) and len(value) == 2 and all(isinstance(one, float) for one in value):
        return f"{value[0]:g}..{value[1]:g} layers"
    if isinstance(value, list):
        return f"{len(value)} chains"
    return "-" if value is None else str(value)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class RouteSettings(PromptSettings):
    """Settings of `python -m router route`.

    Attributes:
        choices: choices that may follow the prompt, which the router reads too, as in training on such tasks; each as
            text that begins where the prompt ends.
    """

    choices: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _reads_choices_after_one_prompt(self) -> Self:
        """Refuse settings that exclude each other."""
        if self.choices is not None and (self.prompts is not None or self.chat):
            raise ValueError("choices: expected a prompt of its own, as text, got prompts or chat")
        return self


def route(argv: Sequence[str]) -> None:
    """Route prompts and print their chains.

    Raises:
        InputError: at bad input.
    """
    description = "Show the chain of layers that a router picks for each prompt."
    settings, _ = parse_settings(RouteSettings, first_word(argv, "router"), "router route", description)
    prompts = read_prompts(settings)
    routed = load_routed(settings)
    depths: list[int] = []
    outside = 0
    for texts, chosen in _decisions(routed, prompts, settings):
        if not depths and not settings.json:
            print(marks_for(sys.stdout.encoding).legend())
        for text, one in zip(texts, chosen, strict=True):
            depths.append(one.chain.depth)
            outside += not one.in_scope
            print(as_json(text, one) if settings.json else drawn(text, one, routed.router.config.read_layer))
    if len(depths) > 1 and not settings.json:
        told = f", {outside} of {len(depths)} prompts {OUT_OF_SCOPE}" if routed.router.scope is not None else ""
        print(f"\nmean depth {sum(depths) / len(depths):.2f} of {routed.router.config.num_layers} layers{told}")
    template = getattr(routed.tokenizer, "chat_template", None)
    if 2 * outside > len(depths) and template is not None and not settings.chat and settings.choices is None:
        print("a router trained on chats knows its prompts as chats: --chat true asks them so", file=sys.stderr)


def _decisions(
    routed: RoutedModel, prompts: Sequence[str], settings: RouteSettings
) -> Iterator[tuple[list[str], list[Decision]]]:
    if settings.choices is not None:
        assert routed.tokenizer is not None
        question = question_of(routed.tokenizer, prompts[0], settings.choices)
        _require_room(routed, question.prompt, prompts[0], max(map(len, question.choices)))
        yield list(prompts), [one.routed for one in routed.score_tokens([question], scored=False)]
        return
    for texts, ids, mask in encode_prompts(routed, prompts, settings):
        yield texts, routed.route(ids, mask)


def drawn(prompt: str, routed: Decision, read_layer: int) -> str:
    """Return a prompt and its chain as four lines."""
    chain, shown = routed.chain, " ".join(prompt.split())
    shown = shown if len(shown) <= 100 else shown[:99] + "…"
    strip = draw_strip(chain, read_layer, marks_for(sys.stdout.encoding))
    why = f"score {routed.score:.3f}" if routed.in_scope else OUT_OF_SCOPE
    told = f"{chain.depth} of {chain.num_layers} layers{SHORT if routed.one_token else ''}, {why}"
    return f"\n{shown}\n  {strip}   {told}\n  {ruler(chain.num_layers)}\n  {chain}"


def as_json(prompt: str, routed: Decision, **more: object) -> str:
    """Return a prompt and its chain as one line of JSON."""
    chain = routed.chain
    value = {"prompt": prompt, **more, "chain": str(chain), "layers": list(chain.layers), "depth": chain.depth}
    value |= {"score": routed.score, "in_scope": routed.in_scope, "one_token": routed.one_token}
    return json.dumps(value, ensure_ascii=marks_for(sys.stdout.encoding) is not BLOCKS)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class GenerateSettings(PromptSettings):
    """Settings of `python -m router generate`.

    Attributes:
        max_new_tokens: tokens generated for each prompt at most.
        temperature: of sampling; 0: the most probable token each time.
        top_p: share of probability that sampling draws from.
        seed: seed of sampling.
    """

    max_new_tokens: Positive = 64
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


def generate(argv: Sequence[str]) -> None:
    """Generate, and print each text as soon as its batch is done; what chain it took goes to stderr.

    Raises:
        InputError: at bad input.
    """
    description = "Generate text, each prompt under the chain of layers that the router picks for it."
    settings, _ = parse_settings(GenerateSettings, first_word(argv, "router"), "router generate", description)
    prompts = read_prompts(settings)
    routed = load_routed(settings)
    set_seed(settings.seed)
    batches = encode_prompts(routed, prompts, settings, settings.max_new_tokens)
    for number, (texts, ids, mask) in enumerate(batches):
        if not number:
            print(f"[{said_of(routed.router, routed.operation)}]", file=sys.stderr)
        for text, (answer, one) in zip(texts, _answers(routed, ids, mask, settings), strict=True):
            if settings.json:
                print(as_json(text, one, text=answer), flush=True)
            else:
                why = "" if one.in_scope else f", {OUT_OF_SCOPE}"
                why += SHORT if one.one_token else ""
                print(f"[{one.chain.depth} of {one.chain.num_layers} layers: {one.chain}{why}]", file=sys.stderr)
                print(answer, flush=True)


def _answers(
    routed: RoutedModel, ids: torch.Tensor, mask: torch.Tensor, settings: GenerateSettings
) -> list[tuple[str, Decision]]:
    """Return the text that follows each prompt of a batch, and its chain."""
    assert routed.tokenizer is not None
    options: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "do_sample": settings.temperature > 0}
    if settings.temperature > 0:
        options |= {"temperature": settings.temperature, "top_p": settings.top_p}
    if routed.generation_config.pad_token_id is None:
        # The library warns where none is given.
        options["pad_token_id"] = padding_token(None, routed.generation_config.eos_token_id)
    reading = routed.read(ids, mask)
    chosen = routed.decide(reading)
    texts = [""] * len(chosen)
    for (chain, one_token), rows in grouped([(one.chain, one.one_token) for one in chosen]).items():
        out = routed.generate_as(chain, reading.select(rows), one_token=one_token, **options)
        for row, tokens in zip(rows, out[:, ids.shape[1] :], strict=True):
            texts[row] = str(routed.tokenizer.decode(tokens, skip_special_tokens=True))
    return list(zip(texts, chosen, strict=True))


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ExportSettings(ModelSettings):
    """Settings of `python -m router export`.

    Attributes:
        out: folder for the checkpoint, absent or empty.
        model: base model: an offline asset, a local directory or a hub id; null: the one that the router names, and
            without a router smollm2-135m-instruct.
        router: a router's folder or its hub id; says which base model and dtype, and checks the model's weights.
        chain: the chain, such as 0-24,28-29.
        static: in place of a chain, `static.json` of an evaluation: its best single chain. It does not say of which
            model, so a router or a model is to be named.
        dtype: dtype of the checkpoint; null: the router's, or what the base model is stored in.
        device: torch device on which the checkpoint is checked, or auto.
    """

    out: Path
    router: str | None = None
    chain: str | None = None
    static: Path | None = None
    device: str = "cpu"

    @model_validator(mode="after")
    def _names_a_chain(self) -> Self:
        """Refuse settings that leave the chain open."""
        if (self.chain is None) == (self.static is None):
            got = "neither" if self.chain is None else "both"
            raise ValueError(f"chain: expected exactly one of chain and static, got {got}")
        if self.static is not None and self.router is None and self.model is None:
            raise ValueError("static: expected the router or the model that the chain is of beside it, got neither")
        return self


def export(argv: Sequence[str]) -> None:
    """Export a chain, and say how to load it.

    Raises:
        InputError: at bad input, or where the checkpoint would not be the chain.
    """
    description = "Write one chain as a standard checkpoint that stock transformers loads."
    settings, _ = parse_settings(ExportSettings, argv, "router export", description)
    free_folder(settings.out)
    router = None if settings.router is None else load_router(router_folder(settings.router))
    if router is None:
        name, revision = settings.model or DEFAULT_MODEL, settings.revision
        outline = outline_of(name, revision)
        num_layers, dtype = outline.num_layers, settings.dtype or outline.dtype
    else:
        name, revision = router.config.base(settings.model, settings.revision)
        num_layers, dtype = router.config.num_layers, settings.dtype or router.config.dtype
    chain = read_chain(settings, num_layers)
    model, tokenizer = load_model(name, dtype=dtype, device=settings.device, revision=revision)
    check_weights(model)
    if router is not None:
        require_pair(model, tokenizer, router, f"router {settings.router!r}")
    folder = export_chain(model, tokenizer, chain, settings.out, base_model=name, revision=revision)
    print(f"chain {chain}: {chain.depth} layers in place of {chain.num_layers}, {dtype}")
    print(f"  {draw_strip(chain, 0, marks_for(sys.stdout.encoding))}\n  {ruler(chain.num_layers)}")
    print("equal to the bit to the base model under this chain, loaded by stock transformers")
    print(f"written to {folder}")
    print(f'load it: transformers.AutoModelForCausalLM.from_pretrained("{folder}", dtype="{dtype}")')


def read_chain(settings: ExportSettings, num_layers: int) -> Chain:
    """Return the chain that the settings name.

    Raises:
        InputError: where it is no chain over that many layers; the message names its file, where it has one.
    """
    if settings.static is not None:
        value, where = read_json(require_file(settings.static, "static")).get("chain"), f"static: {settings.static}"
    else:
        value, where = settings.chain, f"chain {settings.chain}"
    try:
        return Chain.parse(value, num_layers) if isinstance(value, str) else Chain.from_json(value, num_layers)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
