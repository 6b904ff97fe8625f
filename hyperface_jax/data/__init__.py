"""Data: records, builders, the pipeline, pairs. The only place that knows Grain, TFDS."""
