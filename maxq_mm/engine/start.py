"""What a training with MaxQ starts from: the raw weights and settings of a loaded checkpoint."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..nn.concerns import masked_already, rescaled
from ..nn.settings import SparsitySettings
from ..nn.sparsify import SparsityHandle

# What checkpoints that are older than a setting were trained with.
_BEFORE = dict(predictors=True)
_RAMP_BEFORE = dict(fade=False)


@dataclass(frozen=True)
class Loaded:
    """What a loaded checkpoint leaves for a training that may follow.

    ``raw``: raw weights by state-dict key; ``averaged``: the model has its raw weights already,
    and they belong into the EMA model alone; ``settings``: of each hook it was trained with, None
    if nothing was loaded.
    """

    raw: dict[str, Tensor] = field(default_factory=dict)
    averaged: bool = False
    settings: list[dict] | None = None

    @torch.no_grad()
    def restore(self, handle: SparsityHandle, models: Iterable[nn.Module]) -> list[str]:
        """Put the raw weights of the handle's layers into ``models``; says which do not fit."""
        raw = {key: self.raw[key] for name in handle.names
               if (key := f'{name}.weight') in self.raw}
        said = []
        for model in models:
            state = model.state_dict()
            unfit = [key for key, weight in raw.items() if state[key].shape != weight.shape]
            if unfit:
                said.append(f'{len(unfit)} raw weights of the checkpoint do not fit the model, '
                            f'such as {unfit[0]}')
            for key in raw.keys() - set(unfit):
                state[key].copy_(raw[key])
        return said

    @torch.no_grad()
    def unscale(self, handle: SparsityHandle,
                averaged: nn.Module | None) -> tuple[list[str], list[str]]:
        """Go on from weights that are N:M already, as they are, but for the checkpoint's raw ones.

        Returns the names of these layers, and a sentence on those of which it could not be.
        """
        layers = {name: layer for name, layer in masked_already(handle.active).items()
                  if f'{name}.weight' not in self.raw}
        done = handle.unscale(layers)
        if averaged is not None:
            for name in done:
                averaged.get_submodule(name).weight.copy_(layers[name].weight)
        return done, rescaled(
            {name: layer for name, layer in layers.items() if name not in done},
            len(handle.active), 'start from raw weights (the unfolded checkpoint), or without '
            'queries (axes=())')

    def changes(self, settings: SparsitySettings, place: int, hooks: int) -> list[str]:
        """What a resumed training does otherwise: the hook at ``place`` of several ``hooks``."""
        if self.settings is None:
            return []
        if not self.settings:
            return [f'resumed with a MaxQHook ({settings.pattern}) from a checkpoint of a training '
                    'without one: its weights are raw ones from now on, and the ramp is where the '
                    'epoch or iteration puts it']
        if hooks != len(self.settings):
            return [f'resumed with {hooks} MaxQHooks from a checkpoint of {len(self.settings)}']
        before = {**_BEFORE, **self.settings[place]}
        before['ramp'] = {**_RAMP_BEFORE, **before['ramp']}
        changed = [f'{name} {before.get(name)} -> {value}'
                   for name, value in settings.as_dict().items() if before.get(name) != value]
        return [f'resumed with other settings: {", ".join(changed)}'] if changed else []
