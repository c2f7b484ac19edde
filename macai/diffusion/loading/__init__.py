"""Stable Diffusion checkpoints of any kind, opened without torch and written for diffusers."""

from macai.diffusion.loading.checkpoint import Checkpoint as Checkpoint
from macai.diffusion.loading.checkpoint import open_checkpoint as open_checkpoint
from macai.diffusion.loading.save import Models as Models
from macai.diffusion.loading.save import save_folder as save_folder
