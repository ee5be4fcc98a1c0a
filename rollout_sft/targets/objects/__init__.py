"""Lists of objects with boxes: parsed, matched with the truth, and completed."""
