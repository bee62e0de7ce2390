"""Network architectures, one a file: Flax modules on channels-last arrays.

The submodule names of every network are public: taps and edits address them.
"""

from jaxkd.nets.aux_head import AuxiliaryHead
from jaxkd.nets.batchnorm import BatchNorm
from jaxkd.nets.bert import BERT
from jaxkd.nets.clip import CLIPImageTower, CLIPTextTower
from jaxkd.nets.cnn_audio import FiveLayerCNNTrunk, ThreeLayerCNN
from jaxkd.nets.controller import Controller
from jaxkd.nets.decoder import CausalDecoder
from jaxkd.nets.denoisers import DenoisingMLP, DenoisingUNet
from jaxkd.nets.dual_head import DualHead
from jaxkd.nets.efficientnet import EfficientNet, efficientnet_variant
from jaxkd.nets.embeddings import (
  ModulatedProjection,
  UnitEmbedding,
)
from jaxkd.nets.factors import (
  Paraphraser,
  Translator,
)
from jaxkd.nets.fusenet import VGG16_WIDTHS, FuseNet, FuseNetBranch
from jaxkd.nets.fusion import CNNI
from jaxkd.nets.gate import DenseGateNet, Gate, GateNet
from jaxkd.nets.junctions import Concat, Identity
from jaxkd.nets.layers import Conv, Linear
from jaxkd.nets.lenet import LeNet5, LeNet5Trunk
from jaxkd.nets.masknet import MaskNet, MaskNet1d, MaskNet2d, apply_mask
from jaxkd.nets.mlp import MLP, MLPI, FusionMLP, MLPTrunk
from jaxkd.nets.mobilenet import MobileNetV2
from jaxkd.nets.modular import ModularMLP, ModularViT, check_harness
from jaxkd.nets.moe import MixtureOfExperts, TopKRouter
from jaxkd.nets.multimodal import (
  MaskedConcat,
  MLPHead,
  MultimodalMLP,
  MultimodalResNet,
  ResNetHead,
)
from jaxkd.nets.nac import (
  Mediator,
  ModularNAC,
  ModulatedLinear,
  ReadIn,
  ReadOut,
)
from jaxkd.nets.ofa import OFAProjector, OFAProjector1d, SeparableBlock
from jaxkd.nets.proxies import DenseProxy, Proxy1d, Proxy2d
from jaxkd.nets.recurrent import GRUDecoder
from jaxkd.nets.regressors import (
  Connector,
  FitNetRegressor,
  HintRegressor,
  VIDRegressor,
)
from jaxkd.nets.resizing import (
  TransposedConv,
)
from jaxkd.nets.resnet import ResNet, resnet_variant
from jaxkd.nets.reviewkd import (
  FusionBlock,
  ReviewFusion,
)
from jaxkd.nets.rotary import (
  DynamicScaling,
  LinearScaling,
  LlamaScaling,
  YarnScaling,
)
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
from jaxkd.nets.stages import Pool, Stage, StageCNN
from jaxkd.nets.static_embedding import StaticEmbedding
from jaxkd.nets.synthetic import SyntheticPairs
from jaxkd.nets.towers import (
  ImageTower,
  ProjectionHead,
  PrototypeClassifier,
  TextTower,
  TwoTowers,
)
from jaxkd.nets.transfer import (
  MGDGenerator,
  SimKDTransfer,
  reuse_classifier,
)
from jaxkd.nets.vit import VisionTransformer

__all__ = [
  "BERT",
  "CLIPImageTower",
  "CLIPTextTower",
  "CNNI",
  "DSCNNI",
  "MLP",
  "MLPI",
  "RAVDESS_AUDIO",
  "RAVDESS_VISUAL",
  "VGG16_WIDTHS",
  "VGGSOUND_AUDIO",
  "VGGSOUND_VISUAL",
  "AuxiliaryHead",
  "BatchNorm",
  "Branch",
  "BranchNet",
  "CausalDecoder",
  "Concat",
  "Connector",
  "Controller",
  "Conv",
  "ConvBranch",
  "DenoisingMLP",
  "DenoisingUNet",
  "DenseGateNet",
  "DenseProxy",
  "DualHead",
  "DynamicScaling",
  "EfficientNet",
  "FitNetRegressor",
  "FiveLayerCNNTrunk",
  "FuseNet",
  "FuseNetBranch",
  "FusionBlock",
  "FusionMLP",
  "GRUDecoder",
  "Gate",
  "GateNet",
  "HintRegressor",
  "Identity",
  "ImageTower",
  "LeNet5",
  "LeNet5Trunk",
  "Linear",
  "LinearScaling",
  "LlamaScaling",
  "MGDGenerator",
  "MLPHead",
  "MLPTrunk",
  "MaskNet",
  "MaskNet1d",
  "MaskNet2d",
  "MaskedConcat",
  "Mediator",
  "MixtureOfExperts",
  "MobileNetV2",
  "ModularMLP",
  "ModularNAC",
  "ModularViT",
  "ModulatedLinear",
  "ModulatedProjection",
  "MultimodalMLP",
  "MultimodalResNet",
  "OFAProjector",
  "OFAProjector1d",
  "Paraphraser",
  "Pool",
  "ProjectionHead",
  "PrototypeClassifier",
  "Proxy1d",
  "Proxy2d",
  "ReadIn",
  "ReadOut",
  "ResNet",
  "ResNetHead",
  "ReviewFusion",
  "SeparableBlock",
  "SimKDTransfer",
  "Stage",
  "StageCNN",
  "StaticEmbedding",
  "SyntheticPairs",
  "TextTower",
  "ThreeLayerCNN",
  "TopKRouter",
  "Translator",
  "TransposedConv",
  "TwoTowers",
  "UnitEmbedding",
  "VIDRegressor",
  "VisionTransformer",
  "YarnScaling",
  "apply_mask",
  "check_harness",
  "efficientnet_variant",
  "resnet_variant",
  "reuse_classifier",
]
