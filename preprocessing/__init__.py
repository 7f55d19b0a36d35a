"""The offline stage: labelled images to shards of moments."""
