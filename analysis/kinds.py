"""Names of the norms; light enough for the command line to import."""

from typing import Literal

Kind = Literal["delta", "relative", "per_parameter"]
