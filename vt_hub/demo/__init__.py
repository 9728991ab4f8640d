"""The demo in a browser: what `vt-hub demo` serves, and a Space."""

from .app import build, start

__all__ = ['build', 'start']
