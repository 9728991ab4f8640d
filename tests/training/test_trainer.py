"""transformers' Trainer fine-tunes, resumes, and its checkpoint loads in timm."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

import vt_hub

LABELS = ['bright', 'dark']


@pytest.fixture
def dataset(tmp_path):
    """A tiny image folder read through the processor: bright and dark noise."""
    draw = np.random.default_rng(0)
    for i in range(16):
        label = LABELS[i % 2]
        (tmp_path / 'data' / label).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 120, (40, 50, 3)) + (130 if label == 'bright' else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / 'data' / label / f'{i}.png')
    folder = vt_hub.export(timm.create_model('test_vt_resnet', num_classes=5), tmp_path / 'start', code=False)
    processor = AutoImageProcessor.from_pretrained(folder)
    items = [
        {'pixel_values': processor(Image.open(path))['pixel_values'][0], 'labels': LABELS.index(path.parent.name)}
        for path in sorted((tmp_path / 'data').rglob('*.png'))
    ]
    return folder, items


def trainer(model, items, output, epochs):
    arguments = TrainingArguments(
        output_dir=str(output), num_train_epochs=epochs, per_device_train_batch_size=8, learning_rate=3e-3,
        save_strategy='epoch', report_to='none', disable_tqdm=True, use_cpu=True, seed=0,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=items)


def start(folder):
    return AutoModelForImageClassification.from_pretrained(
        folder,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
        ignore_mismatched_sizes=True,
    )


def test_fine_tune_resume_and_load_in_timm(dataset, tmp_path):
    folder, items = dataset
    torch.manual_seed(0)
    first = trainer(start(folder), items, tmp_path / 'run', epochs=2)
    first.train()
    resumed = trainer(start(folder), items, tmp_path / 'run', epochs=6)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.epoch == 6
    assert resumed.state.global_step == 3 * first.state.global_step

    checkpoint = max((tmp_path / 'run').glob('checkpoint-*'), key=lambda path: int(path.name.split('-')[1]))
    model = timm.create_model(f'local-dir:{checkpoint}', pretrained=True).eval()
    x = torch.stack([item['pixel_values'] for item in items])
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(logits, resumed.model.eval()(x).logits)
    assert list(model.pretrained_cfg['label_names']) == LABELS
    assert (logits.argmax(1) == torch.tensor([item['labels'] for item in items])).float().mean() > 0.9
    assert vt_hub.export(vt_hub.load_model(str(checkpoint)), tmp_path / 'published').is_dir()


def test_a_resumed_run_starts_from_the_saved_weights(dataset, tmp_path):
    folder, items = dataset
    done = trainer(start(folder), items, tmp_path / 'run', epochs=1)
    done.train()
    again = trainer(start(folder), items, tmp_path / 'run', epochs=1)
    again.train(resume_from_checkpoint=True)  # nothing is left to train
    saved = done.model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in again.model.state_dict().items())
