"""A checkpoint is a directory of tensors and JSON; nothing in it can run code.

shard-00001-of-00002.safetensors   the part of rank 0 of 2: `model.<name>` and `optimizer.<parameter>.<state>`,
                                   and what the model remembers of its lanes, `carry.<name>`
state.json                         everything that is not a tensor
manifest.json                      size and sha256 of every other file, and of itself; written last, so a directory
                                   without it is not a checkpoint

Any number of ranks can read it, sharded or not, whatever number wrote it.
"""
