"""Pack photographs into files of limited size, to bring them to a machine with a GPU piece by piece.

    python model_cards/photographs/pieces.py --arguments READY/run3.txt --number 8 --out PIECES

READY is the folder that prepare.py wrote; its run3.txt names the folders and their shares. Photographs are drawn by
these shares, each at most once, and get a shorter side of 160 pixels. On the other machine, unpack all pieces into one
folder, which is then the --data-dir of `vt-hub distill`:

    for piece in PIECES/*.tar; do tar -xf "$piece" -C photographs; done
"""

import argparse
import io
import random
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path

from prepare import small_jpeg

from vt_hub.image_files import walk_images
from vt_hub.network.images import read_image

QUALITY = 88  # of JPEG
SPARE = 512 << 10  # bytes for the last photograph, and for the end of a tar file


def draw(folders: list[Path], shares: list[float]) -> Iterator[Path]:
    """The photographs of all folders once, in an order in which each folder has its share until it is used up."""
    order = random.Random(0)
    keyed: list[tuple[float, Path]] = []
    for folder, share in zip(folders, shares, strict=True):
        paths = sorted(walk_images(folder))
        order.shuffle(paths)
        keyed += [((number + order.random()) / share, path) for number, path in enumerate(paths)]
    return (path for _, path in sorted(keyed))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arguments', type=Path, required=True, help='folders and shares, as prepare.py writes them')
    parser.add_argument('--number', type=int, required=True, help='of pieces')
    parser.add_argument('--mebibytes', type=int, default=64, help='largest size of a piece')
    parser.add_argument('--size', type=int, default=160, help='shorter side in pixels')
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    given = argparse.ArgumentParser()
    given.add_argument('--data-dir', type=Path, action='append')
    given.add_argument('--share', type=float, action='append')
    sets = given.parse_args(shlex.split(args.arguments.read_text()))
    args.out.mkdir(parents=True)
    most = (args.mebibytes << 20) - SPARE
    paths = draw(sets.data_dir, sets.share)
    for number in range(args.number):
        with tarfile.open(args.out / f'{number}.tar', 'w') as piece:
            while piece.offset < most and (path := next(paths, None)):
                content = small_jpeg(read_image(path), args.size, QUALITY)
                entry = tarfile.TarInfo(f'{path.parent.name}/{path.name}')
                entry.size = len(content)
                piece.addfile(entry, io.BytesIO(content))
        print(f'{args.out / str(number)}.tar: {(args.out / f"{number}.tar").stat().st_size} bytes', flush=True)


if __name__ == '__main__':
    main()
