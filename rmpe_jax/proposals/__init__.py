"""Boxes such as a human detector would give, drawn around labelled people."""
