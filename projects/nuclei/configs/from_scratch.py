"""SR-STE and MaxQ from the first weights on, for as long as the dense start of the other specs."""
start = 'dense_mask_rcnn_r18.py'  # trained in the same way
config = 'maxq_mask_rcnn_r18.py'

everywhere = dict(include=(), predictors=True,
                  ramp=dict(type='cubic', begin=0, end=12, by_epoch=True))
methods = {
    'SR-STE, from scratch': dict(everywhere, axes=(), ramp=None),
    'MaxQ, from scratch': everywhere,
}
as_dense = {
    'optim_wrapper.optimizer.lr': 1e-3,
    'train_cfg.max_epochs': 20,
    'train_cfg.val_interval': 5,
    'param_scheduler.1.T_max': 20,
}
common = dict(patterns=['1:16'], seeds=[0, 1, 2], from_scratch=True, options=as_dense)
runs = [dict(common, methods=list(methods))]
