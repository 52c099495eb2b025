"""What a MaxQ layer holds beside its dense twin, in one object that leaving sparsity deletes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import ref

from torch import Tensor

from .settings import MaskSettings

if TYPE_CHECKING:
    from .sparsify import SparsityHandle


@dataclass
class LayerState:
    """The state of one layer; none of it goes into a state dict.

    Attributes:
        settings: what the mask is made with.
        dense_reason: why the layer acts as a dense one; None if it is sparse.
        built: constructed as a MaxQ layer (``conv_cfg``), with settings of its own.
        dense_fraction: share of blocks, in [0, 1], that are not N:M yet.
        fade: pruned weights are multiplied by it instead, and all blocks are N:M.
        as_stored: ``weight`` holds effective values (:mod:`.stored`), until it is trained.
        keep: the fixed keep mask, once it is chosen.
        effective: the effective weight, like ``weight``; None until it is needed.
        source: what ``effective`` was computed from; None where it has to be computed anew.
        called: it has run; a gradient of a layer that has not comes from past its mask.
        compiled: torch.compile has traced it: compiled code cannot ask whether the raw weight has
            changed, so that the effective one follows as soon as the layer is told so.
        owner: the handle that steers it.
    """

    settings: MaskSettings
    dense_reason: str | None
    built: bool = False
    dense_fraction: float = 0.
    fade: bool = False
    as_stored: bool = False
    keep: Tensor | None = None
    effective: Tensor | None = None
    source: tuple | None = None
    called: bool = False
    compiled: bool = False
    owner: ref | None = None

    @property
    def handle(self) -> 'SparsityHandle | None':
        """What steers the layer, while it lives."""
        return None if self.owner is None else self.owner()

    def __getstate__(self) -> dict:
        """Copies carry nothing that is derived, and nobody steers them."""
        return {**self.__dict__, 'effective': None, 'source': None, 'owner': None}
