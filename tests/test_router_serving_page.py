"""The page of the server: its data over HTTP, and the page itself as a person uses it in a browser without a screen."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from torch import Tensor

from router.chain import Chain
from router.routed import RoutedModel
from router.serving.page import KEPT, PAGE_FILE, budgets_of, policy_of
from router.strip import Marks, draw_strip
from tests.serving import BUDGET, NAME, Brake, Running, running, tiny_routed, until
from tests.tiny import NUM_LAYERS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROMPT = "Which of these is a fox?"
CHROMIUM = Path("/usr/bin/chromium")
MARKS = {"read": "=", "run": "#", "skipped": ".", "moved": "~"}


def ended(server: Running, rows: int) -> list[dict[str, Any]]:
    """The latest rows, once there are so many."""
    until(lambda: len(server.status()["recent"]) >= rows)
    recent: list[dict[str, Any]] = server.status()["recent"]
    assert len(recent) == rows
    return recent


def test_the_page_reaches_nothing_outside_of_its_server() -> None:
    with running() as server:
        answer = httpx.get(server.url)
        assert httpx.get(f"{server.url}/status").json()["model"] == NAME
    html = answer.text
    assert html == PAGE_FILE.read_text()
    assert not re.findall(
        r"https?:|//[a-z]|@import|url\(|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", html
    )
    assert not re.findall(r"<[^>]* (?:style|on\w+)=", html)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for kind in ("style-src", "script-src"):
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy[kind])
    for kind in ("base-uri", "form-action", "frame-ancestors"):
        assert policy[kind] == "'none'"
    assert policy_of(html.replace("use strict", "use  strict")) != policy_of(html)


def test_what_the_status_says_of_rows_that_ended() -> None:
    # Oracle: each prompt alone.
    with running() as server:
        router = server.oracle.routed.router
        said = server.status()
        assert (said["model"], said["num_layers"], said["read_layer"]) == (NAME, NUM_LAYERS, router.config.read_layer)
        assert (said["budgets"], said["budget"]) == ([server.oracle.least, server.oracle.most], BUDGET)
        assert (said["guaranteed"], said["chat"], said["max_tokens"]) == (False, True, 400)
        assert (said["waiting"], said["running"], said["recent"]) == (0, 0, [])
        began = time.time()
        for more in ({}, {"stream": True}, {"budget": NUM_LAYERS}):
            assert server.post(prompt=PROMPT, max_tokens=6, temperature=0, **more).status_code == 200
        recent = ended(server, 3)
        prompt = server.oracle.tokens(PROMPT)
        alone = server.oracle.alone(prompt, 6)
        full = server.oracle.alone(prompt, 6, chain=Chain.full(NUM_LAYERS))
        for one, expected in zip(recent, (full, alone, alone), strict=True):
            assert (one["chain"], one["layers"]) == (str(expected.chain), list(expected.chain.layers))
            assert (one["depth"], one["in_scope"]) == (expected.chain.depth, True)
            assert (one["prompt_tokens"], one["tokens"]) == (len(prompt), expected.tokens)
            assert (one["reason"], one["error"]) == (expected.reason, None)
            assert 0 < one["first_token_seconds"] <= one["seconds"] < time.time() - began
        assert began < recent[2]["time"] <= recent[1]["time"] <= recent[0]["time"] < time.time()
        server.check_answers()


def test_no_text_is_in_the_status() -> None:
    with running() as server:
        for prompt in ("unmistakable", "x" * 100_000):
            server.post(prompt=prompt, max_tokens=8, temperature=0, stop=["stopword"])
        answer = server.post(prompt="unmistakable", max_tokens=8, temperature=0).json()["choices"][0]["text"]
        text = httpx.get(f"{server.url}/status").text
    assert "unmistakable" not in text
    assert "stopword" not in text
    assert answer.strip()
    assert answer not in text


def test_only_the_latest_rows_are_kept() -> None:
    with running() as server:
        server.post(prompt="first", max_tokens=1)
        server.post(prompt="x", max_tokens=2, temperature=0, n=KEPT)
        recent = ended(server, KEPT)
        assert {one["tokens"] for one in recent} == {2}


def test_a_row_that_fails_inside_is_in_the_status() -> None:
    routed = tiny_routed()

    def broken(*_: object) -> None:
        raise RuntimeError("inside")

    with running(routed) as server:
        handle = routed.get_input_embeddings().register_forward_pre_hook(broken)
        assert server.post(prompt="x").status_code == 500
        handle.remove()
        (failed,) = ended(server, 1)
        assert (failed["error"], failed["reason"], failed["tokens"]) == ("internal_error", None, 0)
        # One choice of a request fails or all do; each is there once.
        server.post(prompt=["x", "y"], n=2, max_tokens=2)
        assert Counter(one["error"] for one in ended(server, 5)) == {None: 4, "internal_error": 1}


def test_the_choices_of_a_request_that_fails_are_not_those_of_a_client_that_left() -> None:
    # Oracle: by hand: one prompt fails, the other's text would go on for long.
    routed = tiny_routed()

    def broken(_: object, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[1] == 100:
            raise RuntimeError("inside")

    routed.get_input_embeddings().register_forward_pre_hook(broken)
    with running(routed) as server:
        assert server.post(prompt=["x", "y" * 100], max_tokens=400, seed=0).status_code == 500
        assert [one["error"] for one in ended(server, 2)] == ["internal_error"] * 2


def test_the_page_can_be_left_out() -> None:
    with running(page=False) as server:
        for path in ("/", "/status"):
            assert httpx.get(server.url + path).status_code == 404
        server.check_answers()


def test_budgets_reach_full_depth_where_the_deepest_point_is_less() -> None:
    # Oracle: the points, of which those deeper than full depth are left out here.
    router = tiny_routed().router
    router.head.budget_points = tuple(one for one in router.head.budget_points if one.mean_depth < NUM_LAYERS - 0.5)
    depths = [one.mean_depth for one in router.head.budget_points]
    assert len(depths) > 1
    assert budgets_of(router, 1.0) == (min(depths), NUM_LAYERS)
    router.head.budget_points = ()
    assert budgets_of(router, 1.0) is None


def test_a_router_without_budgets_or_a_template_says_so() -> None:
    routed = tiny_routed(budget=None)
    assert routed.tokenizer is not None
    routed.tokenizer.chat_template = None
    routed.guaranteed = True
    routed.router.head.budget_points = ()
    with running(routed, budget=None, guaranteed=True) as server:
        said = server.status()
        chat = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "x"}])
    assert (chat.status_code, chat.json()["error"]["param"]) == (400, "messages")
    assert "messages: expected a model with a chat template" in chat.text
    assert (said["budgets"], said["budget"], said["guaranteed"], said["chat"]) == (None, None, True, False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def routed() -> RoutedModel:
    return tiny_routed()


@pytest.fixture(scope="module")
def server(routed: RoutedModel) -> Iterator[Running]:
    with running(routed) as one:
        yield one
        one.check_answers()


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    """The page, opened anew; by the end of the test it has complained of nothing but refused requests."""
    made = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    made.on("console", lambda message: complaints.append(message.text))
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.set_default_timeout(20_000)
    made.goto(server.url)
    made.get_by_role("heading", name=NAME).wait_for()
    yield made
    made.close()
    assert [one for one in complaints if "responded with a status of 400" not in one] == []


def pane(page: Page, title: str) -> Any:
    return page.get_by_role("article", name=title)


def text_of(page: Page, title: str) -> str:
    return str(pane(page, title).get_by_role("group", name=f"{title}: text").text_content())


def wait_for_both(page: Page) -> None:
    page.get_by_role("button", name="Run").wait_for()
    for title in ("Routed", "Full depth"):
        assert pane(page, title).get_by_role("img").is_visible()


def test_a_prompt_runs_routed_and_at_full_depth(page: Page, server: Running) -> None:
    # Oracle: the same requests through OpenAI's client.
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("radio", name="plain completion").check()
    page.get_by_label("Tokens at most").fill("24")
    slider = page.get_by_role("slider")
    slider.fill(str(slider.get_attribute("min")))
    budget = float(slider.input_value())
    assert page.get_by_label("Budget, mean depth").get_attribute("aria-valuetext") == f"{budget:.1f} layers"
    page.get_by_role("button", name="Run").click()
    wait_for_both(page)
    for title, asked in (("Routed", budget), ("Full depth", NUM_LAYERS)):
        body: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
        choice = server.openai().completions.create(**body, extra_body={"budget": asked}).choices[0]
        chunks = list(server.openai().completions.create(**body, stream=True, extra_body={"budget": asked}))
        pieces = sum(bool(chunk.choices[0].text) for chunk in chunks)
        assert choice.text
        assert text_of(page, title) == choice.text
        chain = Chain.parse(choice.model_extra["chain"], NUM_LAYERS)
        assert chain.is_full == (title == "Full depth")
        name = pane(page, title).get_by_role("img").get_attribute("aria-label")
        assert name.startswith(
            f"{chain.depth} layers run, the model has {NUM_LAYERS}; run before the router decides: 0-1"
        )
        assert pane(page, title).locator(".layers").text_content() == f"{chain.depth} of {NUM_LAYERS}"
        assert pane(page, title).locator(".scope").text_content() == "inside"
        assert re.fullmatch(r"[\d.]+ s", pane(page, title).locator(".first").text_content())
        speed = pane(page, title).locator(".speed").text_content()
        assert bool(re.fullmatch(r"[\d.]+", speed)) == (pieces >= 12)


def test_an_answer_of_one_token_has_no_speed(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Tokens at most").fill("1")
    page.get_by_role("button", name="Run").click()
    wait_for_both(page)
    for title in ("Routed", "Full depth"):
        assert pane(page, title).locator(".speed").text_content() == "\N{EN DASH} (one token)"
        assert text_of(page, title)


def test_a_chat_at_the_servers_own_budget_both_at_once(page: Page, server: Running) -> None:
    # Oracle: the chat alone.
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("take the server's own budget").check()
    page.get_by_label("both at once").check()
    page.get_by_label("Tokens at most").fill("16")
    page.get_by_role("button", name="Run").click()
    wait_for_both(page)
    prompt = server.oracle.chat_tokens([{"role": "user", "content": PROMPT}])
    assert text_of(page, "Routed") == server.oracle.alone(prompt, 16).text
    assert text_of(page, "Full depth") == server.oracle.alone(prompt, 16, chain=Chain.full(NUM_LAYERS)).text


def test_the_keyboard_is_enough(page: Page, server: Running) -> None:
    page.keyboard.type("ice")  # the prompt has the focus
    before = float(page.get_by_role("slider").input_value())
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert float(page.get_by_role("slider").input_value()) == pytest.approx(before - 0.1)
    order = []
    for _ in range(7):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.value"))
    assert order[:5] == ["own", "chat", "tokens", "at-once", "run"]
    page.keyboard.press("Shift+Tab")
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("Control+Enter")
    wait_for_both(page)
    prompt = server.oracle.chat_tokens([{"role": "user", "content": "ice"}])
    assert text_of(page, "Full depth") == server.oracle.alone(prompt, 128, chain=Chain.full(NUM_LAYERS)).text
    assert page.get_by_label("Prompt", exact=True).input_value() == "ice"
    spoken = page.locator("#spoken")
    assert spoken.get_attribute("aria-live") == "polite"
    assert str(spoken.text_content()).startswith("Full depth: ")


def test_the_latest_requests_are_a_table(page: Page, server: Running) -> None:
    server.post(prompt=PROMPT, max_tokens=3, temperature=0)
    page.get_by_role("region", name="Latest requests").get_by_role("row").nth(1).wait_for()
    until(lambda: page.locator("#recent tr").count() == len(server.status()["recent"]))
    latest = server.status()["recent"][0]
    row = page.locator("#recent tr").first
    cells = row.get_by_role("cell").all_text_contents()
    assert cells[2:6] == [
        f"{latest['depth']} of {NUM_LAYERS}",
        "yes",
        str(latest["prompt_tokens"]),
        str(latest["tokens"]),
    ]
    assert cells[6:8] == [f"{latest[name]:.2f}" for name in ("first_token_seconds", "seconds")]
    assert cells[8] == {"length": "token limit", "stop": "complete"}[latest["reason"]]
    assert row.get_by_role("img").get_attribute("aria-label").startswith(f"{latest['depth']} layers run")
    assert latest["chain"] in cells[1]


def test_strips_are_those_of_the_text(page: Page, server: Running) -> None:
    # Oracle: router.strip, on chains that skip, repeat and move; the server's answer carries them.
    generator = random.Random(7)
    chains = [
        Chain(tuple(generator.choices(range(NUM_LAYERS), k=generator.randint(1, 2 * NUM_LAYERS))), NUM_LAYERS)
        for _ in range(KEPT)
    ]
    said = server.status()
    entry = {
        "prompt_tokens": 1,
        "tokens": 1,
        "first_token_seconds": 0.1,
        "seconds": 0.1,
        "reason": "stop",
        "error": None,
    }
    recent = [
        {"time": 0, "chain": str(one), "layers": list(one.layers), "depth": one.depth, "in_scope": True, **entry}
        for one in chains
    ]
    page.route("**/status", lambda route: route.fulfill(json={**said, "recent": recent}))
    page.locator("#recent tr").nth(KEPT - 1).wait_for()
    until(lambda: page.locator("#recent code").all_text_contents() == [str(one) for one in chains])
    drawn = page.evaluate(
        "[...document.querySelectorAll('#recent .strip')].map((strip) => [...strip.children].map((cell) =>"
        " [cell.className.split(' ')[1], cell.textContent]))"
    )
    marks = Marks(**MARKS)
    for chain, cells in zip(chains, drawn, strict=True):
        strip = "".join(text or MARKS[kind] for kind, text in cells)
        assert strip == draw_strip(chain, said["read_layer"], marks)


def test_a_run_can_be_stopped_and_faults_are_told(page: Page, server: Running, routed: RoutedModel) -> None:
    brake = Brake(routed)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    brake.hold()
    page.get_by_role("button", name="Run").click()
    page.get_by_role("button", name="Stop").click()
    pane(page, "Routed").get_by_text("stopped").wait_for()
    brake.release()
    page.get_by_label("Prompt", exact=True).fill("x" * 2000)
    page.get_by_role("button", name="Run").click()
    pane(page, "Full depth").get_by_text("tokens with those to generate").wait_for()
    page.get_by_role("button", name="Run").wait_for()


def test_a_phone_has_no_sideways_scrolling(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("A word " + "w" * 300)
    page.get_by_label("Tokens at most").fill("16")
    page.get_by_role("button", name="Run").click()
    wait_for_both(page)
    for width in (390, 320, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_key_is_asked_for_and_kept(browser: Browser) -> None:
    with running(key="secret") as server:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.goto(server.url)
        field = page.get_by_label("Key", exact=True)
        field.fill("other")
        page.keyboard.press("Enter")
        page.get_by_text("The server does not know this key.").wait_for()
        field.fill("secret")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=NAME).wait_for()
        assert not field.is_visible()
        page.reload()
        page.get_by_role("heading", name=NAME).wait_for()
        page.get_by_label("Prompt", exact=True).fill("ice")
        page.get_by_label("Tokens at most").fill("8")
        page.get_by_role("button", name="Run").click()
        wait_for_both(page)
        page.close()
