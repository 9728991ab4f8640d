"""Model folders: what a published model is, how it is written, described and checked."""
from .card import build_card

__all__ = ['build_card']
