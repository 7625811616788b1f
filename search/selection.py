"""Which child a simulation follows, and when a node may have another one.

`select_uct` takes a node with at least one open edge and returns one of its open edges. It reads the settings and the
statistics in the tree, and nothing of language models.
"""

from __future__ import annotations

import math
import random

from search.settings import SearchSettings
from search.tree import Edge, Node


def widening_limit(visits: int, settings: SearchSettings) -> int:
    """Return the children that a node with `visits` visits may have: ceil(C * visits**alpha).

    Progressive widening: Coulom 2007 ("Computing Elo ratings of move patterns"), Chaslot et al. 2008.
    """
    return math.ceil(settings.widening_constant * math.pow(visits, settings.widening_exponent))


def penalty_weight(settings: SearchSettings) -> float:
    """Return the lambda of lambda * depth / n in selection scores: 0 where the reward bears the penalty already."""
    return settings.depth_penalty if settings.depth_in == "selection" else 0.0


def uct_score(edge: Edge, settings: SearchSettings) -> float:
    """Return Q + c * sqrt(ln V / v) - lambda * depth / n (CoLa, arXiv 2507.07996; Dr.LLM, 2510.12773).

    Q is the child's value, V the parent's visits and depth that of the child's chain; lambda is 0 where `depth_in` is
    "reward". Where several paths lead to the child, its value is that of all of them, and the v of the exploration
    term counts the visits through this edge alone (UCT2: Childs, Brodeur and Kocsis 2008, "Transpositions and move
    groups in Monte Carlo tree search"). Visits in flight count, with the value of reward 0 (virtual visits: Chaslot,
    Winands and van den Herik 2008).
    """
    child = edge.child
    explore = settings.exploration * math.sqrt(math.log(edge.parent.visits) / edge.visits)
    return child.value + explore - penalty_weight(settings) * child.relative_depth


def select_uct(node: Node, settings: SearchSettings, rng: random.Random) -> Edge:
    """With probability `random_share` pick an open edge uniformly, else the one of the best UCT score.

    Of equal scores the edge drawn first wins; edges are drawn in random order, so that favours no action.
    """
    if settings.random_share > 0 and rng.random() < settings.random_share:
        return node.open[rng.randrange(len(node.open))]
    # The same numbers as uct_score, term by term, with what all edges share taken out of the loop.
    log_visits = math.log(node.visits)
    c, penalty, sqrt = settings.exploration, penalty_weight(settings), math.sqrt
    best, best_score = node.open[0], -math.inf
    for edge in node.open:
        child = edge.child
        score = child.value + c * sqrt(log_visits / edge.visits) - penalty * child.relative_depth
        if score > best_score:
            best, best_score = edge, score
    return best
