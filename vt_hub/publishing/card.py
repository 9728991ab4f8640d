"""Model cards: text with numbers from result files, and metadata for the Hub."""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from ..inference.diversity import TokenDiversity, warning_of
from ..loading.source import Source
from ..network.weights import hub_id

__all__ = ['build_card', 'lineage', 'retarget']

ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
METRICS = {
    'top1': ('accuracy', 'top-1 accuracy (%)'),
    'top5': ('accuracy', 'top-5 accuracy (%)'),
    'miou': ('mean_iou', 'mean IoU (%)'),
    'pixel_accuracy': ('accuracy', 'pixel accuracy (%)'),
    'few_shot_top1': ('accuracy', 'top-1 accuracy after few-shot fine-tuning (%)'),
    'hit_rate': ('accuracy', 'scenes that show the likeliest class (%)'),
}

BODY = """\
# {{ name }}

This model {{ summary }}.
{% if picture %}
![What it says of a sample, and where its tokens look]({{ picture }})
{% endif %}
{{ prose }}
{% if origin %}
{{ origin }}
{% endif %}
## Results
{% if results %}
| data | split | images | {{ metrics.values() | map('last') | join(' | ') }} |
|---|---|---:|{{ '---:|' * metrics | length }}
{% for result in results -%}
| {{ result.dataset.name }} | {{ result.dataset.split }} | {{ result.dataset.num_images }} |
{%- for key in metrics %} {{ result.metrics.get(key, '') }} |{% endfor %}
{% endfor %}
{%- else %}
Not measured.
{% endif %}
{%- if tokens %}
## Tokens

How much the visual tokens of each module differ. At a cosine of 1 they look at one place, at a spread of 0 they are
equal.

| module | cosine of their maps | spread | entropy of the maps |
|---:|---:|---:|---:|
{% for module in tokens -%}
| {{ loop.index }} | {{ module.cosine }} | {{ module.spread }} | {{ module.entropy }} |
{% endfor %}
{%- if warning %}
Limit: {{ warning }}. The network uses them as one average.
{% endif %}
{%- endif %}
## Use it

In transformers. Without vt_hub, `trust_remote_code` runs the code in this repository:

```python
from transformers import pipeline

{% set verb = 'segment' if task == 'image-segmentation' else 'classify' -%}
{{ verb }} = pipeline('{{ task }}', model='{{ repo }}', trust_remote_code=True)
```

In timm, with vt_hub installed:

```python
import timm
import vt_hub

model = timm.create_model('{{ source }}', pretrained=True).eval()
```

In torch.hub, from a folder on disk, which `vt-hub pull` downloads:

```python
import torch

model = torch.hub.load('path/to/folder', 'model', source='local').eval()
```

## Paper

The architecture is that of *Visual Transformers: Token-based Image Representation and Processing for Computer Vision*
([arXiv:2006.03677](https://arxiv.org/abs/2006.03677)); the weights are not the authors'.

```bibtex
@article{wu2020visual,
  title={Visual Transformers: Token-based Image Representation and Processing for Computer Vision},
  author={Wu, Bichen and Xu, Chenfeng and Dai, Xiaoliang and Wan, Alvin and Zhang, Peizhao and Yan, Zhicheng and
          Tomizuka, Masayoshi and Gonzalez, Joseph and Keutzer, Kurt and Vajda, Peter},
  journal={arXiv preprint arXiv:2006.03677},
  year={2020}
}
```
"""


def eval_results(results: list[dict[str, Any]]) -> list[EvalResult]:
    """The metrics of result files, as the Hub's model index has them."""
    return [
        EvalResult(
            task_type=result['task'],
            dataset_type=result['dataset']['type'],
            dataset_name=result['dataset']['name'],
            dataset_split=result['dataset']['split'],
            metric_type=metric_type,
            metric_name=metric_name,
            metric_value=result['metrics'][key],
        )
        for result in results
        for key, (metric_type, metric_name) in METRICS.items()
        if key in result['metrics']
    ]


def build_card(
    name: str,
    source: str,
    repo: str,
    prose: str,
    origin: str,
    task: str,
    summary: str,
    picture: str,
    results: list[dict[str, Any]],
    license: str = 'apache-2.0',
    metadata: dict[str, Any] | None = None,
    **values: Any,
) -> ModelCard:
    """The card of a model folder. `values` are further values for the template.

    Args:
        name: Title, and the model's name in the Hub's model index.
        source: Name for `timm.create_model`.
        repo: Name for `pipeline`: a Hub repository or a folder.
        prose: Markdown before the results, a Jinja template that can use `results`.
        origin: A sentence after the prose that says which weights these are.
        task: The Hub's name for the task, also used by `pipeline`.
        summary: What the model answers; see `knowledge`.
        picture: Name of a picture in the folder, or empty.
        results: Contents of result files; each has `task`, `dataset` (`name`, `type`, `split`, `num_images`) and
            `metrics`, and may have `tokens`.
        license: Licence of the weights, with the Hub's abbreviation.
        metadata: More of the Hub's metadata, such as `datasets`, `base_model` and `co2_eq_emissions`.

    Raises:
        ValueError: The prose is not a valid template, or uses values that are missing.
    """
    try:
        text = ENVIRONMENT.from_string(prose).render(results=results, **values)
    except TemplateError as error:
        raise ValueError(f'The template of the card cannot be filled in: {error}.') from error
    tokens = tokens_of(results)
    body = ENVIRONMENT.from_string(BODY).render(
        name=name,
        source=source,
        repo=repo,
        summary=summary,
        picture=picture,
        prose=text.strip(),
        origin=origin,
        task=task,
        results=results,
        metrics={key: METRICS[key] for key in METRICS if any(key in result['metrics'] for result in results)},
        tokens=tokens,
        warning=warning_of([TokenDiversity(**module) for module in tokens]),
    )
    data = hub_metadata(name, task, results, license, metadata or {})
    return ModelCard(f'---\n{data.to_yaml()}\n---\n\n{body}')


def hub_metadata(
    name: str, task: str, results: list[dict[str, Any]], license: str, metadata: dict[str, Any]
) -> ModelCardData:
    """What the Hub reads; see `build_card`. With transformers as library, the Hub prints a snippet without vt_hub."""
    return ModelCardData(
        model_name=name,
        license=license,
        library_name='transformers',
        pipeline_tag=task,
        tags=[task, 'custom_code', 'timm', 'vt_hub', 'visual-transformers'],
        eval_results=eval_results(results) or None,
        **metadata,
    )


def tokens_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Token diversity of each module, from the first result that has it."""
    return next((result['tokens'] for result in results if result.get('tokens')), [])


def lineage(start: Source) -> tuple[str, dict[str, Any]]:
    """What a fine-tuned model started from: a sentence for its card, and the Hub's metadata."""
    repo = start.repo or (start.published and hub_id(start.published))
    metadata = {'base_model': repo, 'base_model_relation': 'finetune'} if repo else {}
    return f'The training started from the weights of {start.published or start.text}.', metadata


def retarget(card: str, repo: str, source: str | None = None) -> str:
    """Change what the snippets of a card load.

    Args:
        card: The text.
        repo: Name for `pipeline`.
        source: Name for `timm.create_model`; default: that repository on the Hub.
    """
    prose, heading, use = card.rpartition('\n## Use it\n')
    use = re.sub(r"(timm\.create_model\()'[^']*'", rf"\g<1>'{source or f'hf-hub:{repo}'}'", use)
    return prose + heading + re.sub(r"(pipeline\('[a-z-]+', model=)'[^']*'", rf"\g<1>'{repo}'", use)
