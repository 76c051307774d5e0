"""The rooms behind prepare.py: alignment, detection, landmark files, ages, the job itself, and the doctor of finished sets."""
