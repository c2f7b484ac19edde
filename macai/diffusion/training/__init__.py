"""What training Stable Diffusion is made of: pictures, sizes, noise, losses. Pure functions.

The loop is that of language models, `macai.train.loop`; `macai.finetune_diffusion` puts both
together.
"""
