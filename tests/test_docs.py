"""What the documents say is what the code does: snippets run as printed, and figures are the computed ones."""

import csv
import json
import re
import shlex
import statistics
import subprocess
import sys

import pytest
from conftest import ROOT
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from helpers.networks import architectures
from safetensors.torch import load_file

import vt_hub
from vt_hub.cli import main as cli
from vt_hub.files import read_json
from vt_hub.loading.published import EMBEDDED, list_pretrained
from vt_hub.loading.source import list_models
from vt_hub.network.vt_fpn import is_segmenter
from vt_hub.paper import tables
from vt_hub.publishing import verification as checks

sys.path.append(str(ROOT / 'benchmarks'))
import results

SNIPPET = re.compile(r'^```(python|sh)\n(.*?)^```', re.MULTILINE | re.DOTALL)
DOCS = [path for path in sorted((ROOT / 'docs').glob('*.md')) if SNIPPET.search(path.read_text())]


README = SNIPPET.findall((ROOT / 'README.md').read_text())


def check_printed(code, out):
    for printed in re.findall(r'print\(.*\)  # (.*)', code):
        assert printed in out


def run_commands(code, monkeypatch):
    for line in code.splitlines():
        if line.startswith('vt-hub '):
            monkeypatch.setattr(sys, 'argv', shlex.split(line))
            with pytest.raises(SystemExit) as exit_:
                cli.main()
            assert not exit_.value.code, line


@pytest.mark.parametrize('number', [i for i, (language, _) in enumerate(README) if language == 'python'])
def test_readme_python_runs_as_printed(number):
    """Each snippet in a process of its own, as a reader would."""
    code = README[number][1]
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    check_printed(code, result.stdout)


def test_readme_commands_run_as_printed(monkeypatch):
    monkeypatch.chdir(ROOT)
    for language, code in README:
        if language == 'sh':
            run_commands(code, monkeypatch)


@pytest.mark.parametrize('page', DOCS, ids=lambda page: page.name)
def test_pages_run_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    """In an empty folder that holds what a checkout offers; later snippets use what earlier ones made."""
    monkeypatch.chdir(tmp_path)
    # the loaders in processes of their own take half a minute; tests/publishing/test_publishing.py runs them
    logits = lambda code, folder: load_file(folder / 'fixture.safetensors')['logits']  # noqa: E731
    monkeypatch.setattr(checks, '_subprocess', logits)
    for name in ('samples', 'hubconf.py', 'vt_hub'):
        (tmp_path / name).symlink_to(ROOT / name)
    namespace = {'__name__': '__main__'}
    for language, code in SNIPPET.findall(page.read_text()):
        if language == 'python':
            exec(code, namespace)
            check_printed(code, capsys.readouterr().out)
        else:
            run_commands(code, monkeypatch)


def test_paper_fidelity_is_what_the_command_prints():
    assert (ROOT / 'docs' / 'paper_fidelity.md').read_text() == tables.markdown()


def measured(tag):
    """The accuracy of weights, as their result files have it."""
    folder = ROOT / 'model_cards' / tag
    if (folder / 'measured.json').exists():
        return f'{read_json(folder / "measured.json")["networks"]["this model"]["nips"]["top1"]} %'
    if tag.endswith('.scenes'):
        return 'a start for fine-tuning'
    [(metric, value), *_] = read_json(folder / 'result.json')['metrics'].items()
    return f'{value} % {"of digits" if metric == "top1" else "mIoU on generated scenes"}'


def speeds():
    """Images per second of one core, by architecture: batches of 16 for classifiers, single images for VT-FPNs."""
    found = {}
    for name, batch_size in (('vt_resnet_cpu_fused', 16), ('vt_fpn_cpu', 1)):
        for row in read_json(ROOT / 'docs' / 'benchmarks' / f'{name}.json')['rows']:
            if row['batch_size'] == batch_size:
                found[row['model']] = f'{row["images_per_second"]["vt"]:.1f}'
    return found


