"""What the comparisons of segmentation networks share: a run, the figures of all runs, and the folder of one."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import vt_hub
from vt_hub.files import read_json
from vt_hub.network.image_processing_vt import VTFPNImageProcessor
from vt_hub.network.modeling_vt import VTFPNForSemanticSegmentation
from vt_hub.publishing import export
from vt_hub.publishing.model_folder import convert_dtype
from vt_hub.reporting import find_device, machine, write_result
from vt_hub.training.segmentation.data import SegmentationData
from vt_hub.training.segmentation.recipe import SegmentationRecipe
from vt_hub.training.segmentation.run import train_segmentation

NUM_COMPARED = 64  # images on which the tokens are compared

Evaluate = Callable[[VTFPNForSemanticSegmentation], dict[str, Any]]  # on the part that nothing was chosen on


def train_and_measure(
    recipe: SegmentationRecipe,
    train: SegmentationData,
    val: SegmentationData,
    folder: Path,
    evaluate: Evaluate,
    **options: Any,
) -> None:
    """Train one network, and write `held_out.json` beside it. `options` are those of `train_segmentation`."""
    started = time.time()
    train_segmentation(recipe, train, val, folder, **options)
    result = evaluate(VTFPNForSemanticSegmentation.from_pretrained(folder / 'model'))
    settings = read_json(folder / 'recipe.json') | {'num_images': len(train), 'seconds': round(time.time() - started)}
    write_result(folder / 'held_out.json', {**result, 'training': settings | machine(find_device())})
    print(folder, result['metrics'])


def publish_run(run: Path, card: Path, evaluate: Evaluate, held_out: SegmentationData, out: Path) -> None:
    """Write the model folder of a run, and its `result.json` into the folder of the card, which has the name.

    Args:
        run: Folder of the run.
        card: Folder of the card.
        evaluate: It measures the network on `held_out`.
        held_out: Data that nothing was chosen on; the tokens are compared on its first images.
        out: The model folder.
    """
    model = VTFPNForSemanticSegmentation.from_pretrained(run / 'model')
    model.load_state_dict(convert_dtype(model.state_dict(), 'fp16'))  # what is measured is what is shipped
    processor = VTFPNImageProcessor(model.config.pretrained_cfg)
    images = torch.cat([processor(image)['pixel_values'] for image, _ in islice(held_out, NUM_COMPARED)])
    result = {
        **evaluate(model),
        'training': read_json(run / 'held_out.json')['training'],
        'tokens': [module.to_dict() for module in vt_hub.token_diversity(model, images)],
    }
    write_result(card / 'result.json', result)
    prose = (card / 'card.md').read_text()
    export(model, out, metrics=[result], prose=prose, dtype='fp16', code=False, source=card.name)


def mean_iou(result: dict[str, Any], classes: Sequence[str]) -> float:
    return round(statistics.mean(result['per_class_iou'][name] for name in classes), 2)


def figures(folders: Sequence[Path], kinds: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Those of all finished runs of a network, on the part that nothing was chosen on.

    Args:
        folders: Folders of the runs, with `held_out.json` and `result.json`.
        kinds: Groups of classes whose mean IoU is also given.
    """
    folders = [folder for folder in folders if (folder / 'held_out.json').exists()]
    results = [read_json(folder / 'held_out.json') for folder in folders]
    miou = [result['metrics']['miou'] for result in results]
    return {
        'miou': miou,
        'mean': round(statistics.mean(miou), 2),
        'stdev': round(statistics.stdev(miou), 2) if len(miou) > 1 else None,
        **{name: [mean_iou(result, classes) for result in results] for name, classes in kinds.items()},
        'pixel_accuracy': [result['metrics']['pixel_accuracy'] for result in results],
        'val_miou': [read_json(folder / 'result.json')['metrics']['miou'] for folder in folders],
    }
