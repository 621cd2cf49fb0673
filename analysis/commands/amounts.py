"""Amounts as they are written on the command line."""

from __future__ import annotations

import re

from tensornet.errors import ConfigError


def amount(text: str) -> float:
    """`20000` and `20_000` as an int, `5%` and `0.05` as a share.

    Raises:
        ConfigError: it is neither.
    """
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip())  # thousands; a decimal comma stays, and is refused
    try:
        if plain.endswith("%"):
            return float(plain[:-1]) / 100
        return float(plain) if "." in plain else int(plain)
    except ValueError:
        raise ConfigError(f"a budget is a number such as 20000, or a share such as 5% or 0.05; got {text!r}") from None
