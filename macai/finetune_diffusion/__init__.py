"""Recipe to LoRA, U-Net or autoencoder, on the training loop of language models.

What a run leaves in the output folder: the LoRA's files, or `model/` in diffusers' layout, of the
weights with the best validation loss (without pictures to validate on: the last ones);
`recipe.toml` (every default written out), `metrics.jsonl`, `samples/`, `checkpoint.safetensors` (to
resume), `cache/` where latents need more than memory.
"""

from macai.finetune_diffusion.run import finetune_diffusion as finetune_diffusion
