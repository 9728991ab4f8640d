"""torch.hub entry of this model folder: torch.hub.load(FOLDER, 'model', source='local')."""

dependencies = ['torch', 'timm', 'safetensors']


def model(pretrained=True, **kwargs):
    """The model of this folder.

    Args:
        pretrained (bool): Load the folder's weights.
        kwargs: Further arguments of `timm.create_model`, such as `num_classes`.
    """
    import sys
    from importlib import import_module
    from pathlib import Path
    from types import ModuleType

    import timm

    folder = Path(__file__).parent
    package = ModuleType(f'vt_hub_folder_{abs(hash(folder))}')  # the folder's files import each other relatively
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    for name in ('vt_resnet', 'vt_net', 'vt_fpn'):  # registers the architectures
        import_module(f'{package.__name__}.{name}')
    if pretrained:
        import_module(f'{package.__name__}.checksums').check_folder(folder)
    return timm.create_model(f'local-dir:{folder}', pretrained=pretrained, **kwargs)
