"""Images in Arrow files with a hashed manifest: written once, read at random, trusted after checks only.

manifest.json        what the set is, with the sha256 of index, shards and itself; written last
index.arrow          what is known of every image but its pixels, in order
shard-000000.arrow   pixels (and once more the rest) of so many images each
left_out.jsonl       images that could not be read, and why; only where there are any; for people, without a hash
unfinished/          while a set is written, see `raydet.data.convert`
"""
