"""A served detector under load: throughput, latency, memory, and that all results are the same.

    python tools/benchmark_load.py FILE IMAGES [--clients 8] [--seconds 600] [--threads N] ...

FILE is what tools/accelerate.py wrote, IMAGES a folder of pictures. Client threads of one process
send parts of them, of mixed sizes, an image of one pixel, and broken files, in random order. Every
answer is compared, bit for bit, with a single thread's. Exit code 1: one differs.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import torch

from maxq_mm import cli, load_accelerated
from maxq_mm.cli.calibration import pictures
from maxq_mm.cli.load_bench import Server, bench_load, make_requests, show_load
from maxq_mm.cli.timing import machine


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('file', type=Path, help='accelerated file')
    parser.add_argument('images', type=Path, help='folder of pictures')
    parser.add_argument('--clients', type=cli.positive, default=8)
    parser.add_argument('--seconds', type=cli.positive, default=600)
    parser.add_argument('--count', type=cli.positive, default=8, help='pictures to take')
    parser.add_argument('--threads', type=cli.positive, default=1, help='CPU threads of a request')
    parser.add_argument('--json', type=Path, metavar='OUT', help='also write everything here')
    args = parser.parse_args()
    cli.check_outputs(args.json, inputs=[args.file])
    return args


def read_images(folder: Path, count: int) -> list:
    """The first pictures of a folder; InputError if there is none that can be read."""
    images = [image for path in pictures(folder)[:count]
              if (image := cv2.imread(str(path))) is not None]
    if not images:
        raise cli.InputError(f'no images in {folder}')
    return images


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


def main() -> None:
    args = parse_args()
    images = read_images(args.images, args.count)
    start = time.perf_counter()
    try:
        server = Server(load_accelerated(args.file))
    except FileNotFoundError as error:
        raise cli.InputError(str(error)) from error
    loading = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        row = bench_load(server, make_requests(images, Path(folder)), args.clients, args.seconds,
                         args.threads, resident)
    on = machine(torch.device('cpu'))
    print(f'{on["device"]}, {on["cores"]} cores, torch {torch.__version__}; '
          f'loaded in {loading:.1f} s')
    print(show_load(row))
    if args.json is not None:
        cli.write_json(dict(machine=on, file=args.file.name, load_s=loading, **row), args.json)
    sys.exit(bool(row['different']))


if __name__ == '__main__':
    cli.run(main)
