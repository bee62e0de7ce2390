"""Optional packages: what each extra gives, and one message when it is absent.

An extra is a group of optional packages, `pip install "jaxkd[report]"`. The
library imports such a package in one way only, through `need`.
"""

import dataclasses
import importlib
import types

from jaxkd.errors import ConfigError, did_you_mean


class MissingExtra(ConfigError, ImportError):
  """An optional package that the request needs is not installed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extra:
  """An optional group of packages.

  Attributes:
    modules: the modules that must be importable for the extra to be there.
    gives: what a user can do with it, for `jaxkd doctor`.
    what: the subject of the message when it is absent ("this plot").
  """

  modules: tuple[str, ...]
  gives: str
  what: str


EXTRAS = {
  "report": Extra(
    modules=("matplotlib", "jinja2"),
    gives="plots and the HTML report of a run or a study",
    what="this plot",
  ),
  "text": Extra(
    modules=("tokenizers", "sentencepiece"),
    gives="subword tokenizers (bytes need no extra)",
    what="this tokenizer",
  ),
  "hub": Extra(
    modules=("huggingface_hub",),
    gives="weights from and to the Hugging Face Hub",
    what="the Hub",
  ),
  "vision": Extra(
    modules=("dm_pix", "augmax", "PIL"),
    gives="image files; colour and box-aware image augmentation",
    what="this image",
  ),
  "audio": Extra(
    modules=("soundfile",),
    gives="audio files other than WAV",
    what="this audio file",
  ),
  "tf": Extra(
    modules=("tensorflow",),
    gives="preparing TFDS datasets and exporting a SavedModel",
    what="this step",
  ),
  "onnx": Extra(
    modules=("jax2onnx", "onnxruntime"),
    gives="exporting ONNX and running it",
    what="ONNX",
  ),
  "bench": Extra(
    modules=("torch",),
    gives="the peers that the benchmarks measure beside jaxkd",
    what="this benchmark",
  ),
  "cuda12": Extra(
    modules=("jax_cuda12_plugin",),
    gives="NVIDIA GPUs with CUDA 12",
    what="this device",
  ),
  "cuda13": Extra(
    modules=("jax_cuda13_plugin",),
    gives="NVIDIA GPUs with CUDA 13",
    what="this device",
  ),
  "tpu": Extra(modules=("libtpu",), gives="Google TPUs", what="this device"),
  "wandb": Extra(
    modules=("wandb",),
    gives="metrics to Weights & Biases, on request",
    what="this tracker",
  ),
  "trackio": Extra(
    modules=("trackio",),
    gives="metrics to a local Trackio database, on request",
    what="this tracker",
  ),
  "mlflow": Extra(
    modules=("mlflow",),
    gives="metrics to a local MLflow database, on request",
    what="this tracker",
  ),
}


def need(
  module: str, *, extra: str, what: str | None = None
) -> types.ModuleType:
  """Imports an optional module, or says in one line how to install it.

  Args:
    module: the module's dotted name, such as "matplotlib.figure".
    extra: the extra of jaxkd that installs it.
    what: what needs it, the subject of the message; by default the extra's.

  Returns:
    The imported module.

  Raises:
    MissingExtra: the package is not installed, or is and cannot be imported
      (a `ConfigError` and an `ImportError`).
    ConfigError: jaxkd has no such extra.
  """
  if extra not in EXTRAS:
    raise ConfigError(
      f"jaxkd has no extra {extra!r}{did_you_mean(extra, EXTRAS)}"
      f" (it has {', '.join(EXTRAS)})"
    )
  package = module.partition(".")[0]
  try:
    return importlib.import_module(module)
  except ImportError as error:
    subject = what or EXTRAS[extra].what
    message = f'{subject} needs {package}: pip install "jaxkd[{extra}]"'
    if getattr(error, "name", None) != package:
      message += f" (what is installed fails to import: {error})"
    raise MissingExtra(message) from error
