# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %%
# On Colab this installs jaxkd beside the JAX that is there; no restart.
import sys

from IPython import get_ipython

if "google.colab" in sys.modules:
  get_ipython().run_line_magic("pip", "install -q jaxkd")

# %% [markdown]
# # MST-Distill: a mixture of specialised teachers
#
# A student that only **sees** learns from networks that also, or only,
# **hear** ([arXiv:2507.07015](https://arxiv.org/abs/2507.07015)). Which teacher
# helps differs by sample, so the method trains in three stages:
#
# 1. `collaborate`: the multimodal teacher, the other modality's network (`aux`)
#    and the student learn from labels and from each other.
# 2. `specialise`: small soft masks inside the frozen teacher and aux pull their
#    outputs towards the student's. Each mask makes one specialised teacher.
# 3. `distil`: a gate picks teachers for every sample, and the student learns
#    from them and from labels.
#
# Everything below runs on a CPU in a minute or two; the data come with jaxkd.

# %%
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, Markdown, display

import jaxkd
from jaxkd import data, methods, nets
from jaxkd.data import pipeline
from jaxkd.network import Network

# %% [markdown]
# ## The task
# 8x8 digits that lost most of their energy, each paired with the same digit
# spoken by a voice of its own split. There are 300 training pairs.

# %%
task = data.AVDigits()
splits = task.splits(0)
batch = next(pipeline.batches(splits.train, 8))

figure, axes = plt.subplots(2, 8, figsize=(10, 3))
for column in range(8):
  axes[0, column].imshow(batch["image"][column, ..., 0], cmap="gray")
  axes[0, column].set_title(batch["label"][column])
  axes[1, column].imshow(batch["audio"][column].T, origin="lower")
for axis in axes.flat:
  axis.axis("off")
plt.show()

# %% [markdown]
# ## The networks and the method
# A network names the batch entries that it reads. The masks go on hidden layers
# of the teacher and of aux, by their paths. The control `no_kd` is the same
# student, trained on labels alone for as many epochs.

# %%
student = Network(nets.MLP(), ("image",))
aux = Network(nets.MLP(), ("audio",))
teacher = Network(nets.FusionMLP(), ("image", "audio"))
method = methods.MSTDistill(
  student=student,
  aux=aux,
  teacher=teacher,
  teacher_layers=("fc1", "fc2"),
  aux_layers=("fc2", "fc3"),
  epochs_s1=20,
  epochs_s2=10,
  epochs=50,
  s1_lr=1e-3,
  s2_lr=1e-3,
  lr=1e-3,
)
no_kd = methods.Supervised(student=student, epochs=70, lr=1e-3)
workdir = tempfile.mkdtemp()
run = {"controls": {"no_kd": no_kd}, "seeds": (0, 1, 2), "workdir": workdir}
result = jaxkd.fit(method, task, **run)

# %%
# Test accuracies with 95% intervals over seeds, who was chosen, and why.
display(Markdown(result.table()))
print(result.shares())
for path in result.plot().values():
  if path.suffix == ".png":
    display(Image(path))

# %% [markdown]
# ## Taps and edits
# A **tap** reads a submodule's output, an **edit** replaces it, and neither
# touches the model or its frozen parameters: this is how a mask gets into a
# teacher. Here half of a teacher's hidden layer is silenced.

# %%
variables = teacher.init(jax.random.key(0), batch)
plain, _ = teacher.apply(variables, batch, taps=("fc1",))
print("tap fc1:", plain.taps["fc1"].shape)
silence = {"fc1": lambda x: x.at[:, :18].set(0)}
edited, _ = teacher.apply(variables, batch, edits=silence)
print("logits moved by", np.abs(edited.logits - plain.logits).mean())

# %% [markdown]
# ## Resuming
# The same call on the same folder goes on where it stopped, bit by bit; here
# everything is finished, so the numbers come back at once. Another method or
# task in this folder is refused, with what differs.

# %%
again = jaxkd.fit(method, task, **run)
print("same numbers:", again.summary["metrics"] == result.summary["metrics"])
