"""Prepare the photographs that vt_resnet18.dist_in1k learned from, and list them.

    python model_cards/photographs/prepare.py --photographs DIR --out READY

DIR holds one folder for each set of `sets.csv`, unpacked from the repository and commit that it names. READY gets one
folder for each set, with JPEG files whose shorter side has at most 256 pixels. A file is named by the sha256 of its
photograph, so no photograph is there twice. Photographs that look like one of the 1,000 test photographs (`nips`, by a
difference hash) are left out. READY/photographs.sha256 lists every file that was used. READY/run1.txt and the like have
the folders and shares of each run as arguments of `vt-hub distill`. `used.csv` beside this script counts the
photographs of each set, with the sha256 of the set's part of that list.
"""

import argparse
import csv
import hashlib
import io
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

from vt_hub.image_files import walk_images
from vt_hub.network.images import read_image

HERE = Path(__file__).parent
SHORTER = 256
ALIKE = 4  # bits of 64 in which two hashes of the same photograph differ at most


def difference_hash(image: Image.Image) -> int:
    """Of 8 x 9 grey pixels, which are brighter than their neighbour."""
    grey = np.asarray(image.convert('L').resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), 'big')


def small_jpeg(image: Image.Image, shorter: int, quality: int) -> bytes:
    """A JPEG file of an image whose shorter side has at most some pixels."""
    scale = shorter / min(image.size)
    if scale < 1:
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    written = io.BytesIO()
    image.save(written, 'JPEG', quality=quality)
    return written.getvalue()


def make_ready(path: Path, folder: Path, known: np.ndarray) -> str | None:
    """Write a small copy; returns the photograph's sha256, or None if it is left out."""
    content = path.read_bytes()
    try:
        image = read_image(path, content=content)
    except ValueError as error:
        print(error, flush=True)
        return None
    bits = np.bitwise_count(known ^ np.uint64(difference_hash(image)))
    if len(bits) and bits.min() <= ALIKE:
        print(f'{path} looks like a test photograph', flush=True)
        return None
    digest = hashlib.sha256(content).hexdigest()
    (folder / f'{digest[:20]}.jpg').write_bytes(small_jpeg(image, SHORTER, 92))
    return digest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--photographs', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--processes', type=int, default=1)
    args = parser.parse_args()
    with open(HERE / 'sets.csv', newline='') as file:
        sets = list(csv.DictReader(file))
    tests = sorted(walk_images(args.photographs / 'nips'))
    known = np.array([difference_hash(read_image(path)) for path in tests], dtype=np.uint64)
    seen: set[str] = set()
    lists, used = [], []
    for entry in sets:
        root, folder = args.photographs / entry['set'], args.out / entry['set']
        if folder.exists():
            raise SystemExit(f'{folder} exists already.')
        folder.mkdir(parents=True)
        paths = sorted(walk_images(root / entry['folder']))
        with Pool(args.processes) as pool:
            digests = pool.map(partial(make_ready, folder=folder, known=known), paths, chunksize=64)
        first = {digest: path for path, digest in zip(reversed(paths), reversed(digests), strict=True) if digest}
        for digest in first.keys() & seen:  # it lies in an earlier folder
            (folder / f'{digest[:20]}.jpg').unlink()
        new = sorted((path, digest) for digest, path in first.items() if digest not in seen)
        seen |= first.keys()
        text = ''.join(f'{digest}  {path.relative_to(args.photographs)}\n' for path, digest in new)
        lists.append(text)
        used.append({'set': entry['set'], 'photographs': len(new), 'sha256': hashlib.sha256(text.encode()).hexdigest()})
        print(f'{entry["set"]}: {len(new)} of {len(paths)} files', flush=True)
    (args.out / 'photographs.sha256').write_text(''.join(lists))
    for run in ('run1', 'run2', 'run3'):
        shares = {entry['set']: entry[f'{run}_share'] for entry in sets}
        folders = (f'--data-dir {args.out / name} --share {share}\n' for name, share in shares.items() if share)
        (args.out / f'{run}.txt').write_text(''.join(folders))
    with open(HERE / 'used.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, used[0])
        writer.writeheader()
        writer.writerows(used)


if __name__ == '__main__':
    main()
