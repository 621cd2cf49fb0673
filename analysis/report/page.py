"""The report as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from tensornet.atomic import write_file
from tensornet.commands.output import finite


def report(run: str | Path, out: str | Path, plans: Sequence[str | Path] = ()) -> Path:
    """Write one self-contained page about a run: no network is needed to read it.

    Args:
        run: a folder that `tensornet train` or `tensornet ranks` wrote.
        out: the HTML file.
        plans: TOML files of `tensornet choose` to show.

    Raises:
        RecipeError, TaskFileError: the folder is not a run, or a file in it cannot be read.
        ConfigError: a plan cannot be read.
        WriteError: the file cannot be written.
    """
    from analysis.report.contents import contents  # with it comes all that trains

    data = contents(Path(run), [Path(plan) for plan in plans])
    write_file(out, render(data))
    return Path(out)


def render(data: dict[str, Any]) -> str:
    """The page of `contents`."""
    from plotly.offline import get_plotlyjs

    files = {name: _file(name) for name in ("report.css", "report.js")}
    return Template(_file("report.html")).substitute(
        title=escape(f"Report on {data['run']}"),
        subtitle=escape(_subtitle(data)),
        summary=_table(data["summary"]["header"], data["summary"]["lines"]),
        style=files["report.css"],
        script=files["report.js"],
        plotly=get_plotlyjs().replace("</script", "<\\/script"),
        data=json.dumps(finite(data), allow_nan=False).replace("<", "\\u003c"),
    )


def _subtitle(data: dict[str, Any]) -> str:
    if not data["backbones"]:
        return "No run has finished yet."
    said = [f"{name}, {size:,} parameters without its head, hash {digest[:12]}…" for name, size, digest in data["backbones"]]
    return f"Backbone{'s' if len(said) > 1 else ''} {'; '.join(said)}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    rows = []
    for first, *rest in lines:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        rows.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _file(name: str) -> str:
    return (resources.files("analysis.report") / name).read_text(encoding="utf-8")
