"""What a worker process needs at its first recording, done once: the process that workers are forked from imports this.

Loading a first model and writing a first table import some 1,300 modules (a second and a half of CPU). One thread: a pool
of threads would not survive the fork.
"""

import torch

import tzn.corpus.run
from tzn.corpus.table import Run, rows_of
from tzn.models.pretrained import pretrained_names

torch.set_num_threads(1)
tzn.corpus.run.keep_memory()
tzn.corpus.run.Recipe(pretrained_names()[0]).load()
rows_of({}, Run("", ""))
