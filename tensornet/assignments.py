"""Settings as a command line gives them."""

import json
import tomllib
from typing import Any


def read_assignment(text: str) -> dict[str, Any]:
    """`key=value` as a table: dotted keys, values as in TOML; a bare word is a string.

    Raises:
        ValueError: it is not of that form.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"expected key=value; got {text!r}")
    try:
        return tomllib.loads(f"{key} = {value}")
    except tomllib.TOMLDecodeError:
        return tomllib.loads(f"{key} = {json.dumps(value, ensure_ascii=False)}")  # escaped as TOML has it
