"""What the pipeline derives: one module per subject. Every handler in a module here is found by itself."""
