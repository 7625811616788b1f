"""How a routed model is written and published: the router alone, with its model card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from router.durable import read_json
from router.routed.card import model_card
from router.routed.hub import push_router, write_router_folder
from router.storage import Router


class SavesRouter:
    """What stands in for the base model's `save_pretrained` and `push_to_hub`: the base model is never written.

    Attributes:
        router: the router.
        router_folder: where the router was read from; None where it was made here.
    """

    router: Router
    router_folder: Path | None

    def save_pretrained(self, save_directory: str | Path, *, report: str | Path | None = None) -> None:
        """Write the router, not the base model, and a model card.

        Args:
            save_directory: folder for it, which is made if need be.
            report: `report.json` of an evaluation of it, whose table goes into the card.

        Raises:
            InputError: where the folder holds something else or cannot be written, or the report cannot be read.
        """
        measured = None if report is None else read_json(Path(report))
        card = model_card(self.router, report=measured)
        write_router_folder(Path(save_directory), self.router, source=self.router_folder, card=card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        report: str | Path | None = None,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Add the router",
    ) -> str:
        """Upload what `save_pretrained` writes to the hub.

        Args:
            repo_id: repository, which is made if need be.
            report: as in `save_pretrained`.
            private: whether a new repository is private; None: as the account has it.
            token: hub token; None: the one that the hub's own tools have stored.
            revision: branch to write to.
            commit_message: message of the commit.

        Returns:
            The repository's address.

        Raises:
            InputError: where the hub refuses it, or as in `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "router", report=report)
            return push_router(
                Path(folder) / "router",
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
            )
