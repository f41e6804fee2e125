"""Records in; evidence, tables and numbers in prose out. Without torch, not even through another module."""
