"""A small model and data set for tests with a real Runner."""

import copy
import itertools

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

import maxq_mm  # noqa: F401  (registers the hooks)


class Images(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(x=torch.randn(8, 6, 6, generator=generator), y=index % 3)


class Classifier(BaseModel):
    """Draws random numbers in training, as detectors do."""

    def __init__(self, conv=nn.Conv2d, dropout=0.3, with_cp=False, norm_eval=False):
        super().__init__()
        self.dropout, self.with_cp, self.norm_eval = dropout, with_cp, norm_eval
        # Without a bias, of which batch norm leaves a gradient of nothing but rounding errors.
        self.backbone = nn.Sequential(conv(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                                      conv(16, 16, 1))
        self.head = nn.Linear(16, 3)

    def train(self, mode=True):
        super().train(mode)
        if self.norm_eval:
            self.backbone[1].eval()
        return self

    def forward(self, x, y=None, mode='tensor'):
        x = torch.stack(list(x)).to(self.head.weight.dtype)
        if self.with_cp and mode == 'loss':
            features = checkpoint(self.backbone, x.requires_grad_(), use_reentrant=False)
        else:
            features = self.backbone(x)
        features = features.mean(dim=(2, 3))
        if mode == 'loss':
            features = nn.functional.dropout(features, self.dropout)
            y = torch.as_tensor(y, device=features.device)
            return dict(loss=nn.functional.cross_entropy(self.head(features), y))
        logits = self.head(features)
        return logits if mode == 'tensor' else list(logits)


class Total(BaseMetric):
    """The sum of all logits: differs as soon as a weight does."""

    def process(self, data_batch, data_samples):
        self.results += [float(sample.double().sum()) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(total=sum(results))


_numbers = itertools.count()


def collate(batch):
    return dict(x=[item['x'] for item in batch], y=[item['y'] for item in batch])


def make_runner(work_dir, hooks, model=None, epochs=4, loop=None, saving=None, batch_size=4,
                runner_type=Runner, **settings) -> Runner:
    torch.manual_seed(1)

    def loader(shuffle):
        return dict(batch_size=batch_size, num_workers=0, dataset=Images(),
                    sampler=dict(type='DefaultSampler', shuffle=shuffle),
                    collate_fn=collate)

    settings.setdefault('optim_wrapper', dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-3)))
    return runner_type(
        model=model or Classifier(), work_dir=str(work_dir),
        train_dataloader=loader(True), val_dataloader=loader(False), test_dataloader=loader(False),
        train_cfg=loop or dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        val_cfg=dict(), test_cfg=dict(), val_evaluator=[Total()], test_evaluator=[Total()],
        custom_hooks=copy.deepcopy(hooks),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=2),
                           checkpoint=saving or dict(type='CheckpointHook', interval=1)),
        randomness=dict(seed=0), log_level='WARNING', default_scope='mmengine',
        experiment_name=f'test-{next(_numbers)}', **settings)
