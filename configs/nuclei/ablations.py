"""What each part of MaxQ is worth at 1:16: the same runs as sweep.py's MaxQ but for one setting."""
start = 'dense_mask_rcnn_r18.py'
config = 'maxq_mask_rcnn_r18.py'

methods = {
    'SR-STE': dict(axes=(), ramp=None),
    'MaxQ': dict(),
    'no filter query': dict(axes=('kernel', )),
    'no kernel query': dict(axes=('filter', )),
    'no query': dict(axes=()),
    'no ramp': dict(ramp=None),
    'linear ramp': dict(ramp=dict(type='linear', begin=0, end=5)),
    'cosine ramp': dict(ramp=dict(type='cosine', begin=0, end=5)),
    'half the ramp': dict(ramp=dict(type='cubic', begin=0, end=3)),
    'longer ramp': dict(ramp=dict(type='cubic', begin=0, end=7)),
    'largest stay dense': dict(order='largest'),
    'random stay dense': dict(order='random'),
}
runs = [dict(methods=list(methods), patterns=['1:16'], seeds=[0])]
