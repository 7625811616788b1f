"""The search that chooses nothing: every chain of a menu, for menu tables."""

from __future__ import annotations

from collections.abc import Sequence

from router.chain import Chain
from search.settings import SearchSettings


class MenuSearcher:
    """All chains of a menu at once (`search.algorithms.Searcher`).

    Attributes:
        settings: settings of the search; `simulations` is the number of chains.
        evaluated: reward of every chain told, the full chain first.
    """

    def __init__(self, chains: Sequence[Chain], settings: SearchSettings) -> None:
        """Start with a menu's chains, the full chain first.

        Raises:
            ValueError: where `simulations` is not their number.
        """
        if settings.simulations != len(chains):
            raise ValueError(f"simulations: expected {len(chains)}, the menu's chains, got {settings.simulations}")
        self.settings = settings
        self.evaluated: dict[Chain, float] = {}
        self._chains = tuple(chains)

    @property
    def simulations(self) -> int:
        """Chains told."""
        return len(self.evaluated)

    @property
    def done(self) -> bool:
        """Whether all chains were told."""
        return bool(self.evaluated)

    def ask(self) -> list[Chain]:
        """Return the menu, or nothing when it was told."""
        return [] if self.done else list(self._chains)

    def tell(self, rewards: Sequence[float]) -> None:
        """Take the rewards of the chains, in their order.

        Raises:
            ValueError: where their number is wrong.
        """
        if len(rewards) != len(self._chains):
            raise ValueError(f"rewards: expected one for each of {len(self._chains)} chains, got {len(rewards)}")
        self.evaluated = dict(zip(self._chains, map(float, rewards), strict=True))
