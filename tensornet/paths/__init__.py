"""How a delta meets its layer: on the weight, or through the rank, whichever is cheaper."""
