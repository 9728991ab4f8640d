"""The commands of `vt-hub`; cli.py puts them together."""
