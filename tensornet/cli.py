"""The command `tensornet`: its verbs, those of installed packages, and how errors are said."""

from __future__ import annotations

import functools
import io
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from rich.console import Console

import tensornet
from tensornet.commands.bench import bench
from tensornet.commands.demo import demo
from tensornet.commands.evaluate import evaluate
from tensornet.commands.export import export
from tensornet.commands.extract import extract
from tensornet.commands.inspect import inspect
from tensornet.commands.merge import merge
from tensornet.commands.train import train
from tensornet.errors import TensornetError
from tensornet.heap import keep_freed_memory
from tensornet.modules import import_module

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


def _spoken(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb whose errors are said in a sentence: exit code 1 for an error, 130 for an interrupt."""

    @functools.wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        console = Console(stderr=True)
        try:
            verb(*args, **kwargs)
        except BrokenPipeError:
            raise
        except (TensornetError, OSError) as error:  # OSError: of what cannot be read, or of standard output
            console.print("[bold red]error:[/]", end=" ")
            console.print(str(error), markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            resumes = verb.__name__ in ("train", "ranks", "prune", "bench")
            console.print("interrupted" + ("; the same command goes on where it stopped" if resumes else ""))
            raise typer.Exit(130) from None

    return run


def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    modules: Annotated[
        list[str],
        typer.Option("--import", help="Import a module first, for the decompositions that it registers. May be repeated."),
    ] = [],  # noqa: B006
) -> None:
    for name in modules:
        import_module(name)


app.callback()(_spoken(_options))
for _verb in (demo, train, evaluate, inspect, merge, extract, export, bench):
    app.command()(_spoken(_verb))
for _point in sorted(entry_points(group="tensornet.commands"), key=lambda point: point.name):
    app.command(name=_point.name)(_spoken(_point.load()))


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as a sentence; where in the code it was made is of no use here."""
    console = Console(stderr=True)
    console.print("[bold yellow]warning:[/]", end=" ")
    console.print(str(message), markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line: 0 done, 1 an error, 2 wrong usage, 130 interrupted."""
    keep_freed_memory()
    warnings.showwarning = _warn
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every console knows every letter
    app()
