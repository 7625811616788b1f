"""What every search shares: ask and tell, the budget, and what was told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from router.chain import Chain
from search.actions import ActionSpace
from search.settings import SearchSettings


class AskTell(ABC):
    """The search of one sample: gives chains out, takes rewards in (`search.algorithms.Searcher`).

    Attributes:
        space: the legal actions.
        settings: settings of the search.
        evaluated: reward of every chain told, as it was told, in order of trial; the full chain is the first.
    """

    def __init__(self, space: ActionSpace, settings: SearchSettings) -> None:
        """Start a search.

        Args:
            space: legal actions, as `settings.action_space` gives them for the model.
            settings: settings of the search.

        Raises:
            ValueError: where the space has other bounds than the settings, whose record would then lie.
        """
        expected = settings.action_space(space.num_layers, space.prefix_layers)
        if space != expected:
            raise ValueError(f"space: expected the one of these settings, {expected}, got {space}")
        self.space = space
        self.settings = settings
        self.evaluated: dict[Chain, float] = {}
        self._started = 0
        self._pending: list[Chain] = []
        self._ended = False

    @property
    def simulations(self) -> int:
        """Simulations finished: chains proposed and told, the full chain included."""
        return len(self.evaluated)

    @property
    def done(self) -> bool:
        """Whether nothing is in flight and the simulations, or the chains, are used up."""
        return not self._pending and (self._started >= self.settings.simulations or self._exhausted)

    @property
    def _exhausted(self) -> bool:
        """Whether no chain is left to be proposed."""
        return self._ended

    def ask(self) -> list[Chain]:
        """Return chains to evaluate now: 1 to `in_flight` chains never returned before, or none when done.

        Raises:
            RuntimeError: where the rewards of the last chains have not been told.
        """
        if self._pending:
            raise RuntimeError(f"ask: expected the rewards of {len(self._pending)} chains to be told first, got none")
        most = min(self.settings.in_flight, self.settings.simulations - self._started)
        while len(self._pending) < most and not self._exhausted:
            chain = self._propose()
            if chain is None:
                self._ended = not self._pending
                break
            self._pending.append(chain)
            self._started += 1
        return list(self._pending)

    def tell(self, rewards: Sequence[float]) -> None:
        """Add the rewards of the chains last asked, in their order.

        Args:
            rewards: one reward in 0..1 for each chain.

        Raises:
            ValueError: where their number or a reward is wrong; then nothing is added.
        """
        if len(rewards) != len(self._pending):
            raise ValueError(
                f"rewards: expected one for each of the {len(self._pending)} chains asked, got {len(rewards)}"
            )
        values = [float(reward) for reward in rewards]
        for i, value in enumerate(values):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"rewards[{i}]: expected a number in 0..1, got {value!r}")
        self.evaluated.update(zip(self._pending, values, strict=True))
        self._pending = []
        self._learn(values)

    @abstractmethod
    def _propose(self) -> Chain | None:
        """Return a chain never proposed before, the full chain first.

        None: nothing can be proposed before the rewards in flight are told; where none is, nothing is left.
        """

    def _learn(self, rewards: list[float]) -> None:  # noqa: B027 (most searches need it, random and exhaustive do not)
        """Take in the rewards of the chains proposed since the last call, in their order."""

    def _penalty(self, chain: Chain) -> float:
        """Return lambda * depth / n of a chain, in units of reward (CoLa, arXiv 2507.07996)."""
        return self.settings.depth_penalty * chain.depth / chain.num_layers
