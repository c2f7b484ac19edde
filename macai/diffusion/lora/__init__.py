"""LoRA for Stable Diffusion: any program's file in, applied or fused, trained ones out.

`names` says what a layer is called elsewhere, `formats` reads a file for a model, `updates` holds
what a file says of one layer, `layers` and `apply` put it into the model, `save` writes files.
"""
