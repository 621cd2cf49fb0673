"""Amounts as they are written on the command line."""

from __future__ import annotations

import re

from tensornet.errors import ConfigError


def amount(text: str) -> float:
    """`20000` and `20_000` as an int, `5%` and `0.05` as a share.

    Raises:
        ConfigError: it is neither.
    """
    plain = text.strip()
    if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", plain):  # thousands; a decimal comma stays, and is refused
        plain = plain.replace(",", "")
    try:
        if plain.endswith("%"):
            return float(plain[:-1]) / 100
        return float(plain) if "." in plain else int(plain)
    except ValueError:
        raise ConfigError(f"a budget is a number such as 20000, or a share such as 5% or 0.05; got {text!r}") from None
