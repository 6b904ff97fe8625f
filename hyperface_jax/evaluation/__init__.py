"""Evaluation: embeddings in, numbers with a stated definition out.

Metrics, of arrays alone; they know nothing of models (nearest uses JAX):

    similarity       cosines of embeddings, for few pairs and for millions
    verification     1:1: k-fold accuracy, a threshold chosen elsewhere
    roc              TAR at a FAR, EER, area, from scored pairs
    open_set         the angular criterion of the SphereFace papers
    identification   1:N, closed and open
    distractors      rank-k among strangers: MegaFace's and TinyFace's rules
    templates, ijb   images -> media -> templates; the files of IJB-B and IJB-C
    intervals        over folds, and by a bootstrap over people
    groups           error rates by group at one threshold
    nearest          the nearest rows of a gallery, exact; faiss_index: by an index
    auditing         who is twice in a set, what is mislabelled; sub_centres: by theirs

From images to these:

    embedder         a network with its weights: images -> embeddings (forward: jitted)
    embedded         a test set with its embeddings
    stored           embeddings kept in a folder; embedding_files: in one file
    test_sets        opens a test set by what a command line says
    protocols        the protocols by name; results: what they return
"""
