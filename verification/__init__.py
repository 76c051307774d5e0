"""The rooms behind verify.py: photographs, what the network says, pictures, the page."""
