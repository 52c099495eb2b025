"""Plans: which layer of a trained detector can afford which N:M pattern, and pruning by them.

From a few images and without training. Needs mmdet; training imports nothing of it.
"""

from .allocate import allocate
from .plan import Plan
from .prune import prune

__all__ = ['Plan', 'allocate', 'prune']
