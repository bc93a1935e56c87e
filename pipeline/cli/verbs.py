"""What all verbs have in common: -q and -v also after the verb, and paths with `~`."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from pipeline.cli import options, output

# These answer within a job script: they log nothing, so they need not wait for structlog to load.
_SILENT = {"resolve", "list", "show", "diff"}
_PATHS = ("path", "file", "directory")  # names of the types of options and arguments that are paths


class Verb(TyperCommand):
    """A verb; the only place that expands `~`, in arguments and in environment variables."""

    def __init__(self, name: str | None, *, params: list[Any], **attributes: Any) -> None:
        super().__init__(name, params=[*params, *_volume()], **attributes)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        if self.name not in _SILENT or ctx.parent.parent is not None:
            from pipeline.cli import logs

            logs.begin()
        for param in self.params:
            value = ctx.params.get(param.name)
            if value is not None and param.type.name in _PATHS:
                ctx.params[param.name] = _expanded(value)
        if str(ctx.params.get("config")) == str(options.DEFAULT_CONFIG):
            ctx.params["config"] = str(options.find_config())
        return super().invoke(ctx)


def _volume() -> list[TyperOption]:
    def option(*names: str, act: Callable[[], None]) -> TyperOption:
        def taken(_ctx: Any, _param: Any, value: bool) -> None:
            if value:
                act()

        return TyperOption(
            param_decls=list(names),
            is_flag=True,
            default=False,
            expose_value=False,
            callback=taken,
            hidden=True,
        )

    return [
        option("--quiet", "-q", act=output.be_quiet),
        option("--verbose", "-v", act=output.be_verbose),
    ]


def _expanded(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_expanded(one) for one in value]
    return os.path.expanduser(value)  # noqa: PTH111 - typer makes the Path afterwards


class Page(TyperGroup):
    """The page of all verbs, without the options for completion: it has to fit one screen of 80 by 50."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All options, those for completion hidden."""
        found = super().get_params(ctx)
        for param in found:
            if param.name in ("install_completion", "show_completion"):
                param.hidden = True  # type: ignore[attr-defined] # all of these are options
        return found


class Verbs(typer.Typer):
    """A group of verbs; each of them is a `Verb`."""

    def __init__(self, help: str, **attributes: Any) -> None:  # noqa: A002 - typer's name
        super().__init__(help=help, no_args_is_help=True, rich_markup_mode="markdown", **attributes)

    def command(self, name: str | None = None, **attributes: Any) -> Callable[[Any], Any]:
        """Register a function as a verb."""
        return super().command(name, cls=Verb, **attributes)

    def __call__(self, *words: Any, **more: Any) -> Any:
        """Run the command line."""
        return typer.Typer.__call__(self.needed(sys.argv[1:]), *words, **more)

    def needed(self, words: Sequence[str]) -> Verbs:
        """The verb or group alone that is called: to build them all takes longer than a short verb."""
        name = next((each for each in words if not each.startswith("-")), "")
        verbs = [each for each in self.registered_commands if name == (each.name or _name_of(each.callback))]
        groups = [each for each in self.registered_groups if name == each.name]
        if not (verbs or groups):
            return self
        alone = copy.copy(self)
        alone.registered_commands, alone.registered_groups = verbs, groups
        return alone


def _name_of(callback: Callable[..., Any] | None) -> str:
    return callback.__name__.replace("_", "-") if callback else ""
