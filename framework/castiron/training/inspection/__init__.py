"""Looking into checkpoints of any origin without executing anything in them."""
