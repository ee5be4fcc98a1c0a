"""Holds what the model reads of one sample: a segment, and its inputs in addition to token ids."""
