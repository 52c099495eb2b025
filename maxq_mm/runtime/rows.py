"""A layer's row of the report: how it is computed, and why."""

from torch import nn

from ..functional.pattern import Pattern
from .choose import Choice
from .partition import DENSE, INT8_WAYS, SPARSE, SPARSE_WAYS, TORCH
from .report import LayerChoice


def row(name: str, module: nn.Module, choices: list[Choice] | None, pattern: Pattern | None,
        called: bool, kept: str | None) -> LayerChoice:
    """Of a layer with the choices for each of its forms, if it is part of a program.

    ``kept``: why it stays float32 where others are int8.
    """
    shape, text = tuple(module.weight.shape), pattern and str(pattern)
    if not choices:
        reason = ('not N:M' if pattern is None else 'not called' if not called
                  else f'{type(module).__name__} is not traced as a layer')
        return LayerChoice(name, shape, text, False, reason)
    dense, sparse, int8 = (_total(choices, *ways) for ways in ((DENSE, TORCH), (SPARSE, ),
                                                               INT8_WAYS))
    used = any(choice.way in SPARSE_WAYS for choice in choices)
    is_int8 = all(choice.way in INT8_WAYS for choice in choices)
    refusal = next((choice.refusal for choice in choices if choice.refusal), None)
    if pattern is None or refusal is not None:
        reasons = [refusal or 'not N:M']
    elif is_int8:
        reasons = []
    else:
        reasons = [_against('', sparse, dense, used)]
    if int8 is not None:
        floats = min(ms for ms in (dense, sparse) if ms is not None)
        which = 'dense int8 ' if is_int8 and not used and pattern is not None else 'int8 '
        reasons.append(_against(which, int8, floats, is_int8))
    if is_int8 and any(choice.channels for choice in choices):
        reasons.append("the image's bytes by channels")
    if kept is not None:
        reasons.append(f'float32: {kept}')
    return LayerChoice(name, shape, text, used, ', '.join(reasons), dense, sparse, int8,
                       'int8' if is_int8 else 'float32')


def _against(what: str, ms: float, other: float, taken: bool) -> str:
    faster = ms < other
    reason = f'{what}{"faster" if faster else "slower"}'
    if taken != faster:  # what it costs to leave a program and enter it again decides
        reason += f' alone, the whole is faster {"so" if taken else "without"}'
    return reason


def _total(choices: list[Choice], *ways: str) -> float | None:
    """Milliseconds of all forms by the best of ``ways``; None if one of them cannot."""
    times = [choice.ms(*ways) for choice in choices]
    return None if None in times else sum(times)
