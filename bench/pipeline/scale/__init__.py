"""Training by several ranks: work and bytes of a step counted, exchanges in a trace, ranks that are killed, a large gallery."""
