"""What a trained net sees in images, computed once and kept: to train layers on, to choose a net by, to find wrong labels with.

backbone    a net without its last layer, and what its features depend on
store       features on the disk, in the cache folder
compute     features of a split: what is missing is computed, on any number of processes
head        the last layer as a net of its own, which is trained on features
"""
