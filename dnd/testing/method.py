"""The rules of methods that can be tried without a run: what one labels hangs on the whole study."""

from __future__ import annotations

from dnd.registry import KINDS
from dnd.testing.contract import Contract, require


class MethodContract(Contract):
    kind = "method"

    def test_its_own_check_finds_no_fault(self) -> None:
        """`check` says before any work what is missing; here, where it works, there is no complaint."""
        faults = list(self.make().check())
        require(not faults, f"check() complains: {faults[:1]}")

    def test_it_uses_kinds_that_there_are(self) -> None:
        """`uses` names kinds of backend."""
        strangers = sorted(set(self.make().uses) - KINDS.keys())
        require(not strangers, f"uses names {', '.join(strangers)}, which is no kind of plugin")
