"""What a type checker tells a user of the package."""

import re

import pytest
from conftest import ROOT
from mypy import api

SKIPPED = ('torch', 'timm', 'transformers', 'huggingface_hub', 'numpy', 'PIL', 'safetensors', 'jinja2', 'matplotlib')
MODEL = 'VTClassifier | VTFPN'
PUBLIC = {  # an expression, and a part of its type
    "vt_hub.load_model('vt_resnet18')": MODEL,
    "vt_hub.load_model('vt_resnet18').num_classes": 'int',
    'vt_hub.VTResNet': 'VTResNet',
    'vt_hub.list_models()': 'list[str]',
    'vt_hub.pretrained_folder': 'Path',
    'vt_hub.export': '-> Path',
    'vt_hub.export_onnx': '-> OnnxExport',
    "vt_hub.predict('vt_resnet18', 'cat.png')": 'list[dict[str, Any]]',
    "vt_hub.verify('folder')": 'list[Check]',
    'vt_hub.push': '-> str',
    "vt_hub.pull('name', 'folder')": 'Path',
}
WITH_TORCH = {  # these types pass through decorators or classes of other packages
    "vt_hub.predict('vt_resnet18', ['cat.png'], topk=1)": 'list[list[dict[str, Any]]]',
    "vt_hub.segment('vt_fpn_resnet10t', ['street.png'])": 'list[dict[str, Any]]',
    "vt_hub.load_model('vt_resnet18').fuse()": MODEL,
    'vt_hub.explain(vt_hub.VTResNet(), Image.new("RGB", (64, 64)))': 'Explanation',
    'vt_hub.token_diversity(vt_hub.VTResNet(), torch.rand(1))': 'list[TokenDiversity]',
    "vt_hub.VTResNetConfig(architecture='vt_resnet18', num_labels=37).label_names": 'list[str]',
    "vt_hub.VTResNetForImageClassification.from_pretrained('folder').to('cpu').config": 'VTResNetConfig',
    "vt_hub.VTFPNForSemanticSegmentation.from_pretrained('folder')": 'VTFPNForSemanticSegmentation',
}


def revealed(folder, expressions, skipped=()):
    """What mypy, in its strict mode, says about expressions in a user's script: the type of each."""
    lines = ['import torch', 'import vt_hub', 'from PIL import Image', *(f'reveal_type({e})' for e in expressions)]
    (folder / 'script.py').write_text('\n'.join(lines))
    sections = ['[mypy]', 'strict = True', f'mypy_path = {ROOT}', f'cache_dir = {folder / "cache"}']
    sections += ['[mypy-vt_hub.*]', 'follow_imports = silent']  # as of an installed package
    sections += [line for name in skipped for line in (f'[mypy-{name}.*]', 'follow_imports = skip')]
    (folder / 'mypy.ini').write_text('\n'.join(sections))
    output, errors, code = api.run(['--config-file', str(folder / 'mypy.ini'), str(folder / 'script.py')])
    assert code == 0, output + errors
    return [re.sub(r'\b(\w+\.)+(?=\w)', '', kind) for kind in re.findall('Revealed type is "(.*)"', output)]


def test_the_public_names_have_types(tmp_path):
    for kind, (expression, known) in zip(revealed(tmp_path, PUBLIC, SKIPPED), PUBLIC.items(), strict=True):
        assert kind != 'Any', expression
        assert known in kind, expression


@pytest.mark.slow
def test_the_public_names_have_types_beside_those_of_torch(tmp_path):
    expressions = PUBLIC | WITH_TORCH
    for kind, (expression, known) in zip(revealed(tmp_path, expressions), expressions.items(), strict=True):
        assert known in kind, expression
