"""Seconds that `import vt_hub` adds to `import timm`: python benchmarks/import_time.py. Prints the median of 5."""

import statistics
import subprocess
import sys

CODE = 'import time, timm; start = time.perf_counter(); import vt_hub; print(time.perf_counter() - start)'


def main():
    seconds = [float(subprocess.check_output([sys.executable, '-c', CODE])) for _ in range(5)]
    print(
        f'import vt_hub adds {statistics.median(seconds):.3f} s (median of 5, {min(seconds):.3f} to {max(seconds):.3f})'
    )


if __name__ == '__main__':
    main()
