"""Fair timing: variants take turns, so that what slows the machine slows them alike."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import mmcv
import mmdet
import mmengine
import torch

import maxq_mm


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def alternate(variants: dict[str, Callable[[], object]], repeat: int, device: torch.device,
              progress: Callable[[Iterable], Iterable] = iter) -> dict[str, list[float]]:
    """Seconds of ``repeat`` calls of every variant, in turns, after one call of each unmeasured."""
    seconds = {name: [] for name in variants}
    order = list(variants)
    for turn in progress(range(repeat + 1)):
        order = order[1:] + order[:1]  # none is always the one after a certain other
        for name in order:
            call = variants[name]
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize(seconds: dict[str, list[float]], baseline: str) -> list[dict]:
    """A row a variant: median, lowest and highest seconds, and what is compared with ``baseline``.

    ``ratio`` is the median of the ratios within a turn: of two calls that ran side by side.
    """
    rows = []
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[baseline], strict=True)]
        rows.append(dict(variant=name, median_s=statistics.median(values), low_s=min(values),
                         high_s=max(values), ratio=statistics.median(ratios),
                         ratio_low=min(ratios), ratio_high=max(ratios)))
    return rows


def machine(device: torch.device) -> dict:
    """What the figures were measured on, and with."""
    versions = dict(python=platform.python_version(), torch=torch.__version__,
                    mmengine=mmengine.__version__, mmcv=mmcv.__version__, mmdet=mmdet.__version__,
                    maxq_mm=maxq_mm.__version__)
    return dict(
        device=torch.cuda.get_device_name(device) if device.type == 'cuda' else _processor(),
        vectors=torch.backends.cpu.get_cpu_capability(), cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(), system=platform.platform(terse=True), versions=versions)


def _processor() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()