def model_table():
    lines = ['| model | weights | measured | params (M) | MACs (G) | file (MB) | images/s |']
    lines.append('|---|---|---|---:|---:|---:|---:|')
    speed = speeds()
    for name in list_models():
        if not name.startswith('test_'):
            size = 512 if is_segmenter(name) else 224
            params, macs = tables.cost(name, size=(size, size))
            tags = [tag for tag in list_pretrained() if tag.split('.')[0] == name]
            sizes = [(EMBEDDED / tag / 'model.safetensors').stat().st_size / 1e6 for tag in tags]
            cells = [f'`{name}`', ', '.join(f'`{tag.split(".")[1]}`' for tag in tags), ', '.join(map(measured, tags))]
            cells += [f'{params:.2f}', f'{macs / 1000:.2f}', ', '.join(f'{size:.1f}' for size in sizes)]
            lines.append(f'| {" | ".join([*cells, speed.get(name, "")])} |')
    return '\n'.join(lines)


def check_block(page, name, text):
    """A page has the text between its comments of that name."""
    assert f'<!-- {name} -->\n\n{text}\n\n<!-- /{name} -->' in (ROOT / page).read_text()


def test_readme_lists_the_models():
    check_block('README.md', 'models', model_table())


ARMS = {
    'fpn': 'panoptic FPN',
    'vt': 'VT-FPN',
    'vt_figure4': 'VT-FPN, `top_down=False`',
    'vt_started': 'VT-FPN, after scenes of fractals',
}


def comparison_table():
    """mIoU of the runs in comparison.json, and cost of the models that ran."""
    folder = ROOT / 'model_cards' / 'vt_fpn_resnet10t.shapes'
    found = read_json(folder / 'comparison.json') | read_json(folder / 'started.json')
    lines = ['| decoder | mIoU (%), seed 0, 1, 2 | mean, standard deviation | of shapes | of textures | MACs (G) |']
    lines.append('|---|---|---|---:|---:|---:|')
    for arm, name in ARMS.items():
        macs = tables.cost('vt_fpn_resnet10t', size=(128, 128), num_classes=17, decoder=arm.partition('_')[0])[1] / 1000
        mean, stdev = found[arm]['mean'], found[arm]['stdev']
        spread = f'{mean} ± {stdev}' if stdev else f'{mean} (one seed)'
        kinds = ' | '.join(f'{statistics.mean(found[arm][kind]):.2f}' for kind in ('shapes', 'textures'))
        lines.append(f'| {name} | {", ".join(map(str, found[arm]["miou"]))} | {spread} | {kinds} | {macs:.3f} |')
    return '\n'.join(lines)


def speed_table():
    """Time and memory as `vt-hub benchmark` wrote them."""
    lines = ['| backbone | FPN (s) | VT-FPN (s) | ratio, quartiles | ratio of MACs | FPN (MB) | VT-FPN (MB) |']
    lines.append('|---|---:|---:|---|---:|---:|---:|')
    for row in read_json(ROOT / 'docs' / 'benchmarks' / 'vt_fpn_cpu.json')['rows']:
        speed, peak, ratio = row['images_per_second'], row['peak_mb'], row['ratios']['fpn']
        low, high = ratio['quartiles']
        size = (row['size'], row['size'])
        fpn, vt = (tables.cost(row['model'], size=size, decoder=decoder)[1] for decoder in ('fpn', 'vt'))
        ratios = f'{ratio["median"]:.2f} ({low:.2f} to {high:.2f}) | {fpn / vt:.2f}'
        times = f'{1 / speed["fpn"]:.3f} | {1 / speed["vt"]:.3f}'
        backbone = row['model'].removeprefix('vt_fpn_')
        lines.append(f'| {backbone} | {times} | {ratios} | {peak["fpn"]:.0f} | {peak["vt"]:.0f} |')
    return '\n'.join(lines)


def sizes_table():
    """How cost grows with the image, as `vt-hub benchmark` wrote it."""
    lines = ['| pixels | FPN (s) | VT-FPN (s) | ratio, quartiles | FPN (MB) | VT-FPN (MB) |']
    lines.append('|---:|---:|---:|---|---:|---:|')
    for row in read_json(ROOT / 'docs' / 'benchmarks' / 'vt_fpn_sizes_cpu.json')['rows']:
        speed, peak, ratio = row['images_per_second'], row['peak_mb'], row['ratios']['fpn']
        low, high = ratio['quartiles']
        times = f'{1 / speed["fpn"]:.3f} | {1 / speed["vt"]:.3f} | {ratio["median"]:.2f} ({low:.2f} to {high:.2f})'
        lines.append(f'| {row["size"]} x {row["size"]} | {times} | {peak["fpn"]:.0f} | {peak["vt"]:.0f} |')
    return '\n'.join(lines)


