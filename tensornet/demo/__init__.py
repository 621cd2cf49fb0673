"""The main job on an embedded default: a network trained on printed digits, adapted to five other kinds of digits."""
