"""The page that people open in a browser, and its data: how busy the server is, and the latest rows.

No text of a prompt or an answer is kept or sent. The page is one file without an address outside of this server, and
its security policy allows none: the hashes of its style and its script are the only ones that run.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections import deque
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response

from router.decision import ALLOWED_LOSS, Router
from router.heads.budget import budget_range
from router.routed import RoutedModel
from router.serving.batcher import Batcher
from router.serving.rows import Row

KEPT = 50
"""Rows that are remembered, the latest."""
PAGE_FILE = Path(__file__).with_name("page.html")


class Recent:
    """The latest rows that ended, failed or were given up; it is used on the event loop alone.

    Attributes:
        entries: what is said of each, newest first; see `entry_of`.
    """

    def __init__(self) -> None:
        """Begin without rows."""
        self.entries: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def observe(self, row: Row) -> None:
        """Remember a row for which nobody waits any more."""
        self.entries.appendleft(entry_of(row, time.time(), time.monotonic()))


def entry_of(row: Row, at: float, now: float) -> dict[str, Any]:
    """Return what is said of a row; what it does not have is None.

    Args:
        row: the row, which has ended or is given up.
        at: now, Unix time, seconds: the entry's `time`.
        now: now, seconds of `time.monotonic`; a row that did not end took from its submission up to now.
    """
    chain = row.chain
    last = row.last_token if row.reason is not None and row.last_token is not None else now
    return {
        "time": at,
        "chain": None if chain is None else str(chain),
        "layers": None if chain is None else list(chain.layers),
        "depth": None if chain is None else chain.depth,
        "in_scope": None if chain is None else row.in_scope,
        "prompt_tokens": len(row.prompt),
        "tokens": len(row.tokens),
        "first_token_seconds": None if row.first_token is None else row.first_token - row.submitted,
        "seconds": last - row.submitted,
        "reason": row.reason,
        "error": None if row.fault is None else row.fault.code or str(row.fault.status),
    }


class Page:
    """The page at `/` and its data at `/status`.

    Attributes:
        recent: the latest rows.
    """

    def __init__(
        self, name: str, routed: RoutedModel, batcher: Batcher, *, max_tokens: int, allow_loss: float = ALLOWED_LOSS
    ) -> None:
        """Read the page.

        Args:
            name: the model's name for clients.
            routed: the routed model, with its tokenizer.
            batcher: what generates; it says how busy it is.
            max_tokens: most tokens that a request may generate for a choice.
            allow_loss: accuracy that a request's budget may have lost against full depth in validation.
        """
        assert routed.tokenizer is not None
        config = routed.router.config
        self.recent = Recent()
        self._batcher = batcher
        self._facts = {
            "model": name,
            "num_layers": config.num_layers,
            "read_layer": config.read_layer,
            "budgets": budgets_of(routed.router, allow_loss),
            "guaranteed": routed.guaranteed,
            "chat": routed.tokenizer.chat_template is not None,
            "max_tokens": max_tokens,
        }
        self._html = PAGE_FILE.read_text(encoding="utf-8")
        self._headers = {
            "Content-Security-Policy": policy_of(self._html),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }

    def add_to(self, app: FastAPI) -> None:
        """Add the page's two routes to an application."""
        app.add_api_route("/", self._page, methods=["GET"], response_model=None)
        app.add_api_route("/status", self._status, methods=["GET"], response_model=None)

    async def _page(self) -> Response:
        return HTMLResponse(self._html, headers=self._headers)

    async def _status(self) -> Response:
        load = {
            "budget": self._batcher.budget,
            "waiting": self._batcher.waiting,
            "running": self._batcher.running,
        }
        said = {**self._facts, **load, "recent": list(self.recent.entries)}
        return JSONResponse(said, headers={"Cache-Control": "no-store"})


def budgets_of(router: Router, allow_loss: float) -> tuple[float, float] | None:
    """Return the least and the greatest mean depth, layers, that a request may ask for; None: full depth alone.

    Args:
        router: the router.
        allow_loss: accuracy that a budget may have lost against full depth in validation.
    """
    if not (points := router.head.budget_points):
        return None
    low, most = budget_range(points, router.config.num_layers)
    least = max(low, router.least_budget(allow_loss) or 0.0)
    return (least, most) if least < most else None


def policy_of(html: str) -> str:
    """Return a Content-Security-Policy that allows a page its own style and script, and requests to its own server."""
    style, script = (_sources(html, tag) for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _sources(html: str, tag: str) -> str:
    """Return what the policy calls the contents of a page's elements of one kind."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in found)
