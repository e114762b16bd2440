"""A checkpoint is a directory of tensors and JSON; nothing in it can run code.

shard-00001-of-00002.safetensors   what rank 0 of 2 held of `model.<name>` and `optimizer.<parameter>.<state>`
state.json                         everything that is not a tensor
manifest.json                      size and sha256 of every other file, and of itself; written last, so a directory
                                   without it is not a checkpoint

It is read by any number of ranks, sharded or not, whatever number wrote it.
"""
