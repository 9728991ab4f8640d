"""Join the trained ResNet-18 and the classifier that the recipe `head` gave it: the teacher of the photographs.

    python model_cards/photographs/teacher.py --trunk resnet18.safetensors --out teacher.safetensors

`head.safetensors` beside this script is that classifier, in fp16. `head.json` and `head.csv` are the result file and
the log of its training, which `vt-hub distill --recipe head` repeats.
"""

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file

from vt_hub.files import replaced_whole

HEAD = Path(__file__).parent / 'head.safetensors'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--trunk', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    head = {name: value.float() for name, value in load_file(HEAD).items()}
    with replaced_whole(args.out) as unfinished:
        save_file(load_file(args.trunk) | head, unfinished)


if __name__ == '__main__':
    main()
