"""How far identity and clothing came apart in a trained run: probes, dependence, retrieval in other clothes."""
