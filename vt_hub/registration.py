"""Registers our models with timm and transformers' Auto classes. Neither is imported before the user imports it."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ['register_all']


def _find_published(name: str) -> Path:
    from .loading.published import pretrained_folder  # imported here: it may be what imports this package

    return pretrained_folder(name)


def _register_networks() -> None:
    from .network import vt_fpn, vt_net, vt_resnet  # noqa: F401  importing registers them
    from .network.weights import find_published_with

    find_published_with(_find_published)


def _register_configs() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .network.configuration_vt import VTFPNConfig, VTNetConfig, VTResNetConfig

    for config in (VTResNetConfig, VTNetConfig, VTFPNConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto import modeling_auto as auto

    from .network import configuration_vt as configs
    from .network import modeling_vt as models

    for name in ('VTResNet', 'VTNet'):
        config = getattr(configs, f'{name}Config')
        auto.AutoModel.register(config, getattr(models, f'{name}Model'), exist_ok=True)
        auto.AutoModelForImageClassification.register(
            config, getattr(models, f'{name}ForImageClassification'), exist_ok=True
        )
        auto.AutoBackbone.register(config, getattr(models, f'{name}Backbone'), exist_ok=True)
        # pipelines look the class up by name in these tables, and log an error where it is missing
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[config.model_type] = f'{name}ForImageClassification'
    auto.AutoModelForSemanticSegmentation.register(
        configs.VTFPNConfig, models.VTFPNForSemanticSegmentation, exist_ok=True
    )
    auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES['vt_fpn'] = 'VTFPNForSemanticSegmentation'


def _register_image_processors() -> None:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from .network.configuration_vt import VTFPNConfig, VTNetConfig, VTResNetConfig
    from .network.image_processing_vt import VTFPNImageProcessor, VTResNetImageProcessor

    for config in (VTResNetConfig, VTNetConfig, VTFPNConfig):
        processor = VTFPNImageProcessor if config is VTFPNConfig else VTResNetImageProcessor
        classes: dict[str, type] = {'pil': processor, 'torchvision': processor}
        AutoImageProcessor.register(config, image_processor_classes=classes, exist_ok=True)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function after the module of that name is imported."""

    def __init__(self, callbacks: dict[str, Callable[[], None]]):
        self.callbacks = callbacks

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.callbacks:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None:
            return None
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if callback := self.callbacks.pop(name, None):
                callback()

        loader.exec_module = exec_module
        return spec


def register_all() -> None:
    """Register the models: now with modules that are already imported, with the others after their import."""
    auto = 'transformers.models.auto'
    waiting = {}
    for name, callback in (
        ('timm', _register_networks),
        (f'{auto}.configuration_auto', _register_configs),
        (f'{auto}.modeling_auto', _register_models),
        (f'{auto}.image_processing_auto', _register_image_processors),
    ):
        if name in sys.modules:
            callback()
        else:
            waiting[name] = callback
    if waiting:
        sys.meta_path.insert(0, _AfterImport(waiting))
