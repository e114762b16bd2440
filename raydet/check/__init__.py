"""`raydet data check`: what is wrong with a set, found image by image.

No pixel is kept. Kept of every image are its id, its size, the names of its constant modalities, 16 bytes of pixel
hash and 8 of difference hash per modality, its alignment per pair of modalities, and its findings: memory grows with
the number of images, not with their size.
"""
