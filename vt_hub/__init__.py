"""Visual Transformers (Wu et al. 2020) for timm, transformers and torch.hub. Importing the package registers all models."""
from .vt_resnet import VTResNet
from .weights import list_pretrained, pretrained_folder

__version__ = '0.1.0'
__all__ = ['VTResNet', 'list_pretrained', 'pretrained_folder']
