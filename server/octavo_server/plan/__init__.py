"""How much memory a model takes and how much fits; `command.plan_model` answers for programs."""
