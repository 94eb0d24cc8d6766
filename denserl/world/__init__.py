"""The embedded worlds: a small English-like language whose sentences have known true values, and plain arithmetic whose steps
are right or wrong; and their data files.

No training happens here: the files written by `make` and `make_sums` are in the ordinary formats any user would bring.
"""
