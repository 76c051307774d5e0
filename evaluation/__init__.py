"""The rooms behind evaluate.py: protocols, extraction, metrics, leakage, pictures. Training validates with the same functions."""
