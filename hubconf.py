"""Entry points for torch.hub; see https://docs.pytorch.org/docs/stable/hub.html."""

dependencies = ['torch', 'torchvision', 'timm', 'huggingface_hub', 'safetensors', 'PIL']


def _create(name, pretrained, **kwargs):
    import timm

    import vt_hub  # noqa: F401  registers the models

    return timm.create_model(name, pretrained=pretrained, **kwargs)


def vt_fpn_resnet50(pretrained=False, **kwargs):
    """VT-FPN with ResNet-50 of Tables 9 and 10, for semantic segmentation.

    Args:
        pretrained (bool): Load the default weights of this architecture.
        kwargs: Further arguments of `timm.create_model`, such as `num_classes`.

    Example:
        >>> import torch
        >>> model = torch.hub.load('.', 'vt_fpn_resnet50', source='local', num_classes=20)
    """
    return _create('vt_fpn_resnet50', pretrained, **kwargs)


def vt_fpn_resnet101(pretrained=False, **kwargs):
    """VT-FPN with ResNet-101 of Tables 9 and 10, for semantic segmentation.

    Args:
        pretrained (bool): Load the default weights of this architecture.
        kwargs: Further arguments of `timm.create_model`, such as `num_classes`.

    Example:
        >>> import torch
        >>> model = torch.hub.load('.', 'vt_fpn_resnet101', source='local', num_classes=20)
    """
    return _create('vt_fpn_resnet101', pretrained, **kwargs)


def vt_fpn_resnet10t(pretrained=False, **kwargs):
    """A small VT-FPN for demos and CPUs that is not in the paper.

    Args:
        pretrained (bool): Load the default weights of this architecture.
        kwargs: Further arguments of `timm.create_model`, such as `num_classes`.

    Example:
        >>> import torch
        >>> model = torch.hub.load('.', 'vt_fpn_resnet10t', source='local', pretrained=True)
    """
    return _create('vt_fpn_resnet10t', pretrained, **kwargs)


def vt_resnet10(pretrained=False, **kwargs):
    """VT-ResNet-10, a small model for demos and CPUs that is not in the paper.

    Args:
        pretrained (bool): Load the default weights of this architecture.
        kwargs: Further arguments of `timm.create_model`, such as `num_classes`.

    Example:
        >>> import torch
        >>> model = torch.hub.load('.', 'vt_resnet10', source='local', pretrained=True)
    """
    return _create('vt_resnet10', pretrained, **kwargs)


def vt_resnet18(pretrained=False, **kwargs):
    """VT-ResNet-18 of Table 11.

    Args:
        pretrained (bool): Load the default weights of this architecture.
        kwargs: Further arguments of `timm.create_model`, such as `num_classes`.

    Example:
        >>> import torch
        >>> model = torch.hub.load('.', 'vt_resnet18', source='local', num_classes=10)
    """
    return _create('vt_resnet18', pretrained, **kwargs)


def vt_resnet34(pretrained=False, **kwargs):
    """VT-ResNet-34 of Table 11.

    Args:
        pretrained (bool): Load the default weights of this architecture.
        kwargs: Further arguments of `timm.create_model`, such as `num_classes`.

    Example:
        >>> import torch
        >>> model = torch.hub.load('.', 'vt_resnet34', source='local', num_classes=10)
    """
    return _create('vt_resnet34', pretrained, **kwargs)


def vt_resnet50(pretrained=False, **kwargs):
    """VT-ResNet-50 of Table 11.

    Args:
        pretrained (bool): Load the default weights of this architecture.
        kwargs: Further arguments of `timm.create_model`, such as `num_classes`.

    Example:
        >>> import torch
        >>> model = torch.hub.load('.', 'vt_resnet50', source='local', num_classes=10)
    """
    return _create('vt_resnet50', pretrained, **kwargs)


def vt_resnet101(pretrained=False, **kwargs):
    """VT-ResNet-101 of Table 11.

    Args:
        pretrained (bool): Load the default weights of this architecture.
        kwargs: Further arguments of `timm.create_model`, such as `num_classes`.

    Example:
        >>> import torch
        >>> model = torch.hub.load('.', 'vt_resnet101', source='local', num_classes=10)
    """
    return _create('vt_resnet101', pretrained, **kwargs)
