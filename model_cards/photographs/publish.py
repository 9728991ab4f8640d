"""Write the folder of weights that learned from unlabelled photographs, and its card.

    python model_cards/photographs/publish.py vt_resnet18.dist_in1k --run RUN --photographs DIR --out FOLDER

RUN is the folder of a finished `vt-hub distill`. The logits are divided by one temperature, which is folded into the
classifier. It is fitted on imagenette's val part. After a measurement, the same command without --run and --photographs
writes the card alone:

    python model_cards/photographs/measure.py --network "this model"=FOLDER ... --out model_cards/NAME/measured.json
    python model_cards/scenes/transfer.py --photographs --arm vt=FOLDER ... --report model_cards/NAME/transfer.json
    python model_cards/photographs/publish.py NAME --out FOLDER

The figures of a card are kept in model_cards/NAME, beside training.md and licences.md, the parts of the card that only
these weights have. If RUN began with the weights of earlier runs, their figures are in folders `run1`, `run2` there.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import SETS, fit_temperature, logits_of

from vt_hub.files import read_json
from vt_hub.inference.explain import explain
from vt_hub.inference.explanation_figure import save_explanation
from vt_hub.loading.source import load_model
from vt_hub.publishing import export
from vt_hub.publishing.model_folder import write_card
from vt_hub.reporting import write_result

HERE = Path(__file__).parent
CARDS = HERE.parent
WATTS = 20  # of two cores and their share of the memory: an assumption
GRAMS = 450  # of CO2 for a kilowatt-hour: about the world's average
SAMPLE = CARDS.parent / 'samples' / 'cat.png'
sys.path.append(str(CARDS / 'scenes'))
from report import markdown  # noqa: E402

DATA = {
    'nips': {'name': 'NIPS 2017 photographs', 'type': 'nips2017', 'split': 'test'},
    'imagenette': {'name': 'imagenette, all 1,000 answers', 'type': 'imagenette', 'split': 'val'},
    'tiny': {'name': 'Tiny-ImageNet, its 200 answers', 'type': 'tiny-imagenet', 'split': 'val'},
}


@torch.no_grad()
def fold_temperature(model: torch.nn.Module, photographs: Path) -> float:
    """Divide the logits of a model by the temperature that suits imagenette's val part best, and return it."""
    chosen_on = SETS['imagenette'](photographs)
    logits = logits_of(model, [path for path, _ in chosen_on], 224)
    temperature = fit_temperature(logits, torch.tensor([label for _, label in chosen_on]))
    for value in model.get_classifier().parameters():
        value /= temperature
    return temperature


def results(folder: Path) -> list[dict[str, Any]]:
    """Result files of the card: the photographs, and the training beside the first."""
    trained = read_json(folder / 'result.json')
    measured = read_json(folder / 'measured.json')['networks'] if (folder / 'measured.json').exists() else {}
    found = [
        {
            'task': 'image-classification',
            'dataset': {**dataset, 'num_images': own[key]['num_images']},
            'metrics': {name: own[key][name] for name in ('top1', 'top5')},
        }
        for own in list(measured.values())[:1]
        for key, dataset in DATA.items()
    ] or [trained]
    found[0] |= {key: trained[key] for key in ('training', 'tokens', 'temperature')}
    earlier = [read_json(path)['training'] for path in sorted(folder.glob('run*/result.json'))]
    found[0]['runs'] = [*earlier, trained['training']]
    found[0]['hours'] = sum(run['seconds'] for run in found[0]['runs']) / 3600
    found[0]['kilowatt_hours'] = found[0]['hours'] * WATTS / 1000
    found[0]['measured'] = measured
    if (folder / 'transfer.json').exists():
        found[0]['tables'] = markdown(read_json(folder / 'transfer.json'))
    return found


def emissions(result: dict[str, Any]) -> dict[str, Any]:
    """The Hub's metadata on what the training emitted."""
    return {
        'co2_eq_emissions': {
            'emissions': round(result['kilowatt_hours'] * GRAMS),
            'source': f'assumed: {WATTS} watts, and {GRAMS} grams of CO2 for a kilowatt-hour',
            'training_type': 'distillation',
            'hardware_used': result['training']['hardware'],
        }
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='such as vt_resnet18.dist_in1k')
    parser.add_argument('--run', type=Path, help='folder of the distillation, to make a model folder of')
    parser.add_argument('--photographs', type=Path, help="measure.py's folder, with --run")
    parser.add_argument('--out', type=Path, required=True, help='model folder')
    args = parser.parse_args()
    if bool(args.run) != bool(args.photographs):
        parser.error('--run and --photographs go together')
    folder = CARDS / args.name
    if args.run:
        model = load_model(args.run / 'model').float()
        temperature = fold_temperature(model, args.photographs)
        with tempfile.TemporaryDirectory() as tmp:
            picture = Path(tmp) / 'explanation.webp'
            save_explanation(explain(model, SAMPLE), picture, f'{SAMPLE.name}, {args.name}')
            export(model, args.out, dtype='fp16', code=False, picture=picture)
        write_result(folder / 'result.json', read_json(args.run / 'result.json') | {'temperature': temperature})
        shutil.copy(args.run / 'summary.csv', folder / 'summary.csv')
    prose = (HERE / 'card.md').read_text()
    for part in ('training.md', 'licences.md'):
        prose = prose.replace(f'<!-- {part} -->\n', (folder / part).read_text())
    found = results(folder)
    write_card(args.out, found, prose, metadata=emissions(found[0]), source=args.name, name=args.name)


if __name__ == '__main__':
    main()
