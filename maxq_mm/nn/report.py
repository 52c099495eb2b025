"""What N:M sparsity a model has, layer by layer."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ..functional.compact import compact_bytes
from ..functional.masks import satisfies
from ..functional.pattern import Pattern
from ..utils.errors import InputError
from ..utils.tables import table
from .layers import MaxQLayer


@dataclass(frozen=True)
class LayerReport:
    """One layer; ``kept`` in [0, 1] is the share of non-zeros, MACs are None without an input.

    ``bytes`` is the size of the dense weight, ``bytes_compact`` that of its values and indices in
    a compact file (:func:`maxq_mm.save_compact`); None if it does not satisfy its pattern, since
    it has no such form then.
    """

    name: str
    shape: tuple[int, ...]
    pattern: str
    kept: float
    satisfied: bool
    weights: int
    weights_kept: int
    bytes: int
    bytes_compact: int | None
    macs: int | None
    macs_kept: int | None


@dataclass(frozen=True)
class SparsityReport:
    """All sparse layers of a model, in its order; the totals speak of these layers alone."""

    layers: tuple[LayerReport, ...]

    @property
    def satisfied(self) -> int:
        """How many layers satisfy their pattern."""
        return sum(layer.satisfied for layer in self.layers)

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def weights_kept(self) -> int:
        """How many weights are not zero."""
        return sum(layer.weights_kept for layer in self.layers)

    @property
    def kept(self) -> float:
        """Share of non-zero weights, in [0, 1]."""
        return self.weights_kept / self.weights

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    @property
    def bytes_compact(self) -> int | None:
        return _total(layer.bytes_compact for layer in self.layers)

    @property
    def compact_ratio(self) -> float | None:
        """Compact size over dense size; None if a layer has no compact form."""
        return None if self.bytes_compact is None else self.bytes_compact / self.bytes

    @property
    def macs(self) -> int | None:
        return _total(layer.macs for layer in self.layers)

    @property
    def macs_kept(self) -> int | None:
        return _total(layer.macs_kept for layer in self.layers)

    def as_dict(self) -> dict:
        """Plain values: the layers and the totals."""
        totals = {name: getattr(self, name) for name in (
            'satisfied', 'weights', 'weights_kept', 'kept', 'bytes', 'bytes_compact',
            'compact_ratio', 'macs', 'macs_kept')}
        return {'layers': [asdict(layer) for layer in self.layers], 'totals': totals}

    def __str__(self) -> str:
        rows = [(r.name, ' x '.join(map(str, r.shape)), r.pattern, f'{r.kept:.2%}',
                 'yes' if r.satisfied else 'NO', _kib(r.bytes), _kib(r.bytes_compact),
                 _millions(r.macs), _millions(r.macs_kept)) for r in self.layers]
        rows.append((f'total: {len(self.layers)} layers', f'{self.weights:,} weights', '',
                     f'{self.kept:.2%}', f'{self.satisfied}/{len(self.layers)}',
                     _kib(self.bytes), _kib(self.bytes_compact),
                     _millions(self.macs), _millions(self.macs_kept)))
        head = ('layer', 'shape', 'pattern', 'kept', 'satisfied', 'KiB', 'KiB compact',
                'MMACs', 'MMACs kept')
        keep = len(head) if self.macs is not None else len(head) - 2
        return '\n'.join((table(head[:keep], [row[:keep] for row in rows]),
                          f'  weights: {self.weights:,} dense, {self.weights_kept:,} kept',
                          f'  size: {self._sizes()}'))

    def _sizes(self) -> str:
        scale, unit = (2**20, 'MiB') if self.bytes >= 2**20 else (2**10, 'KiB')
        dense = f'{self.bytes / scale:,.1f} {unit} dense'
        if self.bytes_compact is None:
            return (f'{dense}, no compact form: {len(self.layers) - self.satisfied} of '
                    f'{len(self.layers)} layers do not satisfy their pattern')
        return (f'{dense}, {self.bytes_compact / scale:,.1f} {unit} compact '
                f'({self.compact_ratio:.2f})')


def _total(values: Iterable[int | None]) -> int | None:
    values = list(values)
    return None if None in values else sum(values)


def _millions(value: int | None) -> str:
    return '' if value is None else f'{value / 1e6:,.2f}'


def _kib(value: int | None) -> str:
    return '-' if value is None else f'{value / 2**10:,.1f}'


def _compact(weight: torch.Tensor, pattern: str) -> int:
    """Bytes in a compact file, where a weight that would be no smaller stays as it is."""
    return min(compact_bytes(weight.shape, pattern, weight.dtype), weight.nbytes)


def _macs(model: nn.Module, inputs: tuple | torch.Tensor) -> Mapping[str, int]:
    from mmengine.analysis import FlopAnalyzer

    with torch.no_grad():
        analyzer = FlopAnalyzer(model, inputs)
        analyzer.unsupported_ops_warnings(False)
        analyzer.uncalled_modules_warnings(False)
        return analyzer.by_module()


def report(model: nn.Module, inputs: tuple | torch.Tensor | None = None,
           patterns: Mapping[str, str] | None = None) -> SparsityReport:
    """Kept share and pattern of every sparse layer, as the forward pass sees its weight.

    ``patterns`` names the layers and their patterns in a model that is folded; without it, the
    MaxQ layers are looked at. MACs are counted by mmengine's analyzer when ``inputs``, the
    arguments of ``model``'s forward, are given. Sizes
    are those of the weights alone, with zeros of either sign counted as 0.0.

    Raises:
        InputError: no MaxQ layer and no ``patterns``, or a pattern for a layer that is not there.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if patterns is None:
        patterns = {name: str(module.settings.pattern) for name, module in modules.items()
                    if isinstance(module, MaxQLayer) and module.is_sparse}
        if not patterns:
            raise InputError('the model has no MaxQ layers: give patterns for a folded one')
    macs = {} if inputs is None else _macs(model, inputs)
    rows, seen = [], set()
    for name, text in patterns.items():
        if name not in modules:
            raise InputError(f'patterns has {name!r}, which is no layer of the model')
        module = modules[name]
        if module in seen:
            continue  # another name of a shared layer
        seen.add(module)
        weight = module.effective if isinstance(module, MaxQLayer) else module.weight.detach()
        nonzero = int(torch.count_nonzero(weight))
        dense = None if inputs is None else int(macs.get(name, 0))
        satisfied = satisfies(weight, text)
        rows.append(LayerReport(
            name=name, shape=tuple(weight.shape), pattern=str(Pattern.parse(text)),
            kept=nonzero / weight.numel(), satisfied=satisfied,
            weights=weight.numel(), weights_kept=nonzero, bytes=weight.nbytes,
            bytes_compact=_compact(weight, text) if satisfied else None, macs=dense,
            macs_kept=None if dense is None else round(dense * nonzero / weight.numel())))
    return SparsityReport(tuple(rows))
