"""What sparse matrix products of the GPU (cuSPARSELt, by way of torch) need, and their time."""

import statistics
from collections.abc import Callable, Sequence

import torch

DTYPES = (torch.float16, torch.bfloat16)
CAPABILITY = (8, 0)


def check_gpu(device: torch.device) -> None:
    """Raises RuntimeError unless the sparse kernels run on ``device``; says what they need."""
    needed = 'semi-structured sparsity needs an NVIDIA GPU of compute capability 8.0 or higher'
    if not torch.cuda.is_available():
        raise RuntimeError(f'{needed} (Ampere), and a torch built for CUDA: there is none here')
    if device.type != 'cuda':
        raise RuntimeError(f'{needed}, and the model is on {device}: move it there first')
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        raise RuntimeError(f'{needed}, got {found[0]}.{found[1]} '
                           f'({torch.cuda.get_device_name(device)})')
    if not torch.backends.cusparselt.is_available():
        raise RuntimeError(f'{needed} and cuSPARSELt, without which this torch was built')


def least_shape() -> tuple[int, int]:
    """What O and I must be multiples of."""
    constraints = torch.sparse.SparseSemiStructuredTensorCUSPARSELT._DTYPE_SHAPE_CONSTRAINTS
    return constraints[torch.float16][:2]


def milliseconds(calls: Sequence[Callable[[], object]], repeat: int = 11,
                  burst: int = 10) -> list[float]:
    """Median time of each call, of ``repeat`` bursts by turns, after three unmeasured calls."""
    for call in [*calls] * 3:
        call()
    times = [[] for _ in calls]
    for _ in range(repeat):
        for call, measured in zip(calls, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(burst):
                call()
            end.record()
            end.synchronize()
            measured.append(start.elapsed_time(end) / burst)
    return [statistics.median(measured) for measured in times]
