"""What one run of the path works with. It is given to `release/` only: stages take explicit arguments."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.bases.clients import Clients
    from pipeline.config.lock import Lock
    from pipeline.config.types import Config
    from pipeline.progress import Progress
    from pipeline.store.store import Store


class Stage(str, Enum):
    """The stages of the path, in their order."""

    PIN = "pin"
    BUILD = "build"
    PUSH = "push"
    SCAN = "scan"
    CONVERT = "convert"
    VERIFY = "verify"
    TEST = "test"
    PUBLISH = "publish"

    def reaches(self, other: Stage) -> bool:
        """Whether `other` is run when this stage is the last one to run."""
        order = list(Stage)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The configuration, the locked bases, clients of registries, who follows the progress, the commit."""

    config: Config
    lock: Lock
    clients: Clients
    progress: Progress
    revision: str | None = None

    def store(self) -> Store:
        """The configured store. ConfigError when none is given."""
        from pipeline.attest.required import store_of

        return store_of(self.config.store, self.config.path)
