"""Faster R-CNN R50-FPN, 1x on COCO, backbone to 2:4 with MaxQ."""
_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    './_base_/maxq_coco_1x.py',
]

# Only the stem (3 input channels, dense in any case) stays frozen: stage 1 must be able to heal.
model = dict(backbone=dict(frozen_stages=0, norm_eval=False))
