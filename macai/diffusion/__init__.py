"""Stable Diffusion in MLX: modules and paths are named as in diffusers; arrays are NHWC inside."""
