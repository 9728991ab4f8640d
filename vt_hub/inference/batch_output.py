"""Tables of predictions: Parquet, or JSON lines as printed by `vt-hub predict --json`."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

__all__ = ['check_table', 'read_jsonl', 'table_writer', 'to_table']

Results = list[dict[str, Any]]
TABLES_IN_GROUP = 64  # readers of Parquet want large row groups


def import_pyarrow() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Tables of predictions need pyarrow: pip install "vt_hub[parquet]".') from error
    return pyarrow


def unicode(text: str) -> str:
    """Escape the bytes of a file name that are not valid Unicode, which Parquet refuses."""
    return text.encode('utf-8', 'backslashreplace').decode()


def to_table(results: Results) -> 'pyarrow.Table':
    """Results of `predict` as columns: image, label and score of the best class, labels, scores, error.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    pa = import_pyarrow()
    schema = {
        'image': pa.string(),
        'label': pa.string(),
        'score': pa.float64(),
        'labels': pa.list_(pa.string()),
        'scores': pa.list_(pa.float64()),
        'error': pa.string(),
    }
    rows = []
    for result in results:
        row: dict[str, Any] = {'image': unicode(result['image'])}
        if 'error' in result:
            row['error'] = unicode(result['error'])
        else:
            row['labels'] = [p['label'] for p in result['predictions']]
            row['scores'] = [p['score'] for p in result['predictions']]
            row |= {'label': row['labels'][0], 'score': row['scores'][0]}
        rows.append(row)
    return pa.Table.from_pylist(rows, pa.schema(schema))


def read_jsonl(path: Path) -> Results:
    with open(path, encoding='utf-8') as file:
        return [json.loads(line) for line in file]


@contextmanager
def jsonl_writer(path: Path) -> Iterator[Callable[[Results], Any]]:
    with open(path, 'w', encoding='utf-8', newline='\n') as file:
        yield lambda results: file.writelines(json.dumps(result) + '\n' for result in results)


@contextmanager
def parquet_writer(path: Path) -> Iterator[Callable[[Results], Any]]:
    pa = import_pyarrow()
    from pyarrow import parquet

    tables = []

    def write(results: Results) -> None:
        tables.append(to_table(results))
        if len(tables) == TABLES_IN_GROUP:
            flush()

    def flush() -> None:
        file.write_table(pa.concat_tables(tables))
        tables.clear()

    with parquet.ParquetWriter(path, to_table([]).schema) as file:
        yield write
        if tables:
            flush()


WRITERS = {'.jsonl': jsonl_writer, '.parquet': parquet_writer}


def check_table(path: Path) -> None:
    """Raise ValueError for an unknown file extension, ModuleNotFoundError if pyarrow is needed but missing."""
    if path.suffix not in WRITERS:
        raise ValueError(f'{path} does not end in a supported table extension: {" or ".join(WRITERS)}.')
    if path.suffix == '.parquet':
        import_pyarrow()


def table_writer(path: Path) -> AbstractContextManager[Callable[[Results], Any]]:
    """A function that appends results to a new file. The extension sets the format."""
    return WRITERS[path.suffix](path)
