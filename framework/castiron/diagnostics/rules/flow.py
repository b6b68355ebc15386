"""F3xx: the flow of dtypes through operations."""

from __future__ import annotations

from castiron.diagnostics.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        code="F310",
        name="loss-not-as-declared",
        severity="error",
        what="The loss that a training step returns is not in the policy's loss format.",
        why="A float64 target makes the whole loss and its backward pass float64; a float16 one makes the "
        "loss float16, which overflows at 65,504. Frameworks say nothing.",
        remedy="Cast outputs and targets to the declared format before the loss, or declare `loss:`.",
        bad="F.mse_loss(outputs, torch.from_numpy(targets))  # float64, as NumPy made them",
        good="F.mse_loss(outputs.float(), torch.from_numpy(targets).float())",
    ),
)
