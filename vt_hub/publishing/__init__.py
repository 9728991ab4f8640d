"""Model folders, the form of a published model: write, describe, check and publish them."""

from .card import build_card
from .hub import pull, push
from .model_folder import export, export_weights
from .onnx_file import export_onnx
from .verification import verify

__all__ = ['build_card', 'export', 'export_onnx', 'export_weights', 'pull', 'push', 'verify']
