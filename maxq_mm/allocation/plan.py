"""A pattern for each layer: the least distortion that a budget allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..functional.pattern import Pattern
from ..utils.errors import InputError
from ..utils.tables import table

# Costs are added up in units of this share of the dense cost, each rounded up.
UNITS = 1 << 14
DENSE = Pattern(1, 1)
_DENSE = 'dense'


@dataclass(frozen=True)
class Choice:
    """One layer in a plan; ``pattern`` is None where it stays dense.

    ``cost`` and ``dense_cost`` are in the plan's unit; ``distortion`` is the predicted one.
    """

    name: str
    pattern: str | None
    cost: int
    dense_cost: int
    distortion: float


@dataclass(frozen=True)
class Plan:
    """A pattern by layer, what it costs, and how it compares with other budgets.

    Attributes:
        choices: of all layers that could be sparse, in the model's order.
        kind: what ``cost`` is counted in: ``'macs'``, ``'bytes'`` or ``'ms'``.
        budget: the share of the dense cost, in (0, 1], that was allowed.
        curve: (share of the dense cost, least predicted distortion) of all budgets at which
            something changes, the dearest last.
        table: predicted distortion by layer and pattern, of all candidates.
        costs: the same of their cost, ``'dense'`` before the patterns.
    """

    choices: tuple[Choice, ...]
    kind: str
    budget: float
    curve: tuple[tuple[float, float], ...]
    table: Mapping[str, Mapping[str, float]]
    costs: Mapping[str, Mapping[str, int]]

    @property
    def patterns(self) -> dict[str, str | None]:
        """Pattern by module name; None: dense."""
        return {choice.name: choice.pattern for choice in self.choices}

    @property
    def overrides(self) -> dict[str, str | None]:
        """``overrides`` of :class:`maxq_mm.MaxQHook`: one regex a layer, which matches it alone."""
        return overrides(self.patterns)

    @property
    def cost(self) -> int:
        return sum(choice.cost for choice in self.choices)

    @property
    def dense_cost(self) -> int:
        return sum(choice.dense_cost for choice in self.choices)

    @property
    def share(self) -> float:
        """Cost over dense cost, of the layers that could be sparse."""
        return self.cost / self.dense_cost

    @property
    def distortion(self) -> float:
        """Predicted distortion: the sum over layers."""
        return sum(choice.distortion for choice in self.choices)

    def at(self, budget: float) -> 'Plan':
        """The plan of another budget, from what was measured for this one.

        Raises:
            InputError: a budget outside of (0, 1], or below what the sparsest candidates cost.
        """
        candidates = {name: [DENSE, *map(Pattern.parse, row)] for name, row in self.table.items()}
        costs = {name: list(self.costs[name].values()) for name in candidates}
        distortions = {name: [0., *row.values()] for name, row in self.table.items()}
        return make_plan(self.kind, candidates, costs, distortions, budget)

    def as_dict(self) -> dict:
        """Plain values: what was measured, and what was chosen."""
        return dict(kind=self.kind, budget=self.budget, share=self.share, cost=self.cost,
                    dense_cost=self.dense_cost, distortion=self.distortion,
                    patterns=self.patterns, curve=self.curve,
                    costs={name: dict(row) for name, row in self.costs.items()},
                    distortions={name: dict(row) for name, row in self.table.items()})

    @classmethod
    def from_dict(cls, plain: Mapping) -> 'Plan':
        """The inverse of :meth:`as_dict`.

        Raises:
            TypeError, KeyError, ValueError, AttributeError: what it can never have made.
        """
        table = {name: {str(Pattern.parse(text)): float(value) for text, value in row.items()}
                 for name, row in plain['distortions'].items()}
        costs = {name: {text: int(plain['costs'][name][text]) for text in (_DENSE, *row)}
                 for name, row in table.items()}
        return cls((), plain['kind'], 1, (), table, costs).at(plain['budget'])

    def __str__(self) -> str:
        rows = [(choice.name, choice.pattern or _DENSE, f'{choice.cost / self.cost:.1%}',
                 f'{choice.cost / choice.dense_cost:.3f}', f'{choice.distortion:.2e}')
                for choice in self.choices]
        head = ('layer', 'pattern', f'of the {self.kind}', 'kept', 'distortion')
        return '\n'.join((table(head, rows), (
            f'  {self.share:.2%} of the {self.kind} of {len(self.choices)} layers (budget '
            f'{self.budget:.2%}), predicted distortion {self.distortion:.3g}')))


def overrides(patterns: Mapping[str, str | None]) -> dict[str, str | None]:
    """Patterns by module name as ``overrides`` of :class:`maxq_mm.MaxQHook`."""
    # No backslash: mmengine would write it into a config without escaping it.
    return {f'^{name.replace(".", "[.]")}$': pattern for name, pattern in patterns.items()}


def solve(costs: Mapping[str, Sequence[int]], distortions: Mapping[str, Sequence[float]],
          budget: float) -> tuple[list[int], list[tuple[float, float]]]:
    """Which candidate each layer takes, so that distortions sum to the least within the budget.

    ``costs`` are whole numbers >= 0, the first of each layer its dense one; ``budget`` is a share
    of the sum of these. Dynamic programming over the layers: exact for costs rounded up to whole
    units of 1/2^14 of the dense cost (exactly what is given, where that is smaller than 2^14), so
    that the budget is kept, and a plan may miss one that is cheaper by less than a unit a layer.
    Of equal sums the cheapest.

    Returns:
        the candidate's number by layer, and the curve of all budgets: (share, distortion) wherever
        a larger budget allows for less distortion.

    Raises:
        InputError: a budget outside of (0, 1], or below what the sparsest candidates cost.
    """
    check_budget(budget)
    dense = sum(cost[0] for cost in costs.values())
    unit = max(1, -(-dense // UNITS))
    size = dense // unit + len(costs) + 1  # rounded up, dense layers may take one more each
    best = np.zeros(size)
    chosen = []
    for name, layer in costs.items():
        sums = np.full((len(layer), size), np.inf)
        for number, (cost, distortion) in enumerate(zip(layer, distortions[name], strict=True)):
            step = -(-cost // unit)
            if step < size:
                sums[number, step:] = best[:size - step] + distortion
        chosen.append(sums.argmin(axis=0).astype(np.int16))
        best = sums.min(axis=0)
    place = size - 1 if budget == 1 else min(size - 1, int(budget * dense / unit + 1e-9))
    if not np.isfinite(best[place]):
        raise _too_small(costs, budget)
    place = int(np.flatnonzero(best[:place + 1] == best[place])[0])
    # best falls along the budgets; where it does, a new plan begins.
    steps = np.flatnonzero(np.isfinite(best) & (best < np.append(np.inf, best[:-1])))
    curve = [(min(1., float(step * unit / dense)), float(best[step])) for step in steps]
    numbers = []
    for (_, layer), choice in zip(reversed(costs.items()), reversed(chosen), strict=True):
        number = int(choice[place])
        numbers.append(number)
        place -= -(-layer[number] // unit)
    return numbers[::-1], curve


def _least(costs: Mapping[str, Sequence[int]]) -> float:
    """Share of the dense cost that the sparsest candidates have."""
    return sum(map(min, costs.values())) / sum(cost[0] for cost in costs.values())


def _too_small(costs: Mapping[str, Sequence[int]], budget: float) -> InputError:
    return InputError(f'budget {budget} is too small: with the sparsest patterns of all layers '
                      f'{_least(costs):.4f} of the cost is left')


def check_affordable(costs: Mapping[str, Sequence[int]], budget: float) -> None:
    """Raises InputError if the sparsest candidates already cost more than ``budget``."""
    dense = sum(cost[0] for cost in costs.values())
    if sum(map(min, costs.values())) > budget * dense * (1 + 1e-9):
        raise _too_small(costs, budget)


def check_budget(budget: float) -> float:
    """Raises InputError if ``budget`` is no number in (0, 1]."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        raise InputError(f'budget must be a share of the dense cost in (0, 1], got {budget!r}')
    return budget


def make_plan(kind: str, candidates: Mapping[str, Sequence[Pattern]],
              costs: Mapping[str, Sequence[int]], distortions: Mapping[str, Sequence[float]],
              budget: float) -> Plan:
    """The plan that :func:`solve` finds; the first candidate of each layer is the dense one."""
    numbers, curve = solve(costs, distortions, budget)
    choices = []
    for (name, patterns), number in zip(candidates.items(), numbers, strict=True):
        pattern = patterns[number]
        choices.append(Choice(name, None if pattern.is_dense else str(pattern),
                              costs[name][number], costs[name][0],
                              float(distortions[name][number])))
    every = {name: {str(pattern): float(value) for pattern, value in zip(
        patterns[1:], distortions[name][1:], strict=True)} for name, patterns in candidates.items()}
    prices = {name: dict(zip((_DENSE, *every[name]), costs[name], strict=True))
              for name in candidates}
    return Plan(tuple(choices), kind, budget, tuple(curve), every, prices)
