"""`raydet data check`: find problems of a data set image by image.

No pixels are kept, only every image's id, size, names of constant modalities, 16 bytes of pixel hash and 8 of
difference hash per modality, alignment per pair of modalities, and findings: memory grows with the number of images,
not their size.
"""
