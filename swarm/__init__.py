"""An open, verifiable peer-to-peer swarm that trains language models by reinforcement learning."""
