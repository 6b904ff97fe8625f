"""Records, builders, pairs and the pipeline: where Grain and TFDS are known."""
