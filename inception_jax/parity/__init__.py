"""Numerical parity with the publishers' own code: the same weights and images through both, and a ledger of results."""
