"""The learning rate over a training, and which weights decay."""
import math


def warmup_cosine(progress, warmup):
    """Factor on the learning rate at a fraction of the training: linear from 0 to 1 over `warmup`,
    then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / max(1 - warmup, 1e-9), 1)))


def split_weight_decay(module, weight_decay):
    """Optimizer groups: decay for matrices and convolutions, none for norms and biases."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [{'params': [p for p in parameters if p.ndim > 1], 'weight_decay': weight_decay},
            {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.}]
