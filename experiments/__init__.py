"""Full-scale runs of the chapters' experiments: ``python -m experiments NAME``."""
