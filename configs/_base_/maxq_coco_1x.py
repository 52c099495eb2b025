"""MaxQ for mmdet's 1x schedules on COCO (12 epochs, learning rate drops at 8 and 11)."""
custom_imports = dict(imports=['maxq_mm'], allow_failed_imports=False)

maxq = dict(
    type='MaxQHook',
    pattern='2:4',  # keep 2 of every 4 consecutive input channels
    include=('backbone', ),  # prefixes of the modules to make sparse
    exclude=(),  # prefixes to leave dense within them
    overrides={},  # regex of module names -> another pattern, or None for dense
    # Share of blocks still dense: 1 at epoch 0, 0 from epoch 7 on, one epoch before the first drop.
    ramp=dict(type='cubic', begin=0, end=7, by_epoch=True),
    axes=('filter', 'kernel'),  # scale kept weights by rank in their filter and kernel position
    temperature=1e-2,  # softness of that ranking, in units of the weights
    decay=2e-4)  # pull of pruned weights to zero (SR-STE's lambda)
custom_hooks = [maxq]

# Masks rescale the weights, so the backbone's batch norm learns its statistics: over all GPUs.
sync_bn = 'torch'
