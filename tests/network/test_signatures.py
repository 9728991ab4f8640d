"""What `help` says about the arguments of the networks."""

import inspect

import pytest
import timm
from timm.models import get_model_args

import vt_hub


@pytest.mark.parametrize('network', [vt_hub.VTResNet, vt_hub.VTNet, vt_hub.VTFPN])
def test_signatures_name_every_argument(network):
    arguments = inspect.signature(network).parameters
    assert 'num_tokens' in arguments
    assert not any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    assert all(argument.default is not argument.empty for argument in arguments.values())


@pytest.mark.parametrize('name', ['vt_resnet18', 'vt_net', 'vt_fpn_resnet10t'])
def test_architectures_use_these_arguments(name):
    model = timm.create_model(name, device='meta')
    assert get_model_args(model).keys() <= inspect.signature(type(model)).parameters.keys() | {'pretrained_backbone'}
    with pytest.raises(TypeError, match='no_such_argument'):
        type(model)(no_such_argument=1)
