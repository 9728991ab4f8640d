"""Model folders: what a published model is, how it is written, described and checked."""

from .card import build_card
from .folder import export

__all__ = ['build_card', 'export']
