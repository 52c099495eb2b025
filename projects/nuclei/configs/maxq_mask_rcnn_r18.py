"""MaxQ 2:4 on the nuclei, from the trained dense detector: train dense_mask_rcnn_r18.py first."""
_base_ = './dense_mask_rcnn_r18.py'

maxq = dict(
    type='MaxQHook',
    pattern='2:4',
    include=('backbone', ),
    ramp=dict(type='cubic', begin=0, end=5, by_epoch=True),
    axes=('filter', 'kernel'),
    temperature=1e-2,
    decay=2e-4)
custom_hooks = [maxq, *_base_.custom_hooks]

load_from = 'work_dirs/nuclei_dense/epoch_20.pth'
max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_epochs)
work_dir = 'work_dirs/nuclei'
