"""Write a folder of weights that were pretrained on scenes, and its card.

    vt-hub pretrain --recipe scenes_cpu --model vt_resnet18 --output run
    python model_cards/scenes/publish.py vt_resnet18.scenes --run run --out FOLDER

A transfer evaluation changes only the card:

    python model_cards/scenes/transfer.py --arm vt=FOLDER ... --results runs.jsonl --report report.json
    python model_cards/scenes/publish.py vt_resnet18.scenes --report report.json --out FOLDER

The figures of the card are kept beside this script, in NAME.json and NAME.transfer.json.
"""

import argparse
from pathlib import Path

import timm
from report import markdown

from vt_hub.files import read_json
from vt_hub.network.checksums import file_sha256
from vt_hub.publishing import export
from vt_hub.publishing.model_folder import write_card
from vt_hub.reporting import write_result

ROOT = Path(__file__).parent
DATA = {  # of the transfer evaluation
    'digits': {'name': "scikit-learn's handwritten digits", 'type': 'sklearn.datasets.load_digits'},
    'characters': {'name': 'rendered characters', 'type': 'rendered_characters'},
    'shapes': {'name': 'vt-hub synthesize shapes', 'type': 'vt_hub.synthesis.shapes'},
    'fractals': {'name': 'unseen fractals', 'type': 'vt_hub.synthesis.fractals'},
    'contours': {'name': 'contours', 'type': 'vt_hub.synthesis.contours'},
}


def transfer_results(report: dict) -> list[dict]:
    """Accuracies of the pretrained weights after fine-tuning, as result files have them."""
    results = []
    for row in report['finetuned']:
        if row['arm'] == 'vt':
            images = 'image' if row['shots'] == 1 else 'images'
            split = f'{row["shots"]} {images} a class to fine-tune on, mean of {row["n"]} draws'
            dataset = {**DATA[row['task']], 'split': split, 'num_images': report['scored']}
            metrics = {'few_shot_top1': row['mean']}
            results.append({'task': 'image-classification', 'dataset': dataset, 'metrics': metrics})
    return results


def is_of(report: dict, weights: Path) -> bool:
    """Whether a report's arm `vt` began with these weights."""
    return ('vt', file_sha256(weights)[:16]) in {(arm['arm'], arm['init']) for arm in report['arms']}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='such as vt_resnet18.scenes')
    parser.add_argument('--run', type=Path, help='folder of the pretraining, to make a model folder of')
    parser.add_argument('--report', type=Path, help="transfer.py's")
    parser.add_argument('--out', type=Path, required=True, help='model folder')
    args = parser.parse_args()
    stored, evaluated = ROOT / f'{args.name}.json', ROOT / f'{args.name}.transfer.json'
    if args.run:
        model = timm.create_model(f'local-dir:{args.run / "model"}', pretrained=True)
        export(model, args.out, dtype='fp16', code=False)
        write_result(stored, read_json(args.run / 'result.json'))
    weights = args.out / 'model.safetensors'
    if args.report:
        report = read_json(args.report)
        if not is_of(report, weights):
            parser.exit(1, f'error: The arm vt of {args.report} is not {weights}.\n')
        write_result(evaluated, report)
    results = [read_json(stored)]
    if evaluated.exists() and is_of(report := read_json(evaluated), weights):  # and not of weights before these
        results[0]['tables'] = markdown(report)
        results += transfer_results(report)
    prose = (ROOT / 'card.md').read_text()
    write_card(args.out, results, prose, source=args.name, name=args.name)


if __name__ == '__main__':
    main()
