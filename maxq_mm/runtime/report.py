"""What became of a model's layers; the same for CPUs and GPUs."""

from dataclasses import asdict, dataclass

from ..utils.tables import table


@dataclass(frozen=True)
class LayerChoice:
    """What became of one layer; the times are those of all its calls in one run of the model."""

    name: str
    shape: tuple[int, ...]
    pattern: str | None
    used: bool
    reason: str
    dense_ms: float | None = None
    sparse_ms: float | None = None


@dataclass(frozen=True)
class AccelerationReport:
    """All convolutions and linear layers of a model, in its order.

    ``kernels`` names what computes the sparse layers; ``traced`` the parts of the model that run as
    a program of their own; ``untraced`` those that do not, with the reason: their layers were
    looked at one by one. ``replaced`` are modules between them, and what of each has a kernel.
    """

    layers: tuple[LayerChoice, ...]
    kernels: str
    traced: tuple[str, ...] = ()
    untraced: tuple[tuple[str, str], ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the layers that run on sparse kernels now."""
        return tuple(layer.name for layer in self.layers if layer.used)

    def as_dict(self) -> dict:
        """Plain values."""
        return {'kernels': self.kernels, 'layers': [asdict(layer) for layer in self.layers],
                'used': list(self.used), 'traced': list(self.traced),
                'untraced': [list(pair) for pair in self.untraced],
                'replaced': [list(pair) for pair in self.replaced]}

    def __str__(self) -> str:
        rows = [(r.name, ' x '.join(map(str, r.shape)), r.pattern or '', _ms(r.dense_ms),
                 _ms(r.sparse_ms), 'yes' if r.used else 'no', r.reason) for r in self.layers]
        measured = [layer for layer in self.layers if layer.sparse_ms is not None]
        rows.append((f'total: {len(self.layers)} layers', f'{len(measured)} measured', '',
                     _ms(sum(r.dense_ms for r in measured)),
                     _ms(sum(r.sparse_ms if r.used else r.dense_ms for r in measured)),
                     f'{len(self.used)}', 'the faster of the two, layer by layer'))
        head = ('layer', 'shape', 'pattern', 'dense ms', 'sparse ms', 'used', 'why')
        lines = [table(head, rows), f'  kernels: {self.kernels}']
        if self.traced:
            lines.append(f'  traced: {", ".join(self.traced)}')
        lines += [f'  not traced: {name} ({reason})' for name, reason in self.untraced]
        if self.replaced:
            lines.append('  replaced: ' + ', '.join(f'{name} ({what})'
                                                    for name, what in self.replaced))
        return '\n'.join(lines)


def _ms(value: float | None) -> str:
    return '' if value is None else f'{value:.3f}'
