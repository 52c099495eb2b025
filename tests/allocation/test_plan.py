import itertools
import json
import random

import pytest

from maxq_mm.allocation.plan import UNITS, Plan, check_affordable, make_plan, solve
from maxq_mm.functional.pattern import Pattern
from maxq_mm.utils.errors import InputError


def some(layers: int, most: int, seed: int):
    """Costs that fall and distortions that need not rise, of four candidates a layer."""
    draw = random.Random(seed)
    costs = {f'layer{i}': sorted((draw.randint(0, most) for _ in range(4)), reverse=True)
             for i in range(layers)}
    return costs, {name: [0., *(draw.random() for _ in range(3))] for name in costs}


def brute_force(costs, distortions, allowed):
    sums = [sum(distortions[name][i] for name, i in zip(costs, numbers, strict=True))
            for numbers in itertools.product(range(4), repeat=len(costs))
            if sum(costs[name][i] for name, i in zip(costs, numbers, strict=True)) <= allowed]
    return min(sums, default=None)


def value(table, numbers):
    return sum(row[i] for row, i in zip(table.values(), numbers, strict=True))


@pytest.mark.parametrize('seed', range(20))
def test_equals_brute_force(seed):
    costs, distortions = some(5, 50, seed)
    dense = sum(cost[0] for cost in costs.values())
    for budget in (0.1, 0.35, 0.5, 0.8, 1):
        best = brute_force(costs, distortions, budget * dense + 1e-9)
        if best is None:
            with pytest.raises(InputError, match=f'budget {budget} is too small'):
                check_affordable(costs, budget)
            with pytest.raises(InputError, match=f'budget {budget} is too small'):
                solve(costs, distortions, budget)
            continue
        check_affordable(costs, budget)
        numbers, _ = solve(costs, distortions, budget)
        assert value(distortions, numbers) == pytest.approx(best, abs=1e-12)
        assert value(costs, numbers) <= budget * dense + 1e-9


def test_large_costs_keep_the_budget_and_come_close():
    costs, distortions = some(6, 10**9, 1)
    dense = sum(cost[0] for cost in costs.values())
    for budget in (0.4, 0.6, 0.9):
        numbers, _ = solve(costs, distortions, budget)
        assert value(costs, numbers) <= budget * dense
        # A unit a layer is the most that rounding can take.
        tighter = brute_force(costs, distortions, (budget - 7 / UNITS) * dense)
        assert value(distortions, numbers) <= tighter


def test_more_budget_is_never_worse_and_the_curve_says_so():
    costs, distortions = some(8, 10**6, 2)
    curve = solve(costs, distortions, 1)[1]
    shares, least = zip(*curve, strict=True)
    assert list(shares) == sorted(shares)
    assert list(least) == sorted(least, reverse=True)
    assert least[-1] == 0
    for budget in (0.5, 0.7, 0.95):
        numbers, other = solve(costs, distortions, budget)
        assert other == curve
        last = [sum_ for share, sum_ in curve if share <= budget + 1 / UNITS][-1]
        assert value(distortions, numbers) == pytest.approx(last)


def test_equal_distortions_take_the_cheapest():
    numbers, _ = solve({'a': [8, 4, 2]}, {'a': [0., 0., 0.]}, 1)
    assert numbers == [2]


@pytest.mark.parametrize('budget', [0, -1, 1.1, float('nan'), True, '0.5', None])
def test_bad_budgets(budget):
    with pytest.raises(InputError, match='budget must be a share'):
        solve({'a': [1]}, {'a': [0.]}, budget)


def test_plan_says_what_it_is():
    patterns = [Pattern(1, 1), Pattern(2, 4), Pattern(1, 4)]
    plan = make_plan('macs', {'a.b': patterns, 'c': patterns[:2]},
                     {'a.b': [100, 50, 25], 'c': [20, 10]}, {'a.b': [0., 1., 3.], 'c': [0., 5.]},
                     0.4)
    assert plan.patterns == {'a.b': '1:4', 'c': None}
    assert plan.overrides == {'^a[.]b$': '1:4', '^c$': None}
    assert (plan.cost, plan.dense_cost, plan.distortion) == (45, 120, 3.)
    assert plan.share == 45 / 120
    assert plan.table == {'a.b': {'2:4': 1., '1:4': 3.}, 'c': {'2:4': 5.}}
    assert plan.curve == ((35 / 120, 8.), (45 / 120, 3.), (70 / 120, 1.), (1., 0.))
    assert '37.50% of the macs of 2 layers (budget 40.00%), predicted distortion 3' in str(plan)


def test_another_budget_from_what_was_measured():
    patterns = [Pattern(1, 1), Pattern(2, 4), Pattern(1, 4)]
    costs, distortions = some(6, 10**6, 3)
    given = dict.fromkeys(costs, patterns)
    costs, distortions = ({name: row[:3] for name, row in table.items()}
                          for table in (costs, distortions))
    plan = make_plan('bytes', given, costs, distortions, 0.9)
    for budget in (0.6, 1):
        other = make_plan('bytes', given, costs, distortions, budget)
        assert plan.at(budget) == other
        read = Plan.from_dict(json.loads(json.dumps(plan.as_dict())))
        assert read == plan
        assert read.at(budget) == other
    with pytest.raises(InputError, match='budget 0.0001 is too small'):
        plan.at(0.0001)
