"""Images in Arrow files with a hashed manifest: written once, read at random, trusted only after checks.

manifest.json        description of the set, with the sha256 of index, shards and itself; written last
index.arrow          everything about every image except its pixels, in order
shard-000000.arrow   pixels (and a copy of the index entries) of a fixed number of images
left_out.jsonl       images that could not be read, and why; only if there are any; for humans, without a hash
unfinished/          work in progress while a set is written, see `raydet.data.convert`
"""
