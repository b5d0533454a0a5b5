"""How one revision replaces another: decided from values alone, carried out by the plan."""
