"""Prompts: how a question becomes the text, or the chat turns, that a model reads. It knows no model."""

from __future__ import annotations

import operator
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as validated

from router.command import one_line
from router.validation import STORED, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LETTERS = string.ascii_uppercase
AUTO = "auto"
CHAT_DATE = "26 Jul 2024"
"""Given to chat templates that write a date (Llama 3), which would otherwise change the prompt every day."""
_FIXED_CLOCK = f"{{% macro strftime_now(format) %}}{CHAT_DATE}{{% endmacro %}}"
"""Stands before a template, and hides the clock that the library offers to it."""

INSTRUCTIONS = {
    "choice": "",
    "letter": "Answer with the letter of the right choice only.",
    "final": "Give the final answer only.",
    "boxed": "Give the final answer only, in \\boxed{}.",
    "free": "Think step by step, and give the final answer in \\boxed{}.",
}
"""Last line of what a chat is asked, by the kind of answer that is wanted."""


NotEmpty = Annotated[str, Field(min_length=1)]


@validated(frozen=True, slots=True, config=STORED)
class Prompt:
    r"""The wording around a question and its answer.

    Attributes:
        style: "base": one text; "chat": turns in the tokenizer's chat template.
        ask: what is asked, with the fields {question} and {context}.
        wordings: other wordings of `ask`, for a sample that is asked in several variants (`Task.variant`).
        choice: a listed choice, with the fields {letter} and {text}.
        system: system turn of a chat; None: the template's own.
        instruction: last line of what is asked; "auto": none in style base, in a chat what kind of answer is wanted.
        cue: text before every answer; "auto": "Answer:" in style base, none in a chat.
        opening: forced opening of the answer, for example `\boxed{`; empty: none.
        end: text that ends an answer; None: the end-of-sequence token; "auto": `}` after an opening that ends in
            `{`, else the end-of-sequence token in a chat, else a blank line with examples, else a new line.
        example: what examples show as their answer: "answer", or the name of a metadata field (a worked solution).
    """

    style: Literal["base", "chat"] = "base"
    ask: str = "Question: {question}"
    choice: str = " {letter}. {text}"
    system: NotEmpty | None = None
    instruction: str = AUTO
    cue: str = AUTO
    opening: str = ""
    end: NotEmpty | None = AUTO
    example: str = "answer"
    wordings: Annotated[tuple[NotEmpty, ...], Field(exclude_if=operator.not_)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse templates without their fields, and a system turn where there are no turns."""
        templates = [("ask", self.ask), *(("wordings", one) for one in self.wordings), ("choice", self.choice)]
        for key, template in templates:
            wanted = ("letter", "text") if key == "choice" else ("question",)
            missing = [name for name in wanted if f"{{{name}}}" not in template]
            if missing:
                raise ValueError(f"prompt.{key}: expected the field {{{missing[0]}}}, got {template!r}")
        if len({self.ask, *self.wordings}) <= len(self.wordings):
            raise ValueError("prompt.wordings: expected wordings unlike each other and ask, got one twice")
        if self.system is not None and self.style != "chat":
            raise ValueError("prompt.system: expected it in style chat only")
        return self

    def asked(self, question: str, context: str, choices: Sequence[str], wanted: str, wording: int = 0) -> str:
        """Return what is asked: question, listed choices and the instruction for the kind of answer that is wanted.

        Args:
            question: the question.
            context: the text that it is about.
            choices: the choices to list.
            wanted: the kind of answer.
            wording: 0: `ask`; 1, 2, ...: that one of `wordings`.
        """
        lines = [_fill((self.ask, *self.wordings)[wording], question=question, context=context)]
        lines += [_fill(self.choice, letter=LETTERS[i], text=text) for i, text in enumerate(choices)]
        instruction = self.instruction
        if instruction == AUTO:
            instruction = INSTRUCTIONS[wanted] if self.style == "chat" else ""
        return "\n".join([*lines, *([instruction] if instruction else [])])

    @property
    def lead(self) -> str:
        """What the model is given of every answer: cue and forced opening."""
        cue = self._cue
        return cue + (" " if cue and self.opening else "") + self.opening

    @property
    def glue(self) -> str:
        """What joins `lead` and an answer."""
        return " " if self._cue and not self.opening else ""

    @property
    def _cue(self) -> str:
        if self.cue != AUTO:
            return self.cue
        return "Answer:" if self.style == "base" else ""

    def end_after(self, examples: int) -> str | None:
        """Return the text that ends an answer in a prompt with that many examples; None: end of sequence."""
        if self.end != AUTO:
            return self.end
        if self.opening.endswith("{"):
            return "}"
        if self.style == "chat":
            return None
        return "\n\n" if examples else "\n"

    def text(
        self,
        query: Query,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pictures: Sequence[str] | None = None,
        template: str | None = None,
    ) -> str:
        """Return the whole prompt up to the answer; in a chat with the template's special tokens written out.

        Args:
            query: what is asked.
            tokenizer: the model's tokenizer.
            pictures: what stands for each picture in style base; pictures stand in front of what is asked. None: the
                model takes none, and a chat's turns are plain texts.
            template: chat template instead of the tokenizer's own.

        Raises:
            InputError: where the tokenizer has no chat template, or it refuses the turns.
        """
        if self.style == "base":
            examples = [f"{asked}\n{answered}" for asked, answered in query.examples]
            shown = "".join(f"{picture}\n" for picture in pictures or ())
            return "\n\n".join([*examples, f"{shown}{query.asked}\n{query.lead}"])
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": _content(self.system, None if pictures is None else 0)})
        for asked, answered in query.examples:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": _content(query.asked, None if pictures is None else len(pictures))})
        if not (template or tokenizer.chat_template):
            raise InputError("prompt.style: expected base for a tokenizer without a chat template, got chat")
        try:
            rendered = tokenizer.apply_chat_template(
                messages,
                chat_template=_FIXED_CLOCK + (template or tokenizer.get_chat_template()),
                tokenize=False,
                add_generation_prompt=True,
                date_string=CHAT_DATE,
            )
        except Exception as error:  # templates are programs of the model's makers; jinja2 raises what they raise
            raise InputError(f"prompt.style: expected turns that the chat template takes: {one_line(error)}") from error
        if "".join(query.asked.split()) not in "".join(rendered.split()):
            raise InputError(
                "prompt.style: expected a chat template that writes what is asked, got one that leaves it out"
            )
        return f"{rendered}{query.lead}"


def _content(text: str, pictures: int | None) -> str | list[dict[str, str]]:
    """Return a turn's content: so many pictures and the text, as templates for pictures take it; None: text alone."""
    return text if pictures is None else [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]


@dataclass(frozen=True, slots=True)
class Query:
    """How a sample is asked of a model.

    Attributes:
        asked: question, listed choices and instruction.
        lead: start of the answer, which is given.
        continuations: texts scored after `lead`: one a choice; the right answer alone; or none (mode "generate").
        order: `continuations[j]` stands for choice `order[j]` of the sample.
        normaliser: what each continuation's log-probability is divided by; None: its number of tokens.
        examples: (asked, answered) of the examples before the question.
    """

    asked: str
    lead: str
    continuations: tuple[str, ...]
    order: tuple[int, ...]
    normaliser: tuple[float, ...] | None
    examples: tuple[tuple[str, str], ...] = ()

    def choice_scores(self, log_probabilities: Sequence[float], tokens: Sequence[int]) -> tuple[float, ...]:
        """Return the score of every choice, in the order of the sample's choices.

        Args:
            log_probabilities: [continuations], summed over a continuation's tokens, nats.
            tokens: [continuations], number of tokens of each continuation.
        """
        divisors = tokens if self.normaliser is None else self.normaliser
        scores = [0.0] * len(self.order)
        for choice, value, divisor in zip(self.order, log_probabilities, divisors, strict=True):
            scores[choice] = value / divisor
        return tuple(scores)


def _fill(template: str, **values: str) -> str:
    """Put values into their {fields}; braces in the values or around other words stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match.group(1), match.group()), template)