@pytest.mark.parametrize(
    ('name', 'table'), [('comparison', comparison_table), ('speed', speed_table), ('sizes', sizes_table)]
)
def test_segmentation_page_has_the_measured_figures(name, table):
    check_block('docs/segmentation.md', name, table())


def training_table():
    """Accuracies of VT-ResNet-18 and ResNet-18 as benchmarks/vt_resnet_training.py wrote them."""
    heads = 'data', 'model', 'MACs (M)', 'validation (%)', 'mean, deviation', 'training (%)', 'mean, deviation'
    lines = [f'| {" | ".join(heads)} |']
    lines.append('|---|---|---:|---|---|---|---|')
    for row in read_json(ROOT / 'docs' / 'benchmarks' / 'vt_resnet18_training.json')['rows']:
        for model in ('resnet18', 'vt_resnet18'):
            found = row[model]
            cells = [
                f'{", ".join(map(str, found[split]["top1"]))} | {found[split]["mean"]} ± {found[split]["stdev"]}'
                for split in ('val', 'train')
            ]
            lines.append(f'| {row["name"]} | {model} | {found["macs_m"]} | {" | ".join(cells)} |')
        gains = (row['difference'][split] for split in ('val', 'train'))
        cells = [f'| {gain["mean"]:+} ({gain["interval"][0]} to {gain["interval"][1]})' for gain in gains]
        lines.append(f'| {row["name"]} | difference, 95 % interval | | {" | ".join(cells)} |')
    return '\n'.join(lines)


def test_training_page_has_the_measured_figures():
    check_block('docs/training.md', 'comparison', training_table())


TRANSFER = {  # tasks of the table of results
    'characters': 'rendered letters and digits',
    'digits': 'handwritten digits',
    'shapes': 'a shape or texture on clutter',
}
QUANTIZED = {'fp32': 'fp32', 'int8': 'int8, `--int8`', 'dynamic': 'int8, dynamic'}


def int8_table():
    """The held-out digits and a time, as benchmarks/int8_digits.py wrote them."""
    found = read_json(ROOT / 'docs' / 'benchmarks' / 'int8_digits.json')
    size = f'{found["timed_size"]} x {found["timed_size"]}'
    lines = [f'| file | top-1 (%) | of {found["num_images"]}, other than fp32 | MB | processor ms an image, {size} |']
    lines.append('|---|---:|---:|---:|---:|')
    for row in found['rows']:
        cells = QUANTIZED[row['file']], row['top1'], row['other_classes'], row['mb'], row['milliseconds']
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


def parity_table():
    """ONNX against torch, as benchmarks/onnx_parity.py wrote it; all networks are there and near enough."""
    rows = read_json(ROOT / 'docs' / 'benchmarks' / 'onnx_parity.json')['rows']
    networks = [(name, kwargs.get('decoder')) for name, kwargs in architectures()]
    networks += [(name, None) for name in list_pretrained()]
    assert [(row['model'], row.get('decoder')) for row in rows] == networks
    assert all(row['difference'] < 1e-4 for row in rows)
    lines = ['| model | difference | largest logit | MB |', '|---|---:|---:|---:|']
    for row in rows:
        if not row['model'].startswith('test_'):
            name = f'`{row["model"]}`' + (", `decoder='fpn'`" if row.get('decoder') == 'fpn' else '')
            lines.append(f'| {name} | {row["difference"]:.1e} | {row["largest_logit"]} | {row["mb"]} |')
    return '\n'.join(lines)


@pytest.mark.parametrize(('name', 'table'), [('int8', int8_table), ('parity', parity_table)])
def test_export_page_has_the_measured_figures(name, table):
    check_block('docs/export.md', name, table())


