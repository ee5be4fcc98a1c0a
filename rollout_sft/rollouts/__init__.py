"""What generates: the protocol, and one module per engine."""
