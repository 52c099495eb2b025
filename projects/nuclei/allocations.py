"""Ways to give each layer a pattern at the same kept multiply-accumulates, to compare plans with.

Each returns pattern by layer (None: dense). Costs and candidates as in maxq_mm.allocation.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from maxq_mm.allocation.plan import make_plan
from maxq_mm.functional.masks import keep_mask
from maxq_mm.functional.pattern import Pattern
from maxq_mm.nn.predictors import PREDICTORS

Candidates = Mapping[str, Sequence[Pattern]]
Costs = Mapping[str, Sequence[int]]
Patterns = dict[str, str | None]


def uniform(candidates: Candidates, pattern: str, predictors: bool = True) -> Patterns:
    """One pattern for all layers, or for all but those that predict."""
    return {name: pattern if predictors or name.rsplit('.', 1)[-1] not in PREDICTORS else None
            for name in candidates}


def by_magnitude(model: nn.Module, candidates: Candidates, costs: Costs,
                 budget: float) -> Patterns:
    """Least sum of squares of all pruned weights, as global magnitude pruning has it."""
    lost = {}
    for name, patterns in candidates.items():
        weight = model.get_submodule(name).weight.detach()
        lost[name] = [float((weight * ~keep_mask(weight, pattern)).square().sum())
                      for pattern in patterns]
    return make_plan('macs', candidates, costs, lost, budget).patterns


def by_erk(model: nn.Module, candidates: Candidates, costs: Costs, budget: float) -> Patterns:
    """Erdos-Renyi-Kernel (arXiv 1911.11134): densities proportional to the sum of a weight's
    dimensions over their product, as much as the budget allows, each the next lower pattern."""
    def density(name: str) -> float:
        weight = model.get_submodule(name).weight
        return sum(weight.shape) / weight.numel()

    allowed = budget * sum(cost[0] for cost in costs.values())

    def at(scale: float) -> dict[str, int]:
        """Number of each layer's candidate."""
        numbers = {}
        for name, patterns in candidates.items():
            kept = [pattern.n / pattern.m for pattern in patterns]
            fitting = [k for k in kept if k <= scale * density(name)]
            numbers[name] = kept.index(max(fitting, default=min(kept)))
        return numbers

    low, high = 0., 1 / min(map(density, candidates))
    for _ in range(60):
        middle = (low + high) / 2
        total = sum(costs[name][number] for name, number in at(middle).items())
        low, high = (middle, high) if total <= allowed else (low, middle)
    return {name: None if candidates[name][number].is_dense else str(candidates[name][number])
            for name, number in at(low).items()}


def share(patterns: Patterns, candidates: Candidates, costs: Costs) -> float:
    """Kept multiply-accumulates over dense ones."""
    kept = 0
    for name, pattern in patterns.items():
        number = 0 if pattern is None else list(map(str, candidates[name])).index(pattern)
        kept += costs[name][number]
    return kept / sum(cost[0] for cost in costs.values())