def transfer_table():
    """What the scenes' weights are worth, from the reports of model_cards/scenes/transfer.py."""
    heads = 'five images a class', 'these weights', 'from scratch', 'gain, 95 % interval'
    heads += 'ResNet, pretrained alike', 'ResNet, from scratch', 'raw pixels'
    lines = [f'| {" | ".join(heads)} |', '|---|---:|---:|---|---:|---:|---:|']
    for path in sorted((ROOT / 'model_cards' / 'scenes').glob('*.transfer.json')):
        report = read_json(path)
        means = {(row['task'], row['shots'], row['arm']): row['mean'] for row in report['finetuned']}
        for row in report['frozen']:  # the best of three readers of pixels
            key = row['task'], row['shots'], row['arm']
            if row['arm'] == 'pixels':
                means[key] = max(means.get(key, 0), row['mean'])
        for row in report['differences']:
            task, shots = row['task'], row['shots']
            if row['pair'] == 'vt - vt_scratch' and shots == 5 and task in TRANSFER:
                assert row['n'] == 10
                arms = 'vt', 'vt_scratch', 'resnet', 'resnet_scratch', 'pixels'
                cells = [f'{means[task, shots, arm]:.1f}' if (task, shots, arm) in means else '' for arm in arms]
                cells.insert(2, f'{row["mean"]:+.1f} ({row["low"]:+.1f} to {row["high"]:+.1f})')
                model = path.name.split('.')[0]
                lines.append(f'| `{model}`, {TRANSFER[task]} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def photographs_transfer_table():
    """How published weights fine-tune on photographs, beside weights of scenes, none, and their teacher."""
    heads = 'weights', 'task', 'images a class', 'these weights', 'scenes', 'from scratch', 'their teacher'
    heads += 'gain over scenes, 95 % interval', 'over the teacher'
    lines = [f'| {" | ".join(heads)} |', '|---|---|---:|---:|---:|---:|---:|---|---|']
    for path in sorted((ROOT / 'model_cards').glob('*/transfer.json')):
        report = read_json(path)
        means = {(row['task'], row['shots'], row['arm']): row['mean'] for row in report['finetuned']}
        gains = {(row['task'], row['shots'], row['pair']): row for row in report['differences']}
        for task, shots in dict.fromkeys(key[:2] for key in means):
            cells = [f'{means[task, shots, arm]:.1f}' for arm in ('vt', 'scenes', 'vt_scratch', 'reference')]
            for arm in ('scenes', 'reference'):
                row = gains[task, shots, f'vt - {arm}']
                assert row['n'] == 10
                cells.append(f'{row["mean"]:+.1f} ({row["low"]:+.1f} to {row["high"]:+.1f})')
            lines.append(f'| `{path.parent.name}` | {task} | {shots} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def test_results_page_has_the_measured_gains():
    check_block('docs/results.md', 'transfer', transfer_table())
    check_block('docs/results.md', 'photographs_transfer', photographs_transfer_table())


@pytest.mark.parametrize('suite', results.SUITES)
def test_results_are_those_of_the_result_files(suite):
    rows = results.SUITES[suite]()
    with open(results.OUT / f'{suite}.csv', newline='') as file:
        written = list(csv.DictReader(file))
    expected = [{str(key): '' if value is None else str(value) for key, value in row.items()} for row in rows]
    assert written == expected
    if suite != 'finetuned':  # hundreds of rows; the page has a table of its own
        check_block('docs/results.md', suite, results.markdown(rows))


def spans(ratios, *names):
    """The first of some ratios that was measured, with its quartiles."""
    found = next((ratios[name] for name in names if name in ratios), None)
    return '' if found is None else '{:.3f} ({:.3f} to {:.3f})'.format(found['median'], *found['quartiles'])


def networks_table(rows):
    """Speed and memory of classifiers as `vt-hub benchmark` wrote them."""
    lines = ['| model | batch | images/s | of the limit, quartiles | of the trunk, quartiles |']
    lines[0] += ' over ResNet or backbone, quartiles | MB | ResNet or backbone (MB) |'
    lines.append('|---|---:|---:|---|---|---|---:|---:|')
    for row in rows:
        ratios, peak = row['ratios'], row['peak_mb']
        cells = [row['model'], row['batch_size'], f'{row["images_per_second"]["vt"]:.1f}']
        cells += [spans(ratios, 'limit'), spans(ratios, 'trunk'), spans(ratios, 'resnet', 'backbone')]
        whole = peak.get('resnet', peak.get('backbone'))
        cells += [f'{peak["vt"]:.0f}', '' if whole is None else f'{whole:.0f}']
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


@pytest.mark.parametrize('path', sorted((ROOT / 'docs' / 'benchmarks').glob('vt_resnet_*.json')), ids=lambda p: p.stem)
def test_benchmarks_page_has_the_measured_figures(path):
    found = read_json(path)
    text = f'`{found["command"]}`: {found["hardware"]}, torch {found["torch"]}.'
    check_block('docs/benchmarks.md', path.stem, f'{text}\n\n{networks_table(found["rows"])}')


TOKEN_TASKS = {  # of benchmarks/tokens.py, with their steps: what it is, and the figure
    ('mosaic', 160): ('two digits on a mosaic', 'hits'),
    ('digits', 440): ('handwritten digits, distorted', 'augmented'),
    ('cifar10', 300): ('CIFAR-10', 'top1'),
    ('trunk', 400): ('photographs, frozen trunk', 'top1'),
}
LONGER_TASKS = {
    ('digits', 2200): ('handwritten digits, distorted', 'augmented'),
    ('shapes', 1500): ('segmentation of shapes, VT-FPN, mIoU', 'miou'),
    ('trunk', 1200): ('photographs, frozen trunk', 'top1'),
}
TOKEN_VARIANTS = {
    'paper': "the paper's arithmetic",
    'distinct': '`distinct_tokens`',
    'unit': "the paper's, logits of unit variance",
    'sigma': 'sigma-reparametrised',
    'bounded': '`distinct_tokens` with one learned sharpness',
    'ungated': '`distinct_tokens` without gates',
}


def token_runs():
    """The runs of benchmarks/tokens.py, by task and steps, variant and number of tokens, then by seed."""
    found = {}
    for line in (ROOT / 'docs' / 'benchmarks' / 'tokens.jsonl').read_text().splitlines():
        run = json.loads(line)
        found.setdefault(((run['task'], run['steps']), run['variant'], run['num_tokens']), {})[run['seed']] = run
    return found


def spread_of(values, digits=1):
    deviation = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.{digits}f}{deviation} ({len(values)})'


def paired(runs, others, key):
    """Differences between runs of the same seeds."""
    return [run[key] - others[seed][key] for seed, run in sorted(runs.items()) if seed in others]


def tokens_table(tasks):
    """Arithmetics of tokens side by side: accuracy over seeds, the paired difference, and how much tokens differ."""
    lines = ["| task | arithmetic | accuracy (%), deviation (seeds) | less the paper's, paired | cosine | spread |"]
    lines.append('|---|---|---|---|---|---|')
    runs = token_runs()
    for task, (title, key) in tasks.items():
        for variant, name in TOKEN_VARIANTS.items():
            seeds, paper = runs.get((task, variant, 16), {}), runs[task, 'paper', 16]
            if not seeds:
                continue
            modules = zip(*(run['diversity'] for run in seeds.values()), strict=True)
            cosine, spread = (
                ', '.join(f'{statistics.mean(module[figure] for module in column):.2f}' for column in columns)
                for figure, columns in zip(('cosine', 'spread'), [list(modules)] * 2, strict=True)
            )
            gain = '' if variant == 'paper' else interval(paired(seeds, paper, key))
            accuracy = spread_of([run[key] for run in seeds.values()])
            lines.append(f'| {title} | {name} | {accuracy} | {gain} | {cosine} | {spread} |')
    return '\n'.join(lines)


def number_table():
    """What more tokens are worth on photographs: top-1, and the part of the ResNet's features not explained."""
    lines = ["| tokens | the paper's: top-1 (%) | features not explained (%) | `distinct_tokens`: top-1 (%) |"]
    lines[0] += ' features not explained (%) | features, less one token, paired |'
    lines.append('|---:|---|---|---|---|---|')
    runs, task = token_runs(), ('trunk', 400)
    for count in (1, 4, 8, 16, 32):
        cells = []
        for variant in ('paper', 'distinct'):
            seeds = runs[task, variant, count].values()
            cells += [spread_of([run['top1'] for run in seeds]), spread_of([100 * run['nips_open'] for run in seeds])]
        gain = paired(runs[task, 'distinct', count], runs[task, 'distinct', 1], 'nips_open')
        cells.append(interval([100 * value for value in gain]) if count > 1 else '')
        lines.append(f'| {count} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def interval(values):
    """Mean and 95 % interval of paired differences, by Student's t."""
    if len(values) < 2:
        return f'{values[0]:+.1f}'
    quantile = {2: 12.71, 3: 4.30}[len(values)]
    mean, half = statistics.mean(values), quantile * statistics.stdev(values) / len(values) ** 0.5
    return f'{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})'


def test_architecture_page_has_the_measured_figures():
    check_block('docs/architecture.md', 'tokens', tokens_table(TOKEN_TASKS))
    check_block('docs/architecture.md', 'longer', tokens_table(LONGER_TASKS))
    check_block('docs/architecture.md', 'number', number_table())


def loading_table():
    """Time and memory of `pretrained=True`, as benchmarks/load_time.py wrote them."""
    found = read_json(ROOT / 'docs' / 'benchmarks' / 'load_cpu.json')
    seconds = found['seconds']
    lines = ['| | ms | memory at the peak, of the model | kept, of the model |', '|---|---:|---:|---:|']
    lines.append(f'| the file read and copied once | {1000 * seconds["read"]:.0f} | | |')
    memory = f'{found["peak_memory_over_model"]} | {found["kept_memory_over_model"]}'
    lines.append(f'| `{found["model"]}`, `pretrained=True` | {1000 * seconds["pretrained"]:.0f} | {memory} |')
    lines.append(f'| `{found["model"]}`, random weights | {1000 * seconds["random"]:.0f} | | |')
    return '\n'.join(lines)


def test_benchmarks_page_has_the_figures_of_loading():
    check_block('docs/benchmarks.md', 'loading', loading_table())


def startup_table():
    """Seconds until a command answers, as benchmarks/startup.py measured them."""
    seconds = read_json(ROOT / 'docs' / 'benchmarks' / 'startup.json')['seconds']
    return '\n'.join(['| | seconds |', '|---|---:|', *(f'| {name} | {value:.2f} |' for name, value in seconds.items())])


def test_benchmarks_page_has_the_figures_of_starting():
    check_block('docs/benchmarks.md', 'startup', startup_table())


def predict_table():
    """`vt-hub predict --output` at scale, as benchmarks/predict_scale.py wrote it."""
    found = read_json(ROOT / 'docs' / 'benchmarks' / 'predict_cpu.json')
    assert found['restart_equal']
    lines = ['| images | images/s | cores busy (%) | main process (MB) | largest worker (MB) |']
    lines.append('|---:|---:|---:|---:|---:|')
    for row in found['rows']:
        keys = 'images', 'images_per_second', 'busy_percent', 'main_peak_mb', 'worker_peak_mb'
        lines.append(f'| {" | ".join(str(row[key]) for key in keys)} |')
    return '\n'.join(lines)


def beside_table():
    """`vt-hub predict --output` beside a bare loop, as benchmarks/predict_beside.py wrote it."""
    found = read_json(ROOT / 'docs' / 'benchmarks' / 'predict_beside.json')
    lines = ['| images | workers | what | images/s | of the bare loop | largest process (MB) |']
    lines.append('|---:|---:|---|---:|---|---:|')
    for row in found['rows']:
        ratios = ', '.join(f'{ratio:.2f}' for ratio in row['of_the_bare_loop'])
        cells = found['images'], row['workers'], row['what'], row['images_per_second'], ratios, row['peak_mb']
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


def precision_table():
    """What cheaper numbers cost and save, as benchmarks/precision.py wrote it."""
    lines = ['| model | numbers | top-1 (%) | of 1,000, other than fp32 | largest difference of a probability |']
    lines[0] += ' images/s |'
    lines.append('|---|---|---:|---:|---:|---:|')
    for row in read_json(ROOT / 'docs' / 'benchmarks' / 'precision.json')['rows']:
        keys = 'form', 'top1', 'other_answers', 'largest_difference_of_a_probability', 'images_per_second'
        lines.append(f'| `{row["model"]}` | {" | ".join(str(row[key]) for key in keys)} |')
    return '\n'.join(lines)


def product_table():
    """The time of one product of tokens with a matrix, in the same file."""
    found = read_json(ROOT / 'docs' / 'benchmarks' / 'precision.json')
    lines = ['| numbers | microseconds |', '|---|---:|']
    lines += [f'| {name} | {value} |' for name, value in found['microseconds_of_a_product'].items()]
    return '\n'.join(lines)


def test_predict_page_has_the_measured_figures():
    check_block('docs/predict.md', 'scale', predict_table())
    check_block('docs/predict.md', 'beside', beside_table())
    check_block('docs/predict.md', 'precision', precision_table())
    check_block('docs/benchmarks.md', 'product', product_table())


def runtimes_table():
    """One image in several runtimes, as benchmarks/runtimes.py wrote them."""
    lines = ['| runtime | ms an image | difference | MB |', '|---|---:|---:|---:|']
    for row in read_json(ROOT / 'docs' / 'benchmarks' / 'runtimes.json')['rows']:
        size = '' if row['mb'] is None else row['mb']
        lines.append(f'| {row["runtime"]} | {row["ms"]} | {row["difference"]:.1e} | {size} |')
    return '\n'.join(lines)


def test_export_page_has_the_measured_runtimes():
    check_block('docs/export.md', 'runtimes', runtimes_table())


def own_backbones_table():
    """Backbones with a VT stage, as benchmarks/own_backbones.py wrote them."""
    lines = ['| backbone | params (M), with VT | MACs (G), with VT | speed with VT, batch 1, quartiles | batch 16 |']
    lines[0] += ' top-1 (%), with VT | kept (%) | views | minutes |'
    lines.append('|---|---|---|---|---|---|---:|---:|---:|')
    for line in (ROOT / 'docs' / 'benchmarks' / 'own_backbones.jsonl').read_text().splitlines():
        row = json.loads(line)
        params, macs = ([row[key][name] for name in ('backbone', 'vt')] for key in ('params_m', 'macs_m'))
        cells = [f'`{row["backbone"]}`', '{:.2f}, {:.2f}'.format(*params)]
        cells.append('{:.2f}, {:.2f}'.format(*(value / 1000 for value in macs)))
        for ratio in row['speed'].values():
            cells.append('{:.2f} ({:.2f} to {:.2f})'.format(ratio['median'], *ratio['quartiles']))
        if 'vt_top1' in row:
            whole, vt = row['backbone_top1'], row['vt_top1']
            cells += [f'{whole}, {vt}', f'{100 * vt / whole:.0f}', f'{row["views"]:,}', f'{row["minutes"]:.0f}']
        else:
            cells += [''] * 4
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def test_your_network_page_has_the_measured_figures():
    check_block('docs/your_network.md', 'own_backbones', own_backbones_table())


def test_links_lead_somewhere():
    for page in [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]:
        for target in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
            assert target.startswith('http') or (page.parent / target).exists(), f'{page}: {target}'


def test_links_of_a_release_lead_to_its_tag(monkeypatch):
    """What PyPI shows: no link of the README is relative, each leads to a file that exists, and code stays as it is."""
    repository = 'https://github.com/someone/vt_hub'
    monkeypatch.setenv('VT_HUB_REPOSITORY', f'{repository}/')
    metadata = ProjectMetadata(str(ROOT), PluginManager()).core
    links = re.findall(r'(!?)\[[^]]*\]\(([^)#]+)\)', metadata.readme)
    assert metadata.urls['Source'] == repository
    assert any(picture for picture, _ in links)
    for picture, link in links:
        _, found, path = link.partition(f'{repository}/{"raw" if picture else "blob"}/v{vt_hub.__version__}/')
        assert (ROOT / path).exists() if found else link.startswith('https://arxiv.org/'), link
    assert SNIPPET.findall(metadata.readme) == README


def test_readme_stays_as_it_is_without_an_address(monkeypatch):
    monkeypatch.delenv('VT_HUB_REPOSITORY', raising=False)
    metadata = ProjectMetadata(str(ROOT), PluginManager()).core
    assert metadata.readme == (ROOT / 'README.md').read_text()
    assert 'Source' not in metadata.urls
