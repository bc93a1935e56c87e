"""What all verbs have in common: -q and -v also after the verb, and paths with `~`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.cli import options, output
from pipeline.errors import ConfigError

_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_VOLUME = [
    inspect.Parameter(name, _KEYWORD, default=False, annotation=Annotated[bool, option])
    for name, option in {
        "quiet_verb": typer.Option("--quiet", "-q", hidden=True),
        "verbose_verb": typer.Option("--verbose", "-v", hidden=True),
    }.items()
]


class _Verb:
    """A verb as typer calls it; the only place that expands `~`, in arguments and in variables."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(
            self, function, assigned=("__module__", "__name__", "__qualname__", "__doc__")
        )
        self.__annotations__ = {}  # those of the signature are evaluated
        self._function = function

    @functools.cached_property
    def __signature__(self) -> inspect.Signature:
        """That of the function and -q and -v; found out for the verb that is called alone."""
        signature = inspect.signature(self._function, eval_str=True)
        return signature.replace(parameters=[*signature.parameters.values(), *_VOLUME])

    def __call__(self, *words: Any, quiet_verb: bool, verbose_verb: bool, **given: Any) -> Any:
        """Run the verb."""
        if quiet_verb:
            output.be_quiet()
        if verbose_verb:
            output.be_verbose()
        if given.get("config") == options.DEFAULT_CONFIG:
            given["config"] = options.find_config()
        return self._function(*words, **{name: _expanded(value) for name, value in given.items()})


def _expanded(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_expanded(one) for one in value]
    return value.expanduser() if isinstance(value, Path) else value


class Page(TyperGroup):
    """The page of all verbs, without the options for completion: it has to fit one screen of 80 by 50."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All options, those for completion hidden."""
        found = super().get_params(ctx)
        for param in found:
            if param.name in ("install_completion", "show_completion"):
                param.hidden = True  # type: ignore[attr-defined] # all of these are options
                param.callback = functools.partial(_for_this_shell, param.callback)
        return found


def _for_this_shell(complete: Any, *words: Any) -> Any:
    """What typer's option does; it ends with 1 in a shell that it does not know."""
    try:
        return complete(*words)
    except typer.Exit as end:
        raise ConfigError(
            "there is no completion for this shell",
            hint="start this command from bash, zsh, fish or powershell",
        ) from end


class Verbs(typer.Typer):
    """A group of verbs."""

    def __init__(self, help: str, **attributes: Any) -> None:  # noqa: A002 - typer's name
        super().__init__(help=help, no_args_is_help=True, rich_markup_mode="markdown", **attributes)

    def command(self, name: str | None = None, **attributes: Any) -> Callable[[Any], Any]:
        """Register a function as a verb."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            super(Verbs, self).command(name, **attributes)(_Verb(function))
            return function

        return register
