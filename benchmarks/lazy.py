"""A group of commands whose modules are imported when they are asked for: help needs no torch."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import ClassVar

import click
from click.core import ParameterSource

from faces.errors import UserError


class LazyGroup(click.Group):
    """`lazy`: command name to (`module:attribute`, one line of help). A module that is not installed is not listed."""

    lazy: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        there = [name for name, (where, _) in self.lazy.items() if importlib.util.find_spec(where.partition(":")[0])]
        return [*super().list_commands(ctx), *there]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy or cmd_name not in self.list_commands(ctx):
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # As click's own, without importing what only has to be named.
        rows = [
            (name, self.lazy[name][1] if name in self.lazy else self.commands[name].get_short_help_str(80))
            for name in self.list_commands(ctx)
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def refuse_before(context: click.Context) -> None:
    """UserError where an option of the group stands in front of a command, which would not read it."""
    for option in context.command.params:
        if context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE:
            flag = "/".join((*option.opts, *option.secondary_opts))
            raise UserError(
                f"{flag} in front of {context.invoked_subcommand} changes nothing: "
                f"`{context.invoked_subcommand} --help` lists what it reads"
            )
