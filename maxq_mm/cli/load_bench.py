"""A served detector under load: client threads, images of mixed sizes, and files that are none."""

import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.apis import inference_detector
from mmdet.utils import get_test_pipeline_cfg
from torch import Tensor, nn

MIB = 2**20
# Parts of an image, by heights and widths: other shapes, other sizes for the network.
_PARTS = ((1, 1), (1, 2), (2, 1), (1, 4), (3, 2))


def make_requests(images: Sequence[np.ndarray], folder: Path) -> list[Path]:
    """Write what clients send into ``folder``: parts of the images, one of a pixel, broken ones."""
    found = []
    for number, image in enumerate(images):
        for rows, columns in _PARTS:
            height, width = (max(1, size // parts) for size, parts in zip(
                image.shape, (rows, columns), strict=False))
            found.append(folder / f'{number}-{rows}-{columns}.png')
            cv2.imwrite(str(found[-1]), image[:height, :width])
    whole = found[0].read_bytes()
    broken = {'pixel.png': None, 'empty.png': b'', 'text.png': b'no image', 'gone.png': None,
              'cut.png': whole[:20], 'header.png': whole[:8] + bytes(100)}
    for name, content in broken.items():
        found.append(folder / name)
        if content is not None:
            found[-1].write_bytes(content)
    cv2.imwrite(str(folder / 'pixel.png'), images[0][:1, :1])
    return found


class Server:
    """A detector and its test pipeline; answers with what it finds, or the name of the error."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.pipeline = Compose(get_test_pipeline_cfg(model.cfg.copy()))

    def answer(self, path: Path) -> dict[str, Tensor] | str:
        try:
            found = inference_detector(self.model, str(path), self.pipeline).pred_instances
        except Exception as error:  # of a broken image, whatever mmdet makes of it
            return type(error).__name__
        return {name: value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
                for name, value in found.items()}


def same(answer: dict[str, Tensor] | str, expected: dict[str, Tensor] | str) -> bool:
    """Whether two answers have the same bits, or are the same error."""
    if isinstance(answer, str) or isinstance(expected, str):
        return isinstance(answer, str) and answer == expected
    return answer.keys() == expected.keys() and all(
        torch.equal(answer[name], expected[name]) for name in answer)


@dataclass
class Client:
    """What one thread has seen: seconds of answers and refusals, requests answered otherwise."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    def work(self, server: Server, expected: dict[Path, object], seed: int, end: float,
             threads: int) -> None:
        torch.set_num_threads(threads)  # it is a setting of each thread
        draw = random.Random(seed)
        requests = list(expected)
        while time.monotonic() < end:
            path = draw.choice(requests)
            start = time.perf_counter()
            answer = server.answer(path)
            seconds = time.perf_counter() - start
            (self.refused if isinstance(answer, str) else self.answered).append(seconds)
            if not same(answer, expected[path]):
                self.different.append(path.name)


def bench_load(server: Server, requests: Sequence[Path], clients: int, seconds: float,
               threads: int, resident: Callable[[], int]) -> dict:
    """Have ``clients`` threads send random ``requests`` for ``seconds``, each with ``threads``.

    ``resident`` tells the process's memory in bytes. What a single thread answers comes first, and
    is what all answers are compared with.
    """
    torch.set_num_threads(threads)
    for path in requests:  # sizes that are new cost memory and time once
        server.answer(path)
    alone = time.perf_counter()
    expected = {path: server.answer(path) for path in requests}
    alone = time.perf_counter() - alone
    memory = [resident()]
    found = [Client() for _ in range(clients)]
    start = time.monotonic()
    workers = [threading.Thread(target=client.work, daemon=True, args=(
        server, expected, seed, start + seconds, threads)) for seed, client in enumerate(found)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        time.sleep(min(1., seconds / 20))
        memory.append(resident())
    for worker in workers:
        worker.join()
    took = time.monotonic() - start
    answered = sorted(value for client in found for value in client.answered)
    refused = sum(len(client.refused) for client in found)
    tenth = memory[max(1, len(memory) // 10)]
    return dict(
        clients=clients, seconds=took, threads=threads, requests=len(requests),
        answered=len(answered), refused=refused,
        different=[name for client in found for name in client.different],
        per_second=(len(answered) + refused) / took, alone_per_second=len(requests) / alone,
        median_s=statistics.median(answered) if answered else None,
        p99_s=answered[int(0.99 * (len(answered) - 1))] if answered else None,
        highest_s=answered[-1] if answered else None,
        memory_mib=dict(start=memory[0] / MIB, tenth=tenth / MIB, end=memory[-1] / MIB,
                        highest=max(memory) / MIB))


def show_load(row: dict) -> str:
    """The figures in words."""
    memory = row['memory_mib']
    total = row['answered'] + row['refused']
    lines = [f'{row["clients"]} clients for {row["seconds"]:.0f} s, {row["threads"]} threads each: '
             f'{total} requests, {row["refused"]} of them refused as broken',
             f'  {row["per_second"]:.1f} requests a second; a single client alone: '
             f'{row["alone_per_second"]:.1f}']
    if row['answered']:
        lines.append(f'  latency: median {row["median_s"] * 1e3:.0f} ms, 99th percentile '
                     f'{row["p99_s"] * 1e3:.0f} ms, highest {row["highest_s"] * 1e3:.0f} ms')
    lines.append(f'  memory: {memory["start"]:.0f} MiB at the start, {memory["tenth"]:.0f} after a '
                 f'tenth, {memory["end"]:.0f} at the end, {memory["highest"]:.0f} at most')
    lines.append(f"  results that differ from a single thread's: {len(row['different'])}")
    if row['different']:
        lines[-1] += f', of {", ".join(sorted(set(row["different"]))[:5])}'
    return '\n'.join(lines)
