"""Publish the embedded folders: python conversion/publish_pretrained.py [--dry-run] [--tag TAG] [NAME ...].

Each goes to its own repository in VT_HUB_NAMESPACE, verified first. A folder that fails does not keep the others back.
"""

import argparse
import sys

import vt_hub
from vt_hub.loading.published import VERSION


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', default=vt_hub.list_pretrained(), metavar='NAME', help='default: all')
    parser.add_argument('--tag', default=VERSION, help='version of the weights')
    parser.add_argument('--dry-run', action='store_true', help='only verify, and say what would be published')
    args = parser.parse_args()
    failed = 0
    for name in args.names:
        try:
            print(vt_hub.push(vt_hub.pretrained_folder(name), args.tag, dry_run=args.dry_run))
        except (LookupError, OSError, ValueError) as error:
            print(f'error: {error}', file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
