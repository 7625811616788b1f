"""Answers in generated text: letters, boxes, stops, the last answer, plain numbers."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.answers import clean_number, final_answer, last_boxed, parse_letter, until_closed, until_text

PARTS = ["{", "}", "{}", r"\boxed{", r"\boxed ", r"\boxed", r"\fbox{1}", "\\", r"\{", r"\}", " ", "\n", "Answer: "]
PARTS += ["answer is ", "The answer is ", "#### ", "$", "**", "9", ",", "1,234,", "9,999", "A, ", "(A", ".", "\0"]
PARTS += ["\ud800", "answer  "]
HOSTILE = [part * (100_000 // len(part)) for part in PARTS]
HOSTILE += [before + " " * 100_000 + "x" for before in ("Answer:", "the answer is", "A", "A.", "(A) or", r"\boxed")]


@st.composite
def balanced(draw: st.DrawFn) -> str:
    """Text whose unescaped braces balance, and which ends in no backslash."""
    leaf = st.sampled_from(["1", "x", " ", r"\{", r"\}", r"\frac", r"\\", "$", "\n"])
    inside = st.recursive(leaf, lambda part: st.lists(part, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"))
    return "".join(draw(st.lists(inside, max_size=5)))


NAMED = {
    0: ["A", "(A)", "A: a", "The answer is: A", "A\r\nB", "A. A", "A. E", "A.", "A) so", "Answer:\tA"],
    1: [
        " B",
        "(B) a dog",
        "B, since it barks",
        "Answer: B",
        "answer:B",
        "B. A dog",
        "Answer:\n\nB\n",
        "B. A dog, B. A cat",
    ],
    2: ["\n C \nbecause", "C) a dog", "**C**", "**C**.", "The answer is C.", "C\nA", "**C**: so"],
    3: ["D.", r"\boxed{D}", r"\boxed{D}. So", "THE CORRECT ANSWER IS (D)", "the  correct answer is D"],
}
UNNAMED = ["", " ", "A dog", "Apple", "a", "(a)", "I think B", "B dog.", "AB", "A\tB", "-A", "A-", "A/B", "A'"]
UNNAMED += ["\u0391", "5", "A or B", "A, B", "A,B", "(A) or (B)", "(A), (B)", "A, or B.", "A) B) C)", "A. B"]
UNNAMED += ["A and B", "**A** or **B**", "E", "(E)", "**A", "(A", r"\boxed{A", r"\boxed{a}", r"\boxed{AB}", "Answer:"]
UNNAMED += ["Answer A", "It is A", "\u24b6", "Answer: Answer: A", "The answer is not A", "The answer isA"]


@pytest.mark.parametrize(("text", "index"), [(text, index) for index, texts in NAMED.items() for text in texts])
def test_an_accepted_form_names_its_letter(text: str, index: int) -> None:
    # Oracle: written by hand; four choices.
    assert parse_letter(text, 4) == index


@pytest.mark.parametrize("text", UNNAMED)
def test_any_other_form_names_none(text: str) -> None:
    # Oracle: written by hand; four choices, the letters E and on are none of them.
    assert parse_letter(text, 4) is None


@given(
    st.integers(1, 26),
    st.integers(0, 25),
    st.sampled_from(["{}", "({})", "{}.", "**{}**", r"\boxed{{{}}}", "Answer: {}"]),
)
def test_only_the_first_letters_count(count: int, index: int, form: str) -> None:
    # Oracle: the place in the alphabet.
    assert parse_letter(form.format("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index]), count) == (index if index < count else None)


@pytest.mark.parametrize("count", [0, -1, 27])
def test_an_impossible_number_of_choices_is_refused(count: int) -> None:
    # Oracle: the setting and its bounds in the message.
    with pytest.raises(ValueError, match=rf"count: expected 1\.\.26, got {count}"):
        parse_letter("A", count)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed {3} or \fbox  {4}", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\{1,2}", r"\{1,2"),
        (r"\boxed{1\\}", r"1\\"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{unclosed \boxed{2}", "2"),
        (r"\boxed{a\boxed{b}c}", "b"),
        (r"}} \boxed{1}}}", "1"),
        (r"{ \boxed{1}", "1"),
        (r"\boxed{}", ""),
        (r"\boxed{ 1 }", " 1 "),
        ("\\boxed{a\nb}", "a\nb"),
        (r"\boxed{1", None),
        (r"\boxed{1\}", None),
        (r"\boxed 1", None),
        (r"\boxedx{1}", None),
        ("{1}", None),
        ("", None),
    ],
)
def test_the_last_complete_box_is_found(text: str, content: str | None) -> None:
    # Oracle: written by hand.
    assert last_boxed(text) == content


@given(balanced(), balanced(), st.text("x{}\\ 1"))
def test_a_box_gives_back_its_content(before: str, content: str, after: str) -> None:
    # Oracle: the content that was boxed; nothing after it completes another box.
    assert last_boxed(before + r"\boxed{" + content + "}") == content
    assert until_closed(content + "}" + after) == content
    assert until_closed(content) is None


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("5} so", "5"),
        (r"\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\{1\}}", r"\{1\}"),
        ("}", ""),
        (r"\boxed{1}}", r"\boxed{1}"),
        *((text, None) for text in ("", "5", "{5}", r"\}", r"\frac{1}{2", "{{}", "5\\")),
    ],
)
def test_a_forced_box_ends_at_its_brace_or_is_still_open(text: str, before: str | None) -> None:
    # Oracle: written by hand.
    assert until_closed(text) == before


def test_text_ends_at_the_first_stop() -> None:
    # Oracle: written by hand.
    assert until_text("one\n\ntwo\n\n", "\n\n") == "one"
    assert until_text("#### 5", "####") == ""
    assert until_text("one", "\n") is None
    with pytest.raises(ValueError, match="empty separator"):
        until_text("one", "")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The answer is 3. #### 4 \boxed{ 5 }", "5"),
        (r"The answer is 3." "\n#### 4 \n5", "4"),
        ("#### 3\n#### 1,234", "1,234"),
        ("####4 so the answer is 3", "3"),
        ("The answer is 3.", "3"),
        ("The answer is: $3$.", "3"),
        ("The answer is $$x + 1.$$", "x + 1"),
        ("Answer: 1\nno, ANSWER : 2.5.\nor so", "2.5"),
        ("The final answer is **18**.", "18"),
        ("**Answer:** 18", "18"),
        ("The answer is $1$ and $2$.", "$1$ and $2$"),
        ("The answer is $18.", "$18"),
        (r"\boxed{} answer is 3", None),
        ("Answer: 3\nAnswer:", None),
        ("#### \n5", None),
        ("The answer is", None),
        ("My answers: 5", None),
        ("It is 5.", None),
        ("", None),
    ],
)
def test_free_text_ends_in_its_answer(text: str, answer: str | None) -> None:
    # Oracle: written by hand.
    assert final_answer(text) == answer


NUMBERS = {
    " 1,234 ": "1234",
    "1,234,567.": "1234567",
    "$5": "5",
    r"\$5.00": "5.00",
    "-1,000.5": "-1000.5",
    "$-5.": "-5",
}
NUMBERS |= {"-$5": "-5", "+7": "+7", ".5": ".5", "0": "0", "007": "007"}
NO_NUMBERS = ["1,23", "12,3456", "1234,567", " 12 dogs", "1,234 + 1", "x.", "$", "-", ".", "-$-5", "1/2", "", "5.."]
NO_NUMBERS += ["(1,234)"]


@pytest.mark.parametrize(
    ("text", "cleaned"), [*NUMBERS.items(), *((text, text.strip()) for text in [*NO_NUMBERS, "\u0663"])]
)
def test_only_plain_numbers_are_cleaned(text: str, cleaned: str) -> None:
    # Oracle: written by hand; what is no such number is only stripped.
    assert clean_number(text) == cleaned
    assert clean_number(cleaned) == cleaned


@given(st.text("AB(){}\\boxed#$., answeris:\n1*"))
def test_any_text_is_read(text: str) -> None:
    # Oracle: what is returned stands in the text.
    answer, box, head = final_answer(text), last_boxed(text), until_closed(text)
    assert answer is None or (answer in text and answer == answer.strip() != "")
    assert box is None or "{" + box + "}" in text
    assert head is None or text.startswith(head + "}")
    assert parse_letter(text, 2) in (None, 0, 1)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:15]))
def test_hostile_text_takes_bounded_time(text: str) -> None:
    # Oracle: a bound that quadratic time on 100 kB would break by far.
    started = time.monotonic()
    for read in (last_boxed, until_closed, final_answer, clean_number, lambda text: parse_letter(text, 26)):
        for variant in (text, "The answer is " + text, text + "\\boxed{1}", "\\boxed{" + text, text + "x"):
            read(variant)
    assert time.monotonic() - started < 20
