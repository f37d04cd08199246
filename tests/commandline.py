"""One command of the command line, run in this process."""

from __future__ import annotations

import pytest

import dnd.cli.main


class Outcome:
    """Exit status and output of one command run in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        with pytest.raises(SystemExit) as caught:
            dnd.cli.main.main(list(arguments))
        self.code = caught.value.code
        self.out, self.err = capsys.readouterr()
