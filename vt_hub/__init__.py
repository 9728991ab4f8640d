"""Visual Transformers (Wu et al. 2020) for timm, transformers and torch.hub. Importing it registers all models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register_all

if TYPE_CHECKING:  # `as` tells type checkers that a name is public
    from .inference.classify import predict as predict
    from .inference.diversity import token_diversity as token_diversity
    from .inference.explain import explain as explain
    from .inference.segment import segment as segment
    from .loading.published import list_pretrained as list_pretrained
    from .loading.published import pretrained_folder as pretrained_folder
    from .loading.source import list_models as list_models
    from .loading.source import load_model as load_model
    from .network.configuration_vt import VTFPNConfig as VTFPNConfig
    from .network.configuration_vt import VTNetConfig as VTNetConfig
    from .network.configuration_vt import VTResNetConfig as VTResNetConfig
    from .network.image_processing_vt import VTFPNImageProcessor as VTFPNImageProcessor
    from .network.image_processing_vt import VTResNetImageProcessor as VTResNetImageProcessor
    from .network.modeling_vt import VTFPNForSemanticSegmentation as VTFPNForSemanticSegmentation
    from .network.modeling_vt import VTNetBackbone as VTNetBackbone
    from .network.modeling_vt import VTNetForImageClassification as VTNetForImageClassification
    from .network.modeling_vt import VTNetModel as VTNetModel
    from .network.modeling_vt import VTResNetBackbone as VTResNetBackbone
    from .network.modeling_vt import VTResNetForImageClassification as VTResNetForImageClassification
    from .network.modeling_vt import VTResNetModel as VTResNetModel
    from .network.vt_fpn import VTFPN as VTFPN
    from .network.vt_net import VTNet as VTNet
    from .network.vt_resnet import VTResNet as VTResNet
    from .publishing import export as export
    from .publishing import export_onnx as export_onnx
    from .publishing import pull as pull
    from .publishing import push as push
    from .publishing import verify as verify

__version__ = '0.1.0'

_MODULES = {  # of what is imported on first use
    'VTFPN': 'network.vt_fpn',
    'VTFPNConfig': 'network.configuration_vt',
    'VTFPNForSemanticSegmentation': 'network.modeling_vt',
    'VTFPNImageProcessor': 'network.image_processing_vt',
    'VTNet': 'network.vt_net',
    'VTNetBackbone': 'network.modeling_vt',
    'VTNetConfig': 'network.configuration_vt',
    'VTNetForImageClassification': 'network.modeling_vt',
    'VTNetModel': 'network.modeling_vt',
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
    'predict': 'inference.classify',
    'pretrained_folder': 'loading.published',
    'pull': 'publishing',
    'push': 'publishing',
    'segment': 'inference.segment',
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
