"""One file per resource; ``v1`` puts them together."""
