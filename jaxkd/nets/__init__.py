"""Network architectures, one a file: Flax modules on channels-last arrays.

The submodule names of every network are public: taps and edits address them.
"""

from jaxkd.nets.batchnorm import BatchNorm
from jaxkd.nets.cnn_audio import FiveLayerCNNTrunk, ThreeLayerCNN
from jaxkd.nets.fusenet import VGG16_WIDTHS, FuseNet, FuseNetBranch
from jaxkd.nets.fusion import CNNI
from jaxkd.nets.gate import DenseGateNet, Gate, GateNet
from jaxkd.nets.junctions import Concat, Identity
from jaxkd.nets.layers import Conv, Linear
from jaxkd.nets.lenet import LeNet5, LeNet5Trunk
from jaxkd.nets.masknet import MaskNet, MaskNet1d, MaskNet2d, apply_mask
from jaxkd.nets.mlp import MLP, MLPI, FusionMLP, MLPTrunk
from jaxkd.nets.seqnets import (
  DSCNNI,
  RAVDESS_AUDIO,
  RAVDESS_VISUAL,
  VGGSOUND_AUDIO,
  VGGSOUND_VISUAL,
  Branch,
  BranchNet,
  ConvBranch,
)

__all__ = [
  "CNNI",
  "DSCNNI",
  "MLP",
  "MLPI",
  "RAVDESS_AUDIO",
  "RAVDESS_VISUAL",
  "VGG16_WIDTHS",
  "VGGSOUND_AUDIO",
  "VGGSOUND_VISUAL",
  "BatchNorm",
  "Branch",
  "BranchNet",
  "Concat",
  "Conv",
  "ConvBranch",
  "DenseGateNet",
  "FiveLayerCNNTrunk",
  "FuseNet",
  "FuseNetBranch",
  "FusionMLP",
  "Gate",
  "GateNet",
  "Identity",
  "LeNet5",
  "LeNet5Trunk",
  "Linear",
  "MLPTrunk",
  "MaskNet",
  "MaskNet1d",
  "MaskNet2d",
  "ThreeLayerCNN",
  "apply_mask",
]
