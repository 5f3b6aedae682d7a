"""Weights (or a file of predictions) and a data set in, the table of its protocol out, with intervals."""
