"""The gradual schedule: the share of blocks that are still dense, over training.

Source: MaxQ (arXiv 2312.07061), section 3.4; the curves are those of its reference
implementation. Deviations: an empty ramp is no ramp, and every curve is clamped to [0, 1]. Fading
as in progressive gradient flow (arXiv 2402.04744), whose gradient fades, too; here it does not.
"""

import math
from dataclasses import dataclass

from ..utils.errors import InputError


def _saturation(k: float) -> float:
    """1 - exp(-0.05 k), the curve of the exponential ramp before scaling."""
    return 1 - math.exp(-0.05 * k)


def _exponential(step: float, length: float) -> float:
    # The curve is scaled to reach 0 one step before the end; with one step it has no room to fall.
    return 1 - _saturation(step) / _saturation(length - 1) if length > 1 else 1.0


_CURVES = {
    'linear': lambda step, length: 1 - step / length,
    'cubic': lambda step, length: (1 - step / length) ** 3,
    'cosine': lambda step, length: math.cos(step / length * math.pi / 2),
    'exponential': _exponential,
}


def dense_fraction(step: float, begin: float, end: float, type: str = 'linear') -> float:
    """Share of blocks, in [0, 1], that are not N:M yet at ``step`` of a ramp over [begin, end).

    ``step``, ``begin`` and ``end`` are epochs or iterations alike. 1 before ``begin``, 0 from
    ``end`` on; ``begin == end`` is no ramp and gives 0 throughout.

    Raises:
        InputError: unknown ``type`` (linear, cubic, cosine, exponential), a negative ``begin``,
            or ``begin > end``.
    """
    if not isinstance(type, str) or type not in _CURVES:
        raise InputError(f'ramp type must be one of {sorted(_CURVES)}, got {type!r}')
    if not 0 <= begin <= end:
        raise InputError(f'ramp needs 0 <= begin <= end, got begin={begin}, end={end}')
    if begin == end or step >= end:
        return 0.0
    if step < begin:
        return 1.0
    return min(max(_CURVES[type](step - begin, end - begin), 0.0), 1.0)


def dense_count(fraction: float, blocks: int) -> int:
    """How many of ``blocks`` stay dense at a dense fraction in [0, 1]: rounded down."""
    return math.floor(fraction * blocks)


@dataclass(frozen=True)
class Ramp:
    """The settings of one ramp; ``by_epoch`` tells the unit of ``begin`` and ``end``.

    ``fade``: all blocks are N:M from ``begin`` on, and their pruned weights count by the dense
    fraction, which falls to 0, in place of a share of blocks that is dense.

    Raises:
        InputError: as :func:`dense_fraction`, or a bound that is no number.
    """

    type: str = 'linear'
    begin: float = 0
    end: float = 0
    by_epoch: bool = True
    fade: bool = False

    def __post_init__(self) -> None:
        for name in ('begin', 'end'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f'ramp {name} must be a number, got {value!r}')
        for name in ('by_epoch', 'fade'):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f'ramp {name} must be True or False, got {getattr(self, name)!r}')
        self(self.begin)

    def __call__(self, step: float) -> float:
        return dense_fraction(step, self.begin, self.end, self.type)

    @classmethod
    def parse(cls, value: 'dict | Ramp | None') -> 'Ramp':
        """A ramp from its config; None is no ramp.

        Raises:
            InputError: an unknown key, or a bad value.
        """
        if value is None:
            return cls()
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise InputError(f'ramp must be a dict or None, got {value!r}')
        unknown = sorted(set(value) - set(cls.__dataclass_fields__))
        if unknown:
            raise InputError(f'ramp has no key {unknown[0]!r}; '
                             f'it takes {", ".join(cls.__dataclass_fields__)}')
        return cls(**value)
