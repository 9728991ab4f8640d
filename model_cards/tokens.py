"""Measure how much the tokens of published weights differ, for their result files and cards.

    python model_cards/tokens.py

It uses the images that the weights were measured on, and changes nothing else in a result file.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

import vt_hub
from vt_hub.files import read_json
from vt_hub.inference.preprocessing import eval_transform
from vt_hub.publishing.model_folder import write_card
from vt_hub.reporting import write_result
from vt_hub.synthesis.fractals import fractal_bank
from vt_hub.synthesis.scenes import HELD_OUT_FIRST, compose_scenes
from vt_hub.synthesis.shapes import scene

ROOT = Path(__file__).parent
COUNT = 64
sys.path += [str(ROOT / 'vt_resnet10.digits'), str(ROOT / 'scenes')]
import publish  # noqa: E402
import report  # noqa: E402
import train  # noqa: E402


def images(name: str, model: torch.nn.Module, training: dict) -> torch.Tensor:
    """Images that the weights were not trained on, as the model takes them."""
    transform = eval_transform(model)
    if name.endswith('.digits'):
        _, (digits, _) = train.split(dev=False)
        return torch.stack([transform(train.to_pil(digit).convert('RGB')) for digit in digits[:COUNT]])
    if name.endswith('.shapes'):
        return torch.stack([transform(Image.fromarray(scene(1, i, split='val')[0])) for i in range(COUNT)])
    bank = fractal_bank(
        training['seed'], training['classes'], training['instances'], training['bank_size'], torch.device('cpu')
    )
    stage = training['stages'][-1]
    items = torch.arange(HELD_OUT_FIRST, HELD_OUT_FIRST + COUNT)
    scenes = compose_scenes(
        bank, training['seed'], items, stage['size'], stage['objects'], stage['scale'], stage['spread']
    )
    return scenes[0] * 2 - 1


def main():
    for name in vt_hub.list_pretrained():
        scenes = name.endswith('.scenes')
        stored = ROOT / 'scenes' / f'{name}.json' if scenes else ROOT / name / 'result.json'
        result, model = read_json(stored), vt_hub.load_model(name)
        found = vt_hub.token_diversity(model, images(name, model, result['training']))
        result['tokens'] = [module.to_dict() for module in found]
        write_result(stored, result)
        results, prose = [result], ROOT / ('scenes' if scenes else name) / 'card.md'
        if scenes:
            transfer = read_json(ROOT / 'scenes' / f'{name}.transfer.json')
            results[0]['tables'] = report.markdown(transfer)
            results += publish.transfer_results(transfer)
        write_card(vt_hub.pretrained_folder(name), results, prose.read_text(), source=name, name=name)
        print(name, *found, sep='\n  ')


if __name__ == '__main__':
    main()
