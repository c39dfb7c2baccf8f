"""Networks: the pruning literature's for small images, and torchvision's, timm's or your own by name.

>>> from chipnet.models import get_model
>>> sum(p.numel() for p in get_model("resnet20").parameters())
272474
"""

from chipnet.models._get import get_model, list_models
from chipnet.models._mobilenet import MobileNetV2
from chipnet.models._preresnet import PreResNet
from chipnet.models._resnet import ResNet
from chipnet.models._vgg import VGG
from chipnet.models._weights import load_weights

__all__ = ["VGG", "MobileNetV2", "PreResNet", "ResNet", "get_model", "list_models", "load_weights"]
