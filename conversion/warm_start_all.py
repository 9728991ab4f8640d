"""Start all four VT-ResNets of the paper from timm's ResNets: python conversion/warm_start_all.py OUT.

Writes OUT/vt_resnet18 .. OUT/vt_resnet101, each a model folder whose trunk is trained and whose stage 5 is not. Needs a
network, or timm's weights in the cache. `vt-hub convert` does one.
"""

import argparse
from pathlib import Path

import vt_hub
from vt_hub.loading.conversion import warm_start

RESNETS = ('resnet18.a1_in1k', 'resnet34.a1_in1k', 'resnet50.a1_in1k', 'resnet101.a1h_in1k')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, help='folder for the model folders')
    args = parser.parse_args()
    for name in RESNETS:
        start = warm_start(name)
        folder = args.out / start.model.pretrained_cfg['architecture']
        vt_hub.export(start.model, folder, prose=start.prose(name), license=start.license)
        print(f'{folder}: {start}')


if __name__ == '__main__':
    main()
