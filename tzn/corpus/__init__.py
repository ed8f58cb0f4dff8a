"""Many recordings: manifests, Parquet tables of detections, worker processes, Ray (``docs/corpus.md``)."""
