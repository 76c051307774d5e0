"""Any of torchvision's classification models, by its name there: `resnet50`, `convnext_tiny`, …

Input RGB as of the model's default weights (224×224 for most). Published files fit as they are,
their classifier of 1,000 classes left out.
"""

import re

from torch import nn

from .base import PretrainedBackbone

CLASSES = 1000
# what else a builder needs to know: nothing beside the logits, and how torchvision's files were
# trained; transform_input undoes ImageNet's normalisation for the two that were not
ARGUMENTS = dict(aux_logits=False, init_weights=False, transform_input=True)
AUXILIARY = re.compile(r'(AuxLogits|aux1|aux2)\.')
# densenet's files are of a time when a module's name could hold a point
DENSENET = re.compile(r'(denselayer\d+\.(?:norm|conv))\.([12]\.)')


class TorchvisionModel(PretrainedBackbone):
    """`net`, without its last layer; or with it and `dim` outputs, for a file that has as many.

    `size` is another input size, (height, width): smaller is faster.
    """

    def __init__(self, name, dim=None, size=None):
        from torchvision import models

        facts = models.get_model_weights(name).DEFAULT.transforms()
        size = facts.crop_size * 2 if size is None else size
        if not isinstance(size, (list, tuple)) or [type(side) for side in size] != [int, int]:
            raise ValueError(f'backbone {name}: size is (height, width), not {size!r:.80}')
        if dim is not None and (type(dim) is not int or dim < 1):
            raise ValueError(f'backbone {name}: dim is a whole number, not {dim!r:.80}')
        super().__init__(name, dim=dim, size=list(size))
        self.size = tuple(size)
        mean, deviation = ([255 * value for value in values] for values in (facts.mean, facts.std))
        self.set_normalisation(mean, deviation)
        arguments = {'vit': {'image_size': size[0]}, 'maxvit': {'input_size': self.size}}
        arguments |= dict.fromkeys(('googlenet', 'inception'), ARGUMENTS)
        arguments = arguments.get(name.split('_')[0], {})
        self.net = models.get_model(name, weights=None, num_classes=dim or CLASSES, **arguments)
        kinds, layers = (nn.Linear, nn.Conv2d), self.net.named_modules()
        self.classifier, last = [item for item in layers if isinstance(item[1], kinds)][-1]
        self.dim = dim or last.weight.shape[1]
        if dim is None:
            self.net.set_submodule(self.classifier, nn.Identity())

    def encode(self, faces):
        return self.net(faces)

    def name_here(self, published):
        """torchvision's names below `net`, without the training's extra heads."""
        name = DENSENET.sub(r'\1\2', published.removeprefix('net.'))
        dropped = self.config['dim'] is None and name.startswith(f'{self.classifier}.')
        return None if AUXILIARY.match(name) or dropped else f'net.{name}'


def names() -> list[str]:
    """torchvision's classification models."""
    from torchvision import models  # here, so that the other backbones do without

    return models.list_models(module=models)
