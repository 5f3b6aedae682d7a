"""Parametric pose non-maximum suppression."""
