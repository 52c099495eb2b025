"""Mask R-CNN R50-FPN of full width on the nuclei, dense, from scratch, in bfloat16 on CPUs."""
_base_ = './dense_mask_rcnn_r18.py'

channels = 256
model = dict(
    backbone=dict(depth=50, base_channels=64),
    neck=dict(in_channels=[256, 512, 1024, 2048], out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        bbox_head=dict(in_channels=channels, fc_out_channels=1024),
        mask_roi_extractor=dict(out_channels=channels),
        mask_head=dict(num_convs=4, in_channels=channels, conv_out_channels=channels)))
optim_wrapper = dict(type='CPUAmpOptimWrapper')

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_epochs)
work_dir = 'work_dirs/nuclei_dense_r50'
