"""Attention kernels for TPUs and GPUs."""
