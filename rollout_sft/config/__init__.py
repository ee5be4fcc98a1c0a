"""Defines what can be configured: the training arguments, the YAML file and its stages, decoding, vLLM."""
