"""Entry points for torch.hub; see https://docs.pytorch.org/docs/stable/hub.html."""

dependencies = ['torch', 'torchvision', 'timm', 'huggingface_hub', 'safetensors', 'PIL']


def _entry(name, what, example='num_classes=10'):
    def create(pretrained=False, **kwargs):
        import timm

        import vt_hub  # noqa: F401  registers the models

        return timm.create_model(name, pretrained=pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"""{what}

    Args:
        pretrained (bool): Load the default weights of this architecture.
        kwargs: Further arguments of `timm.create_model`, such as `num_classes`.

    Example:
        >>> import torch
        >>> model = torch.hub.load('.', '{name}', source='local', {example})
    """
    return create


vt_resnet10 = _entry('vt_resnet10', 'VT-ResNet-10, a small model that is not in the paper.', 'pretrained=True')
vt_resnet18 = _entry('vt_resnet18', 'VT-ResNet-18 of Table 11.')
vt_resnet34 = _entry('vt_resnet34', 'VT-ResNet-34 of Table 11.')
vt_resnet50 = _entry('vt_resnet50', 'VT-ResNet-50 of Table 11.')
vt_resnet101 = _entry('vt_resnet101', 'VT-ResNet-101 of Table 11.')
vt_net = _entry('vt_net', 'A VT stage on the trunk of any timm model.', "backbone='convnext_tiny'")
vt_efficientnet_lite0 = _entry('vt_efficientnet_lite0', 'A VT stage on EfficientNet-Lite0, not in the paper.')
vt_fpn_resnet10t = _entry('vt_fpn_resnet10t', 'A small VT-FPN that is not in the paper.', 'pretrained=True')
vt_fpn_resnet18 = _entry('vt_fpn_resnet18', 'VT-FPN with ResNet-18, not in the paper, for segmentation.')
vt_fpn_resnet50 = _entry('vt_fpn_resnet50', 'VT-FPN with ResNet-50 of Tables 9 and 10, for segmentation.')
vt_fpn_resnet101 = _entry('vt_fpn_resnet101', 'VT-FPN with ResNet-101 of Tables 9 and 10, for segmentation.')
