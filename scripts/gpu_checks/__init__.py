"""What ``scripts/gpu_check.py`` is made of: one file a kind of check, and the records of all."""
