"""Train, evaluate and write vt_resnet10.digits: python model_cards/vt_resnet10.digits/train.py --out FOLDER.

Data: scikit-learn's load_digits, 1797 grey 8 x 8 images of 13 writers, upscaled to 64 x 64. Split: a stratified fifth,
drawn with random_state=0, is held out. With --dev the rest is split again in the same way, and the model is scored on
that part instead. Every choice in this file was made with --dev. The held-out fifth was used only for the result file.
With --out, `summary.csv` beside this script is the log of the training.
"""

import argparse
import hashlib
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.utils import ModelEmaV3

import vt_hub
from vt_hub.inference.preprocessing import eval_transform
from vt_hub.publishing import export
from vt_hub.publishing.model_folder import convert_dtype
from vt_hub.reporting import find_device, machine, write_result
from vt_hub.training.resumable import log

ROOT = Path(__file__).parent
SIZE = 64
FILE = 'datasets/data/digits.csv.gz'  # of scikit-learn
NUM_COMPARED = 64  # images on which the tokens are compared


def split(dev: bool):
    """Train and test parts of the digits: float images (N, 8, 8) in [0, 1], labels (N,)."""
    digits = load_digits()
    images, labels = digits.images.astype(np.float32) / 16, digits.target
    for _ in range(2 if dev else 1):
        images, test_images, labels, test_labels = train_test_split(
            images, labels, test_size=0.2, random_state=0, stratify=labels
        )
    return (images, labels), (test_images, test_labels)


def to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(image * 255).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def augment(images: torch.Tensor) -> torch.Tensor:
    """Grey images (B, 1, 64, 64) in [0, 1] to RGB in [-1, 1]: affine, ink and paper colours, contrast, noise."""
    B = len(images)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.empty(B, *shape).uniform_(low, high)

    angle, shear = uniform(-0.3, 0.3), uniform(-0.25, 0.25)
    scale_x, scale_y = uniform(0.8, 1.5), uniform(0.8, 1.5)
    cos, sin = angle.cos(), angle.sin()
    affine = torch.stack(
        [
            torch.stack([scale_x * cos, scale_x * (shear * cos - sin), uniform(-0.25, 0.25)], -1),
            torch.stack([scale_y * sin, scale_y * (shear * sin + cos), uniform(-0.25, 0.25)], -1),
        ],
        1,
    )
    images = F.grid_sample(images, F.affine_grid(affine, list(images.shape), align_corners=False), align_corners=False)
    gain = uniform(1.0, 6.0, 1, 1, 1)  # thin soft strokes to hard ones
    sharp = torch.sigmoid(gain * 4 * (images - uniform(0.25, 0.6, 1, 1, 1)))
    images = torch.where(uniform(0, 1, 1, 1, 1) < 0.5, sharp, images)
    paper, ink = uniform(0, 1, 3, 1, 1), uniform(0, 1, 3, 1, 1)
    grey = uniform(0, 1, 1, 1, 1) < 0.7  # most are white on black or black on white
    black = (uniform(0, 1, 1, 1, 1) < 0.5).float()
    paper, ink = torch.where(grey, 1 - black, paper), torch.where(grey, black, ink)
    near = (paper - ink).abs().amax(1, keepdim=True) < 0.3
    ink = torch.where(near, (paper + 0.5) % 1, ink)
    images = paper + images * (ink - paper)
    images = images + uniform(0, 0.1, 1, 1, 1) * torch.randn_like(images)
    return images.clamp(0, 1) * 2 - 1


def train(
    images: np.ndarray, labels: np.ndarray, seed: int, epochs: int, summary: Path | None = None, batch_size: int = 64
) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model('vt_resnet10', num_classes=10, drop_rate=0.2)
    images = torch.stack([torch.from_numpy(np.array(to_pil(i), dtype=np.float32) / 255)[None] for i in images])
    labels = torch.from_numpy(labels)
    steps = len(images) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
    ema = ModelEmaV3(model, decay=0.99)
    for epoch in range(epochs):
        model.train()
        started, total = time.time(), 0.0
        for index in torch.randperm(len(images))[: steps * batch_size].view(steps, batch_size):
            loss = F.cross_entropy(model(augment(images[index])), labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            ema.update(model)
            total += loss.item()
        print(f'epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}, {time.time() - started:.1f} s', flush=True)
        if summary:
            log(summary, (epoch + 1) * steps, epoch=epoch + 1, loss=round(total / steps, 4))
    return ema.module.eval()


def to_batch(model: torch.nn.Module, images: np.ndarray) -> torch.Tensor:
    """Images (N, 8, 8) through the model's own preprocessing, (N, 3, 64, 64)."""
    transform = eval_transform(model)
    return torch.stack([transform(to_pil(image).convert('RGB')) for image in images])


@torch.inference_mode()
def evaluate(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy in percent."""
    return 100 * (model(to_batch(model, images)).argmax(1).numpy() == labels).mean().item()


def write_samples(images: np.ndarray, labels: np.ndarray):
    """The first held-out image of each digit, as PNG files under samples/."""
    for label in range(10):
        to_pil(images[labels == label][0]).save(ROOT.parents[1] / 'samples' / f'digit_{label}.png')


def write_images(folder: Path, dev: bool):
    """The two parts as folders of class folders, for `vt-hub train`."""
    for name, (images, labels) in zip(('train', 'val'), split(dev), strict=True):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / name / str(label) / f'{i:04d}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil(image).convert('RGB').save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='write the model folder here, and result.json beside this script')
    parser.add_argument('--images', type=Path, help='only write the images here, train/ and val/ of class folders')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--dev', action='store_true', help='score on a part of the training images')
    args = parser.parse_args()
    if args.images:
        write_images(args.images, args.dev)
        return

    (images, labels), (test_images, test_labels) = split(args.dev)
    started = time.time()
    model = train(images, labels, args.seed, args.epochs, ROOT / 'summary.csv' if args.out else None)
    seconds = time.time() - started
    model.load_state_dict(convert_dtype(model.state_dict(), 'fp16'))  # what is measured is what is shipped
    top1 = evaluate(model, test_images, test_labels)
    print(f'top-1 {top1:.2f} % on {len(test_labels)} images, seed {args.seed}, {seconds:.0f} s')
    if args.out:
        compared = vt_hub.token_diversity(model, to_batch(model, test_images[:NUM_COMPARED]))
        result = {
            'task': 'image-classification',
            'dataset': {
                'name': "scikit-learn's handwritten digits",
                'type': 'sklearn.datasets.load_digits',
                'split': 'held-out fifth, stratified, random_state=0',
                'num_images': len(test_labels),
            },
            'metrics': {'top1': round(top1, 2)},
            'training': {
                'num_images': len(labels),
                'epochs': args.epochs,
                'seed': args.seed,
                'seconds': round(seconds),
                'data': {
                    'file': f'sklearn/{FILE}',
                    'sha256': hashlib.sha256((files('sklearn') / FILE).read_bytes()).hexdigest(),
                    'license': 'CC BY 4.0',
                },
                **machine(find_device()),
            },
            'tokens': [module.to_dict() for module in compared],
        }
        export(
            model,
            args.out,
            metrics=[result],
            prose=(ROOT / 'card.md').read_text(),
            dtype='fp16',
            code=False,
            source='vt_resnet10.digits',
        )
        write_samples(test_images, test_labels)
        write_result(ROOT / 'result.json', result)


if __name__ == '__main__':
    main()
