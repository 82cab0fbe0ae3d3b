"""Thin nodes: a schema each, and an execute() of a few lines."""
