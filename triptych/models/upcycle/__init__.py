"""Mixtures of experts with real weights, made from dense checkpoints: "sparse upcycling"
(Komatsuzaki et al. 2022, arXiv 2212.05055) without the training that follows there.
"""
