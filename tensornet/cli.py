"""The command `tensornet`: its verbs, those of installed packages, and how errors are said."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer
from rich.console import Console

import tensornet
from tensornet.commands.demo import demo
from tensornet.commands.evaluate import evaluate
from tensornet.commands.inspect import inspect
from tensornet.commands.merge import merge
from tensornet.commands.train import train
from tensornet.errors import TensornetError

app = typer.Typer(
    help="One frozen backbone, many tasks: low-rank tensor deltas for PyTorch networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tensornet {tensornet.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


for verb in (demo, train, evaluate, inspect, merge):
    app.command()(verb)
for point in sorted(entry_points(group="tensornet.commands"), key=lambda p: p.name):
    app.command(name=point.name)(point.load())


def main() -> None:
    """Run the command line: 0 done, 1 an error that is said in one place, 2 wrong usage, 130 interrupted."""
    console = Console(stderr=True)
    try:
        app()
    except TensornetError as error:
        console.print("[bold red]error:[/]", end=" ")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on where it stopped")
        sys.exit(130)


if __name__ == "__main__":
    main()
