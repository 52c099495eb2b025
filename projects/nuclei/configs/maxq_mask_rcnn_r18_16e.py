"""maxq_mask_rcnn_r18.py for twice as long, with a ramp that is longer in the same measure."""
_base_ = './maxq_mask_rcnn_r18.py'

maxq = _base_.maxq
maxq.ramp.update(end=10)
custom_hooks = [maxq, *_base_.custom_hooks[1:]]

max_epochs = 16
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_epochs)
work_dir = 'work_dirs/nuclei_16e'
