"""What became of a model's layers; the same for CPUs and GPUs."""

from dataclasses import asdict, dataclass

from ..utils.tables import table


@dataclass(frozen=True)
class LayerChoice:
    """What became of one layer; the times are those of all its calls in one run of the model.

    ``used``: whether it runs on a sparse kernel; ``precision``: what it computes in.
    """

    name: str
    shape: tuple[int, ...]
    pattern: str | None
    used: bool
    reason: str
    dense_ms: float | None = None
    sparse_ms: float | None = None
    int8_ms: float | None = None
    precision: str = 'float32'

    @property
    def ms(self) -> float | None:
        """As it runs now."""
        return (self.int8_ms if self.precision == 'int8' else
                self.sparse_ms if self.used else self.dense_ms)


@dataclass(frozen=True)
class Rounding:
    """How far the int8 results of a part of the model are from float32 in calibration images.

    ``difference``: the largest, as a share of the largest value of that result; ``decibels``: of
    signal to noise, in the result where it is lowest.
    """

    part: str
    difference: float
    decibels: float


@dataclass(frozen=True)
class AccelerationReport:
    """All convolutions and linear layers of a model, in its order.

    ``kernels`` names what computes the sparse layers; ``traced`` the parts of the model that run as
    a program of their own; ``untraced`` those that do not, with the reason: their layers were
    looked at one by one. ``rounding``: what int8 costs in exactness.
    """

    layers: tuple[LayerChoice, ...]
    kernels: str
    traced: tuple[str, ...] = ()
    untraced: tuple[tuple[str, str], ...] = ()
    rounding: tuple[Rounding, ...] = ()

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the layers that run on sparse kernels now."""
        return tuple(layer.name for layer in self.layers if layer.used)

    @property
    def int8(self) -> tuple[str, ...]:
        """Names of the layers that compute in int8 now."""
        return tuple(layer.name for layer in self.layers if layer.precision == 'int8')

    def as_dict(self) -> dict:
        """Plain values."""
        return {'kernels': self.kernels, 'layers': [asdict(layer) for layer in self.layers],
                'used': list(self.used), 'traced': list(self.traced),
                'untraced': [list(pair) for pair in self.untraced],
                'rounding': [asdict(part) for part in self.rounding]}

    def __str__(self) -> str:
        with_int8 = any(layer.int8_ms is not None for layer in self.layers)

        def row(name, shape, pattern, dense, sparse, int8, used, precision, why):
            middle = ((dense, sparse, int8, used, precision) if with_int8 else
                      (dense, sparse, used))
            return name, shape, pattern, *middle, why

        rows = [row(r.name, ' x '.join(map(str, r.shape)), r.pattern or '', _ms(r.dense_ms),
                    _ms(r.sparse_ms), _ms(r.int8_ms), 'yes' if r.used else 'no', r.precision,
                    r.reason) for r in self.layers]
        measured = [layer for layer in self.layers
                    if layer.sparse_ms is not None or layer.int8_ms is not None]
        rows.append(row(f'total: {len(self.layers)} layers', f'{len(measured)} measured', '',
                        _ms(sum(r.dense_ms for r in measured)),
                        '' if with_int8 else _ms(sum(r.ms for r in measured)),
                        _ms(sum(r.ms for r in measured)), f'{len(self.used)}',
                        f'{len(self.int8)} int8', 'the fastest, layer by layer'))
        head = row('layer', 'shape', 'pattern', 'dense ms', 'sparse ms', 'int8 ms', 'used',
                   'precision', 'why')
        lines = [table(head, rows), f'  kernels: {self.kernels}']
        if self.traced:
            lines.append(f'  traced: {", ".join(self.traced)}')
        lines += [f'  not traced: {name} ({reason})' for name, reason in self.untraced]
        lines += [f'  int8: {part.part} differs from float32 by up to {part.difference:.1%} of the '
                  f'largest value, signal to noise at least {part.decibels:.0f} dB'
                  for part in self.rounding]
        return '\n'.join(lines)


def _ms(value: float | None) -> str:
    return '' if value is None else f'{value:.3f}'
