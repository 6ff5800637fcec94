"""Routes, one file per resource. ``v1`` assembles them."""
