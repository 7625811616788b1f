"""The chain view: a new, shallow model that runs a chain of another model's layers.

The original is never changed: the view has copies of all its modules, and shares every parameter with it. Every
position of the chain has its own layer object with its own cache slot, so `generate`, sampling, streaming and key/value
caches are the library's own and right for skipped, repeated and reordered layers.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict

from transformers import PreTrainedModel

from router.chain import Chain
from router.engine.copies import make_view
from router.engine.makeup import Makeup
from router.engine.trial import require_chains

CACHED_VIEWS = 64
"""Views kept for each model; the least recently used one goes first."""
_Views = OrderedDict[Chain, tuple[Makeup, PreTrainedModel]]
_views: weakref.WeakKeyDictionary[PreTrainedModel, _Views] = weakref.WeakKeyDictionary()
_views_lock = threading.Lock()


def chain_view(model: PreTrainedModel, chain: Chain, *, fresh: bool = False, verify: bool = True) -> PreTrainedModel:
    """Return a model that runs `chain` and shares every parameter with `model`.

    The view's class is a subclass of the original's with its name, so all of `transformers` works on it. It is made of
    what the model is now. Views are cached: the same chain of a model that has not been changed since gives the same
    object, whose configuration is not to be changed.

    Args:
        model: a decoder-only model (or one with a text decoder inside).
        chain: a chain over the model's layers.
        fresh: make a view of the caller's own, outside the cache.
        verify: try an edited chain on the model once, before the first one (`router.engine.trial`).

    Raises:
        ValueError: where the chain is for another number of layers, the layers are not found, a hybrid model would be
            left without any attention layer, or the model cannot run edited chains.
    """
    if (plain := getattr(model, "plain_model", None)) is not None:
        model = plain()  # a routed model: one that generates by itself, with chains of its own
    tried = verify and chain != Chain.full(chain.num_layers)
    if fresh and not tried:
        return make_view(model, chain)
    now = Makeup(model)
    if tried:
        require_chains(model, now)
    if fresh:
        return make_view(model, chain)
    with _views_lock:
        views = _views.setdefault(model, OrderedDict())
        made, view = views.get(chain, (None, None))
        if view is None or made != now:
            view = make_view(model, chain)
            views[chain] = now, view
            if len(views) > CACHED_VIEWS:
                views.popitem(last=False)
        views.move_to_end(chain)
        return view
