"""Names of classes in configurations, however they are given."""

import json

import pytest
from transformers import AutoConfig, AutoModelForImageClassification

import vt_hub

FOLDERS = ('vt_resnet10.digits', 'vt_fpn_resnet10t.shapes')
TWO = {'id2label': {'0': 'a', '1': 'b'}, 'label2id': {'a': '0', 'b': '1'}}  # as transformers' examples write them


@pytest.fixture(params=FOLDERS)
def folder(request):
    return str(vt_hub.pretrained_folder(request.param))


def check(config, labels):
    assert config.id2label == dict(enumerate(labels))
    assert config.label_names == labels
    assert config.num_labels == len(labels)
    assert {name: labels.index(name) for name in labels} == config.label2id


@pytest.mark.parametrize(
    'changes',
    [
        {'num_labels': 2, **TWO},
        {'id2label': {'0': 'a', '1': 'b'}},
        {'id2label': {1: 'b', 0: 'a'}},
        {'id2label': ['a', 'b']},
        {'id2label': ('a', 'b'), 'label2id': {'b': 0}},
    ],
)
def test_labels_of_every_kind(folder, changes):
    check(AutoConfig.from_pretrained(folder, **changes), ['a', 'b'])
    check(type(AutoConfig.from_pretrained(folder))(**changes), ['a', 'b'])


def test_labels_may_be_set_later(folder, tmp_path):
    config = AutoConfig.from_pretrained(folder)
    names = [f'class {i}' for i in range(config.num_labels)]
    config.id2label = {str(i): name for i, name in enumerate(names)}
    check(config, names)
    config.save_pretrained(tmp_path)
    check(AutoConfig.from_pretrained(tmp_path), names)
    assert json.loads((tmp_path / 'config.json').read_text())['label_names'] == names
    config.num_labels = 3
    check(config, ['LABEL_0', 'LABEL_1', 'LABEL_2'])


def test_a_model_with_another_head():
    folder = str(vt_hub.pretrained_folder('vt_resnet10'))
    model = AutoModelForImageClassification.from_pretrained(folder, num_labels=2, ignore_mismatched_sizes=True, **TWO)
    assert model.fc.out_features == 2
    check(model.config, ['a', 'b'])


def test_two_classes_with_one_name(folder):
    config = AutoConfig.from_pretrained(folder, id2label=['crane', 'stork', 'crane'])
    check(config, ['crane', 'stork', 'crane'])


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        ({0: 'a', 2: 'b'}, r'names the classes \[0, 2\]; they must count from 0, without gaps'),
        ({'x': 'a'}, 'has a key that is not a number'),
    ],
)
def test_labels_that_do_not_count_are_refused(folder, labels, message):
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(folder, id2label=labels)
    config = AutoConfig.from_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        config.id2label = labels


@pytest.mark.parametrize(
    ('config', 'argument'),
    [
        (vt_hub.VTResNetConfig, {'num_tokens': 32}),
        (vt_hub.VTResNetConfig, {'tokenizer': 'cluster'}),
        (vt_hub.VTFPNConfig, {'decoder': 'fpn'}),
        (vt_hub.VTFPNConfig, {'backbone': 'resnet101'}),
    ],
)
def test_arguments_of_the_network_are_not_taken_for_others(config, argument, tmp_path):
    [name] = argument
    with pytest.raises(ValueError, match=rf"{name} is an argument of the network; write model_args=\{{'{name}'"):
        config(**argument)
    config(model_args=argument).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_args[name] == argument[name]
    with pytest.raises(ValueError, match=f'{name} is an argument of the network'):
        AutoConfig.from_pretrained(tmp_path, **argument)
    config(output_attentions=True, problem_type='regression', num_labels=1)  # transformers' own stay
