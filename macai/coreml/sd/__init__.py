"""Stable Diffusion to Core ML, as Apple's Swift package ml-stable-diffusion loads it."""
