"""Evaluation: embeddings in, numbers with a stated definition out.

`verification`, `open_set` and `identification` know nothing of models or devices; they
take NumPy arrays. `results` holds what a protocol returns.
"""
