"""The embedded world: a small English-like language whose sentences have known true values, and its data files.

No training happens here: the files written by `make.write_world` are in the ordinary formats any user would bring.
"""
