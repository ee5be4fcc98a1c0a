"""Reads samples from files and data sets."""
