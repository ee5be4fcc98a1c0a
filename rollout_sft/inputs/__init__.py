"""What the model reads of one sample: a segment, and what it needs besides token ids."""
