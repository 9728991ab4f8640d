"""Model folders: what a published model is, how it is written, described, checked and published."""

from .card import build_card
from .checks import verify
from .folder import export
from .hub import pull, push
from .onnx_file import export_onnx

__all__ = ['build_card', 'export', 'export_onnx', 'pull', 'push', 'verify']
