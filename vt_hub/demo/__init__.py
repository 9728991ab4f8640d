"""The browser demo, served by `vt-hub demo` or in a Space."""

from .app import build, start

__all__ = ['build', 'start']
