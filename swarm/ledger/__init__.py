"""The ledger: the swarm's contract, its client, and the devnet. `swarm.ledger.client` is what others use."""
