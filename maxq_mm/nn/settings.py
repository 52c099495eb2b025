"""What a user asks for, parsed and checked once: of one layer's mask, and of a whole model."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from ..functional.masks import AXES, TEMPERATURE, check_axes, check_order, check_temperature
from ..functional.pattern import Pattern
from ..functional.ramp import Ramp
from ..utils.errors import InputError

DECAY = 2e-4
ORDER = 'smallest'


def _set(settings: object, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(settings, name, value)


@dataclass(frozen=True)
class MaskSettings:
    """What a layer's mask is made with; see :func:`maxq_mm.soft_mask`.

    ``fixed``: the keep mask is chosen once, from the weights of that moment, and its gradient is
    masked (ASP, arXiv 2104.08378) instead of straight-through.

    Raises:
        InputError: a bad value, named.
    """

    pattern: Pattern | str
    axes: Sequence[str] = AXES
    temperature: float = TEMPERATURE
    order: str = ORDER
    fixed: bool = False

    def __post_init__(self) -> None:
        _set(self, pattern=Pattern.parse(self.pattern), axes=check_axes(self.axes),
             temperature=check_temperature(self.temperature))
        check_order(self.order)
        if not isinstance(self.fixed, bool):
            raise InputError(f'fixed must be True or False, got {self.fixed!r}')

    def as_dict(self) -> dict:
        """Plain values, as they go into a checkpoint."""
        values = {f.name: getattr(self, f.name) for f in fields(MaskSettings)}
        return {**values, 'pattern': str(self.pattern), 'axes': list(self.axes)}


@dataclass(frozen=True)
class SparsitySettings(MaskSettings):
    """What a model's layers become sparse with; the mask's settings are those of most layers.

    ``include`` and ``exclude`` are prefixes of module names (an empty ``include`` is the whole
    model); ``overrides`` maps regexes, searched in the module name, to a pattern or to None for
    dense; the first that matches counts. Layers that predict (:mod:`.predictors`) stay dense
    unless ``include`` or an override names them, or ``predictors`` is True. ``ramp``:
    ``dict(type, begin, end, by_epoch, fade)`` of :func:`maxq_mm.dense_fraction`. ``decay``: lambda
    of SR-STE (arXiv 2102.04010, equation 8).

    Raises:
        InputError: a bad value, named.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    overrides: Mapping[str, str | None] | None = None
    ramp: dict | Ramp | None = None
    decay: float = DECAY
    predictors: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _set(self, include=_names('include', self.include),
             exclude=_names('exclude', self.exclude),
             overrides=_parse_overrides(self.overrides), ramp=Ramp.parse(self.ramp))
        if isinstance(self.decay, bool) or not isinstance(self.decay, (int, float)) or not (
                0 <= self.decay < math.inf):
            raise InputError(f'decay must be a number >= 0, got {self.decay!r}')
        if not isinstance(self.predictors, bool):
            raise InputError(f'predictors must be True or False, got {self.predictors!r}')
        if self.fixed and self.ramp.begin != self.ramp.end:
            raise InputError('fixed=True takes no ramp (the mask is chosen once), got '
                             f'{self.ramp}')

    @classmethod
    def of(cls, **arguments: object) -> 'SparsitySettings':
        """Settings by name.

        Raises:
            InputError: no setting of such a name (the nearest is given), or a bad value.
        """
        names = [f.name for f in fields(cls)]
        for name in arguments:
            if name not in names:
                nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
                raise InputError(f'there is no argument {name!r}; the nearest is {nearest!r}')
        return cls(**arguments)

    def pattern_of(self, name: str, default: Pattern) -> Pattern | None:
        """What the overrides say of the layer ``name``, or ``default``; None for dense."""
        return next((pattern for regex, pattern in self.overrides if regex.search(name)), default)

    def override_of(self, name: str) -> re.Match | None:
        """Where in ``name`` the override matches that counts; None without one."""
        return next((match for regex, _ in self.overrides if (match := regex.search(name))), None)

    def mask(self, pattern: Pattern) -> MaskSettings:
        """The settings of one layer's mask."""
        return MaskSettings(pattern, self.axes, self.temperature, self.order, self.fixed)

    def as_dict(self) -> dict:
        """Plain values, as they go into a checkpoint."""
        overrides = {regex.pattern: None if pattern is None else str(pattern)
                     for regex, pattern in self.overrides}
        return {**super().as_dict(), 'include': list(self.include), 'exclude': list(self.exclude),
                'overrides': overrides, 'ramp': asdict(self.ramp), 'decay': float(self.decay),
                'predictors': self.predictors}


def _names(argument: str, value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(
            isinstance(name, str) for name in value):
        raise InputError(f'{argument} must be a sequence of module names, got {value!r}')
    return tuple(value)


def _parse_overrides(overrides: Mapping | None) -> tuple[tuple[re.Pattern, Pattern | None], ...]:
    if overrides is None:
        return ()
    if not isinstance(overrides, Mapping):
        raise InputError(f'overrides must map module-name regexes to patterns, got {overrides!r}')
    parsed = []
    for regex, pattern in overrides.items():
        try:
            parsed.append((re.compile(regex), None if pattern is None else Pattern.parse(pattern)))
        except (re.error, TypeError) as error:
            raise InputError(f'overrides key {regex!r} is no regular expression: {error}') from None
        except InputError as error:
            raise InputError(f'overrides[{regex!r}]: {error}') from None
    return tuple(parsed)
