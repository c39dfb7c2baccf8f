"""Networks: the pruning literature's for small images, and torchvision's, timm's or your own by name.

>>> from chipnet.lab.models import get_model
>>> sum(p.numel() for p in get_model("resnet20").parameters())
272474
"""

from chipnet.lab.models.mobilenet import MobileNetV2
from chipnet.lab.models.preresnet import PreResNet
from chipnet.lab.models.registry import get_model, list_models
from chipnet.lab.models.resnet import ResNet
from chipnet.lab.models.vgg import VGG
from chipnet.lab.models.weights import load_weights

__all__ = ["VGG", "MobileNetV2", "PreResNet", "ResNet", "get_model", "list_models", "load_weights"]
