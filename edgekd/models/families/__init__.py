"""The families of networks, one file each; a new one is added to this tuple and nowhere else."""

from __future__ import annotations

from edgekd.models.families.base import Family
from edgekd.models.families.cifar import CIFAR_RESNET, WIDE_RESNET
from edgekd.models.families.efficientnet import EFFICIENTNET_B0
from edgekd.models.families.lenet import LENET5, LENET5_HALF
from edgekd.models.families.mnasnet import MNASNET
from edgekd.models.families.mobilenet import MOBILENETV2, MOBILENETV3
from edgekd.models.families.outside import CODE, TIMM
from edgekd.models.families.plain import PLAIN
from edgekd.models.families.published import PUBLISHED
from edgekd.models.families.regnet import REGNET_Y_400MF
from edgekd.models.families.resnet import BASIC, BOTTLENECK
from edgekd.models.families.shufflenet import SHUFFLENETV2
from edgekd.models.families.squeezenet import SQUEEZENET

FAMILIES: tuple[Family, ...] = (
    LENET5_HALF,
    LENET5,
    CIFAR_RESNET,
    WIDE_RESNET,
    MOBILENETV2,
    MOBILENETV3,
    SHUFFLENETV2,
    SQUEEZENET,
    MNASNET,
    EFFICIENTNET_B0,
    REGNET_Y_400MF,
    BASIC,
    BOTTLENECK,
    *PUBLISHED,
    PLAIN,
    TIMM,
    CODE,
)
"""Every family, in the order in which students are listed: the smallest kinds first."""
