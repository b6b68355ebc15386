"""The PyTorch wing: the plan applied, steps, scaling, optimizers. Plain torch; serves a bare loop."""
