"""Faster R-CNN R50-FPN, 1x on COCO, backbone to 1:4 with MaxQ."""
_base_ = './maxq_faster_rcnn_r50.py'

maxq = _base_.maxq
maxq.update(pattern='1:4')  # keep 1 of every 4 consecutive input channels
custom_hooks = [maxq]
