"""Loads the model, and knows what its forward takes and how its attention keeps packed segments apart."""
