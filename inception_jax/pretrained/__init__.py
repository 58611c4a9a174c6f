"""Everyone's weights: records of what was published, readers of files, a name map per publisher, proof of equality."""
