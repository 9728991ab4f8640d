"""Visual Transformers (Wu et al. 2020) for timm, transformers and torch.hub. Importing it registers all models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register_all

if TYPE_CHECKING:
    from .inference.diversity import token_diversity
    from .inference.explain import explain
    from .loading.published import list_pretrained, pretrained_folder
    from .loading.source import list_models, load_model
    from .network.configuration_vt import VTFPNConfig, VTResNetConfig
    from .network.image_processing_vt import VTFPNImageProcessor, VTResNetImageProcessor
    from .network.modeling_vt import (
        VTFPNForSemanticSegmentation,
        VTResNetBackbone,
        VTResNetForImageClassification,
        VTResNetModel,
    )
    from .network.vt_fpn import VTFPN
    from .network.vt_resnet import VTResNet
    from .publishing import export, export_onnx, pull, push, verify

__version__ = '0.1.0'

_MODULES = {  # of what is imported on first use
    'VTFPN': 'network.vt_fpn',
    'VTFPNConfig': 'network.configuration_vt',
    'VTFPNForSemanticSegmentation': 'network.modeling_vt',
    'VTFPNImageProcessor': 'network.image_processing_vt',
    'VTResNet': 'network.vt_resnet',
    'VTResNetBackbone': 'network.modeling_vt',
    'VTResNetConfig': 'network.configuration_vt',
    'VTResNetForImageClassification': 'network.modeling_vt',
    'VTResNetImageProcessor': 'network.image_processing_vt',
    'VTResNetModel': 'network.modeling_vt',
    'explain': 'inference.explain',
    'export': 'publishing',
    'export_onnx': 'publishing',
    'list_models': 'loading.source',
    'list_pretrained': 'loading.published',
    'load_model': 'loading.source',
    'pretrained_folder': 'loading.published',
    'pull': 'publishing',
    'push': 'publishing',
    'token_diversity': 'inference.diversity',
    'verify': 'publishing',
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f'.{_MODULES[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_all()
