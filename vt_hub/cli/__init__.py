"""The commands of `vt-hub`; main.py puts them together."""
