"""Visual Transformers (Wu et al. 2020) for timm, transformers and torch.hub. Importing it registers all models."""

from importlib import import_module

from .registration import register_all
from .vt_fpn import VTFPN
from .vt_resnet import VTResNet
from .weights import list_pretrained, pretrained_folder

__version__ = '0.1.0'

_LAZY = {  # imported on first use: these need transformers or the Hub client
    'VTResNetConfig': 'configuration_vt',
    'VTResNetModel': 'modeling_vt',
    'VTResNetForImageClassification': 'modeling_vt',
    'VTResNetBackbone': 'modeling_vt',
    'VTResNetImageProcessor': 'image_processing_vt',
    'VTFPNConfig': 'configuration_vt',
    'VTFPNForSemanticSegmentation': 'modeling_vt',
    'VTFPNImageProcessor': 'image_processing_vt',
    'list_models': 'models',
    'load_model': 'models',
    'explain': 'explanation',
    'token_diversity': 'diversity',
    'export': 'publishing',
    'export_onnx': 'publishing',
    'verify': 'publishing',
    'push': 'publishing',
    'pull': 'publishing',
}
__all__ = ['VTFPN', 'VTResNet', 'list_pretrained', 'pretrained_folder', *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f'.{_LAZY[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted({*globals(), *__all__})


register_all()
