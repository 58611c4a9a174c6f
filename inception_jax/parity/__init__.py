"""Our networks beside the publishers' own code: seeded weights, both executed, differences in a ledger."""
