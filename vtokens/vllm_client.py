"""The short name of `vtokens.serving.vllm_client`, for serving programs."""

from vtokens.serving.vllm_client import Client, encode_tensor, read_embedding

__all__ = ['Client', 'encode_tensor', 'read_embedding']
