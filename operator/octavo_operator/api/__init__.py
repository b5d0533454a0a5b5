"""The ModelDeployment as values: types, validation, reasons."""
