"""The rooms behind prepare.py: photographs to aligned faces with ages, and the doctor of sets."""
