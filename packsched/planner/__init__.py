"""Implements `plan_window`: one textbook algorithm a file, and the table that orders them."""
