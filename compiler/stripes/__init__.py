"""Striped forms of segments: rules of operators, extents, forms, and what the bundle says."""
