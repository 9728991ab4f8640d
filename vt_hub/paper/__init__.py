"""The paper's tables, recomputed, and the benchmark."""
