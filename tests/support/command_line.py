"""The whole command line, for tests that call it in their own process."""

from __future__ import annotations

from pipeline.cli.tree import command_line

app = command_line()
