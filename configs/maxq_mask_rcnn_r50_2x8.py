"""Mask R-CNN R50-FPN, 1x on COCO, backbone to 2:8 with MaxQ."""
_base_ = './maxq_mask_rcnn_r50.py'

maxq = _base_.maxq
maxq.update(pattern='2:8')  # keep 2 of every 8 consecutive input channels
custom_hooks = [maxq]
