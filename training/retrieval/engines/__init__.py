"""Engines that find the candidates of a query among embeddings: exact, faiss, qdrant, pgvector."""
