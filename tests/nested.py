"""Nested results, flat."""

from collections.abc import Mapping, Sequence

import torch


def flat_tensors(value) -> list[torch.Tensor]:
    """All tensors in nested mappings and sequences, by sorted keys: mmengine's keep no order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value)]
    nested = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return [tensor for item in value for tensor in flat_tensors(item)] if nested else []
