"""1:8 in a Mask R-CNN R50-FPN of full width, from dense_mask_rcnn_r50.py: fading, no queries."""
_base_ = './dense_mask_rcnn_r50.py'

maxq = dict(
    type='MaxQHook',
    pattern='1:8',
    include=(),
    ramp=dict(type='cubic', begin=0, end=5, by_epoch=True, fade=True),
    axes=(),
    decay=2e-4)
custom_hooks = [maxq, *_base_.custom_hooks]

load_from = 'work_dirs/nuclei_dense_r50/epoch_12.pth'
max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_epochs)
work_dir = 'work_dirs/nuclei_r50'
